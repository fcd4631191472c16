"""Pictures for the page: copies to look at, and the result in the source's format and depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moevision.engine.names import output_name
from moevision.imaging.metadata import Metadata
from moevision.imaging.picture import Picture
from moevision.imaging.read import FORMATS
from moevision.imaging.write import encode_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VIEW_PX = 2048
_VIEW_QUALITY = 92
_BEHIND = 0.5  # what is behind transparent places of a view
_FULL = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


def write_view(picture: Picture, path: Path) -> str:
    """A JPEG to look at: 8 bits, nothing transparent, at most 2048 px; browsers show no TIFF."""
    pixels_HWC = _shrunk(picture.pixels_HWC)
    seen_HWC = np.clip(pixels_HWC.astype(np.float32) / _FULL[pixels_HWC.dtype.name], 0, 1)
    if picture.alpha_HW is not None:
        alpha_HW1 = _shrunk(picture.alpha_HW[:, :, None]).astype(np.float32) / _FULL[pixels_HWC.dtype.name]
        seen_HWC = seen_HWC * alpha_HW1 + _BEHIND * (1 - alpha_HW1)
    eight_HWC = np.rint(255 * seen_HWC).astype(np.uint8)
    icc = picture.metadata.icc if eight_HWC.shape[2] == 3 else None
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


def described(picture: Picture) -> str:
    """Size, format and depth in words."""
    height, width = picture.pixels_HWC.shape[:2]
    bits = 8 * picture.pixels_HWC.dtype.itemsize
    return f"{width} × {height} px, {picture.format}, {bits} bit"


def _shrunk(pixels_HWC: np.ndarray) -> np.ndarray:
    import cv2

    height, width, channels = pixels_HWC.shape
    factor = _VIEW_PX / max(height, width)
    if factor >= 1:
        return pixels_HWC
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA)).reshape(size[1], size[0], channels)
