"""A picture in memory, and the way to the network's float RGB and back to the depth of the source."""

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from moevision.errors import InputError
from moevision.imaging.metadata import Metadata

logger = logging.getLogger(__name__)

_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded, upright picture.

    Attributes:
        pixels_HWC: uint8, uint16 or float32; C = 1 (grey) or 3 (RGB). Floats are finite; HDR files may leave [0, 1].
        alpha_HW: straight (not premultiplied) alpha of the same dtype, or None. No task touches it.
        metadata: EXIF, ICC profile and resolution.
        format: container the picture came from: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".
        palette: of a grey uint8 picture without alpha, whose values are no brightness: the colour (red, green, blue) of
            each. PNG alone keeps it; reading never sets it, for a palette's picture is read as its colours.
    """

    pixels_HWC: np.ndarray
    alpha_HW: np.ndarray | None = None
    metadata: Metadata = field(default_factory=Metadata)
    format: str = "PNG"
    palette: tuple[tuple[int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels_HWC, self.alpha_HW
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype not in _SCALE:
            raise ValueError(f"pixels must be HxWx1 or HxWx3 uint8, uint16 or float32, not {_describe(pixels)}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(f"alpha {_describe(alpha)} does not fit pixels {_describe(pixels)}")


def picture_from_array(array: np.ndarray) -> Picture:
    """Wrap an array of shape HxW or HxWx1/2/3/4 (grey, grey+alpha, RGB, RGBA), uint8, uint16 or float32.

    Raises InputError for any other shape or dtype, an empty array, and NaN or infinity.
    """
    array = np.asarray(array)
    if array.dtype not in _SCALE:
        raise InputError(f"array of dtype {array.dtype} is not an image; convert it to uint8, uint16 or float32")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or array.size == 0:
        raise InputError(f"array of shape {array.shape} is not an image; pass HxW or HxWxC with C = 1, 2, 3 or 4")
    require_finite(array, "pixel values", "replace them")
    channels = 1 if array.shape[2] <= 2 else 3
    alpha = np.ascontiguousarray(array[:, :, channels]) if array.shape[2] > channels else None
    return Picture(
        pixels_HWC=np.ascontiguousarray(array[:, :, :channels]),
        alpha_HW=alpha,
        format="TIFF" if array.dtype == np.float32 else "PNG",
    )


def to_float_rgb(picture: Picture) -> np.ndarray:
    """The picture as HxWx3 float32 RGB in [0, 1]; grey is replicated, float values outside the range are clipped."""
    warn_if_clipped(picture)
    return to_float_tile(picture.pixels_HWC)


def from_float_rgb(rgb_HWC: np.ndarray, like: Picture) -> Picture:
    """Put an HxWx3 float RGB result in [0, 1] into the depth, channels, alpha and metadata of `like`.

    Values are rounded, not truncated; grey is the mean of the three channels. Raises InputError on NaN or infinity.
    """
    if rgb_HWC.shape != (*like.pixels_HWC.shape[:2], 3):
        raise ValueError(f"result of shape {rgb_HWC.shape} does not fit a picture of {like.pixels_HWC.shape}")
    return replace(like, pixels_HWC=quantise(rgb_HWC, like.pixels_HWC.dtype, like.pixels_HWC.shape[2]))


def to_float_tile(source_HWC: np.ndarray) -> np.ndarray:
    """A new HxWx3 float32 array in [0, 1] from HxWx1 or HxWx3 uint8, uint16 or float32."""
    rgb = np.empty((*source_HWC.shape[:2], 3), np.float32)
    if source_HWC.dtype == np.float32:
        np.clip(source_HWC, 0.0, 1.0, out=rgb)
    else:
        np.divide(source_HWC, np.float32(_SCALE[source_HWC.dtype]), out=rgb, dtype=np.float32)
    return rgb


def quantise(rgb_HWC: np.ndarray, dtype: np.dtype, channels: int) -> np.ndarray:
    """HxWx3 float RGB -> HxWxC of `dtype`, clipped to [0, 1] and rounded to nearest.

    Raises InputError on NaN or infinity: a black picture written without a word is worse than none.
    """
    require_finite(rgb_HWC, "values from the network", "retry with --precision fp32 or another model")
    values = rgb_HWC if channels == 3 else rgb_HWC.mean(axis=2, keepdims=True, dtype=np.float32)
    values = np.clip(values, 0.0, 1.0, dtype=np.float32)
    if dtype == np.float32:
        return values
    values *= np.float32(_SCALE[dtype])
    return np.rint(values, out=values).astype(dtype)


def require_finite(values: np.ndarray, what: str, remedy: str) -> None:
    """Raise InputError if a float array holds NaN or infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"NaN or infinite {what}; {remedy}")


def warn_if_clipped(picture: Picture) -> None:
    """Log that a float picture leaves [0, 1]: the networks know nothing beyond white."""
    pixels = picture.pixels_HWC
    if pixels.dtype == np.float32 and (pixels.min() < 0 or pixels.max() > 1):
        logger.warning("float values outside [0, 1] are clipped before processing")


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
