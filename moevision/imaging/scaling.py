"""Pictures made smaller."""

import cv2
import numpy as np


def shrink(pixels_HWC: np.ndarray, longer_px: int) -> np.ndarray:
    """By areas, so that the longer side is `longer_px`; 0, or a picture that is not larger, changes nothing."""
    height, width, channels = pixels_HWC.shape
    if not 0 < longer_px < max(height, width):
        return pixels_HWC
    factor = longer_px / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA)).reshape(size[1], size[0], channels)
