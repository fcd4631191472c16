"""The trivial rows of every restoration table: identity, and the dark-channel prior."""

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.datasets.depth import guided_filter

Image = NDArray[np.uint8]


def identity(image_HWC: Image) -> Image:
    """The degraded picture itself."""
    return image_HWC


def dark_channel(image_HWC: Image, *, patch_px: int = 15, omega: float = 0.95, floor: float = 0.1) -> Image:
    """Single-image haze removal by the dark-channel prior (He, Sun, Tang, CVPR 2009), refined by a guided filter.

    Args:
        image_HWC: RGB uint8.
        patch_px: window of the dark channel.
        omega: share of the haze that is removed.
        floor: smallest transmission.
    """
    picture = image_HWC.astype(np.float32) / np.float32(255)
    kernel = np.ones((patch_px, patch_px), np.uint8)
    airlight_C = _airlight(picture, np.asarray(cv2.erode(picture.min(axis=2), kernel), np.float32))
    dark_HW = np.asarray(cv2.erode((picture / airlight_C).min(axis=2), kernel), np.float32)
    grey_HW = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
    transmission_HW = guided_filter(grey_HW, 1 - np.float32(omega) * dark_HW, 40, 1e-3)
    restored = (picture - airlight_C) / np.maximum(transmission_HW, floor)[..., None] + airlight_C
    return np.asarray((restored.clip(0, 1) * 255).round().astype(np.uint8))


BASELINES = {"identity": identity, "dark_channel": dark_channel}


def _airlight(picture: NDArray[np.float32], dark_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    # Mean colour of the 0.1 % of pixels whose surroundings are haziest.
    count = max(1, dark_HW.size // 1000)
    haziest = np.argpartition(dark_HW.ravel(), -count)[-count:]
    return np.maximum(picture.reshape(-1, 3)[haziest].mean(axis=0), 1e-3, dtype=np.float32)
