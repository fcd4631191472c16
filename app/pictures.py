"""Pictures for the page: copies to look at, and the result in the source's format and depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moevision.engine.names import output_name
from moevision.imaging.metadata import Metadata
from moevision.imaging.picture import Picture, quantise, to_float_tile
from moevision.imaging.read import FORMATS
from moevision.imaging.scaling import shrink
from moevision.imaging.write import encode_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VIEW_PX = 2048
_VIEW_QUALITY = 92
_BEHIND = 0.5  # what is behind transparent places of a view


def write_view(picture: Picture, path: Path) -> str:
    """A JPEG to look at: 8 bits, nothing transparent, at most 2048 px; browsers show no TIFF."""
    pixels_HWC = shrink(_as_colours(picture), _VIEW_PX)
    seen_HWC = to_float_tile(pixels_HWC)
    if picture.alpha_HW is not None:
        alpha_HWC = to_float_tile(shrink(picture.alpha_HW[:, :, None], _VIEW_PX))
        seen_HWC = seen_HWC * alpha_HWC + _BEHIND * (1 - alpha_HWC)
    channels = pixels_HWC.shape[2]
    eight_HWC = quantise(seen_HWC, np.dtype(np.uint8), channels)
    icc = picture.metadata.icc if channels == 3 else None
    view = Picture(eight_HWC, metadata=Metadata(icc=icc))
    path.write_bytes(encode_picture(view, "JPEG", quality=_VIEW_QUALITY))
    return str(path)


def write_result(picture: Picture, folder: Path, source_name: str, what: str) -> str:
    """The picture in its own format and depth as `<stem>-<what>.<suffix>`."""
    suffix = FORMATS[picture.format][0]
    named = Path(output_name(source_name, suffix.removeprefix(".")))
    if Path(source_name).suffix.lower() in FORMATS[picture.format]:
        named = Path(source_name)
    path = folder / f"{named.stem}-{what}{named.suffix}"
    path.write_bytes(encode_picture(picture, picture.format))
    return str(path)


def coloured(weight_HW: NDArray[np.uint8]) -> Picture:
    """A map of shares: dark blue where it is 0, yellow where it is 255."""
    import cv2

    colours_HWC = cv2.applyColorMap(weight_HW, cv2.COLORMAP_CIVIDIS)
    return Picture(np.ascontiguousarray(colours_HWC[:, :, ::-1]))


def _as_colours(picture: Picture) -> np.ndarray:
    if picture.palette is None:
        return picture.pixels_HWC
    return np.array(picture.palette, np.uint8)[picture.pixels_HWC[:, :, 0]]


def described(picture: Picture) -> str:
    """Size, format and depth in words."""
    height, width = picture.pixels_HWC.shape[:2]
    bits = 8 * picture.pixels_HWC.dtype.itemsize
    return f"{width} × {height} px, {picture.format}, {bits} bit"
