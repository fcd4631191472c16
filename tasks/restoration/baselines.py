"""The trivial rows of every restoration table: identity, and the dark-channel prior."""

import cv2
import numpy as np
from numpy.typing import NDArray

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
    picture = image_HWC.astype(np.float32) / 255
    kernel = np.ones((patch_px, patch_px), np.uint8)
    airlight_C = _airlight(picture, cv2.erode(picture.min(axis=2), kernel))
    transmission = 1 - omega * cv2.erode((picture / airlight_C).min(axis=2), kernel)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    transmission = np.maximum(_guided_filter(grey, transmission, radius_px=40, epsilon=1e-3), floor)[..., None]
    restored = (picture - airlight_C) / transmission + airlight_C
    return np.asarray((restored.clip(0, 1) * 255).round().astype(np.uint8))


BASELINES = {"identity": identity, "dark_channel": dark_channel}


def _airlight(picture: NDArray[np.float32], dark_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    # Mean colour of the 0.1 % of pixels whose surroundings are haziest.
    count = max(1, dark_HW.size // 1000)
    haziest = np.argpartition(dark_HW.ravel(), -count)[-count:]
    return np.maximum(picture.reshape(-1, 3)[haziest].mean(axis=0), 1e-3)


def _guided_filter(
    guide_HW: NDArray[np.float32], source_HW: NDArray[np.float32], *, radius_px: int, epsilon: float
) -> NDArray[np.float32]:
    size = (2 * radius_px + 1, 2 * radius_px + 1)
    mean_guide, mean_source = cv2.blur(guide_HW, size), cv2.blur(source_HW, size)
    covariance = cv2.blur(guide_HW * source_HW, size) - mean_guide * mean_source
    slope = covariance / (cv2.blur(guide_HW * guide_HW, size) - mean_guide * mean_guide + epsilon)
    offset = mean_source - slope * mean_guide
    return np.asarray(cv2.blur(slope, size) * guide_HW + cv2.blur(offset, size))
