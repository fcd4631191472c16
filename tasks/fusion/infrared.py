"""From an infrared file to brightness in [0, 1]: colour palettes, 8 and 16 bit, radiometric counts, another size.

Thermal cameras write counts of which a scene uses a few hundred; a stretch to the full range per picture would turn the
noise of a cold scene into hot spots, so the range has a least span.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.errors import InputError, UsageError
from moevision.imaging.picture import Picture

_LOW_PERCENTILE, _HIGH_PERCENTILE = 1.0, 99.5
MINIMUM_SPAN = {"uint16": 200.0, "float32": 4.0}  # counts; kelvin
_SAME_ASPECT = 0.03
_GREY_DIFFERENCE = 4 / 255

Range = tuple[float, float]


def parse_range(text: str) -> str | Range:
    """`auto`, `full`, or `LOW,HIGH` in the file's own units; raises UsageError for anything else."""
    if text in ("auto", "full"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--thermal-range {text}: use auto, full, or LOW,HIGH such as 29000,31000") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise UsageError(f"--thermal-range {text}: LOW must be below HIGH")
    return low, high


def infrared_brightness(
    picture: Picture, size_hw: tuple[int, int], thermal_range: str | Range = "auto"
) -> NDArray[np.float32]:
    """(H, W) float32 in [0, 1] of the infrared picture, brought to the visible picture's size.

    Args:
        picture: grey, or three channels, of which the luma is taken (a colour palette loses its order: warned of).
        size_hw: of the visible picture.
        thermal_range: "auto" stretches 16-bit and float pictures from their 1st to their 99.5th percentile, but at
            least MINIMUM_SPAN; "full" takes the type's whole range; a pair the given values.

    Raises:
        InputError: its shape is not the visible picture's: they do not show the same view.
    """
    values_HW = _one_channel(picture.pixels_HWC)
    low, high = _range_of(values_HW, thermal_range)
    grey_HW = np.clip((values_HW.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12)), 0, 1)
    return _resized(grey_HW, size_hw)


def is_coloured(picture: Picture) -> bool:
    """Whether an infrared picture has colour: a palette, or a visible picture given in its place."""
    if picture.pixels_HWC.shape[2] == 1:
        return False
    every_HWC = picture.pixels_HWC[::4, ::4].astype(np.float32)
    scale = {"uint8": 255.0, "uint16": 65535.0}.get(picture.pixels_HWC.dtype.name, 1.0)
    return float(np.ptp(every_HWC, axis=2).mean()) > _GREY_DIFFERENCE * scale


def _one_channel(pixels_HWC: np.ndarray) -> np.ndarray:
    if pixels_HWC.shape[2] == 1:
        return pixels_HWC[:, :, 0]
    return np.asarray(cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY))


def _range_of(values_HW: np.ndarray, thermal_range: str | Range) -> Range:
    if not isinstance(thermal_range, str):
        return thermal_range
    kind = values_HW.dtype.name
    full = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}.get(kind, (0.0, 1.0))
    is_ordinary = kind == "float32" and values_HW.min() >= 0 and values_HW.max() <= 1
    if thermal_range == "full" or kind == "uint8" or is_ordinary:
        return full
    low, high = (float(p) for p in np.percentile(values_HW, (_LOW_PERCENTILE, _HIGH_PERCENTILE)))
    missing = max(0.0, MINIMUM_SPAN[kind] - (high - low)) / 2
    return low - missing, high + missing


def _resized(grey_HW: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    (height, width), (target_height, target_width) = grey_HW.shape, size_hw
    if (height, width) == size_hw:
        return grey_HW
    if abs(width * target_height / (height * target_width) - 1) > _SAME_ASPECT:
        raise InputError(
            f"the infrared picture is {width}x{height}, the visible one {target_width}x{target_height}: not the same "
            "view; crop them alike, or give a homography with --register FILE.json"
        )
    shrinks = target_height * target_width < height * width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized_HW = np.asarray(cv2.resize(grey_HW, (target_width, target_height), interpolation=how))
    return np.clip(resized_HW, 0, 1, dtype=np.float32)
