"""sRGB values <-> linear light, shared by every synthetic weather.

Light adds up in linear light, cameras and networks speak sRGB; both directions are table look-ups because the exact
power costs more than all the rest of a 128x128 degradation. The tables interpolate, error below 1e-4 (a test).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.float32]

_STEPS = 4096
_GRID = np.linspace(0.0, 1.0, _STEPS + 1, dtype=np.float64)


def _decode(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact IEC 61966-2-1 transfer function."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _encode(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact inverse of `_decode`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


_TO_LINEAR = _decode(_GRID).astype(np.float32)
# Indexed by the square root of the light: sRGB's steep start would need 100 times as many even steps.
_TO_SRGB = _encode(_GRID**2).astype(np.float32)


def _look_up(table: ImageArray, position: ImageArray) -> ImageArray:
    """Linear interpolation of `table` at `position` in [0, 1]; any shape."""
    scaled = position * np.float32(_STEPS)
    low = np.minimum(scaled.astype(np.int32), _STEPS - 1)
    fraction = scaled - low
    start = table[low]
    return start + (table[low + 1] - start) * fraction


def srgb_to_linear(srgb: ImageArray) -> ImageArray:
    """sRGB values in [0, 1] -> linear light in [0, 1]; any shape, values outside are clipped."""
    return _look_up(_TO_LINEAR, np.clip(srgb, 0.0, 1.0).astype(np.float32, copy=False))


def linear_to_srgb(linear: ImageArray) -> ImageArray:
    """Linear light in [0, 1] -> sRGB values in [0, 1]; any shape, values outside are clipped."""
    return _look_up(_TO_SRGB, np.sqrt(np.clip(linear, 0.0, 1.0).astype(np.float32, copy=False)))


def smooth_field(rng: np.random.Generator, height: int, width: int, cells: int) -> ImageArray:
    """Low-frequency random field, HW float32 in [0, 1]: a `cells` x `cells` grid of random values, spread smoothly."""
    grid = rng.random((cells, cells), dtype=np.float32)
    field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC if cells > 2 else cv2.INTER_LINEAR)
    return np.clip(field, 0.0, 1.0)
