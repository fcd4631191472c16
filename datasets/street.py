"""Bad weather as a camera on a moving car sees it: mist by distance along a street, and what falls, seen from within.

The other synthetic weathers lie on the picture's plane. Here the scene is a street (ground, walls at both sides, sky),
and rain or flakes fan out from the point one moves towards, longer and thicker the nearer they are. Light is added as
it is, in linear values. Every function takes an HWC float32 sRGB picture in [0, 1] and a `numpy.random.Generator`.
"""

from __future__ import annotations

import cv2
import numpy as np

from moevision.datasets.depth import guided_filter
from moevision.datasets.drops import Glass, add_raindrops
from moevision.datasets.light import ImageArray, linear_to_srgb, smooth_field, srgb_to_linear
from moevision.datasets.streaks import StreakLayer, streak_field

STREET_KINDS = ("haze", "haze+rain", "haze+snow", "drops")
FAR_END_M = (60.0, 300.0)  # of a street
_NEAREST = 0.04  # radius round the vanishing point in picture sides, within which nothing is drawn


def street_depth(clean_HWC: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Invented distance along a street, HW float32 in [0, 1], 1 being the sky or the far end.

    The borders of ground, walls and sky follow the picture's edges, and what is bright above the horizon is sky.
    """
    height, width = clean_HWC.shape[:2]
    side = max(height, width)
    row, column = height * rng.uniform(0.2, 0.7), width * rng.uniform(0.1, 0.9)
    far_m, camera_m, high_m = rng.uniform(*FAR_END_M), rng.uniform(1.2, 2.5), rng.uniform(5, 15)
    focal_px = side * rng.uniform(0.8, 1.6)
    below_H1 = (np.arange(height, dtype=np.float32) + np.float32(0.5 - row))[:, None]
    aside_W = np.arange(width, dtype=np.float32) + np.float32(0.5 - column)
    walls_m_W = np.where(aside_W < 0, *rng.uniform(4, 25, 2)) * focal_px / np.maximum(np.abs(aside_W), 1.0)
    walls_m_HW = np.where(-below_H1 * walls_m_W > focal_px * (high_m - camera_m), far_m, walls_m_W)
    street_m_HW = np.minimum(walls_m_HW, camera_m * focal_px / np.maximum(below_H1, 0.5))
    depth_HW = np.log(np.clip(street_m_HW, 2.0, far_m)).astype(np.float32)
    grey_HW = np.ascontiguousarray(clean_HWC.mean(axis=2), dtype=np.float32)
    sky = float(np.quantile(grey_HW[::4, ::4], 0.9))
    if sky > 0.6:
        bright_HW = np.clip((grey_HW - np.float32(0.8 * sky)) / np.float32(0.2 * sky), 0, 1) * (below_H1 < 0)
        depth_HW += bright_HW * (np.float32(np.log(far_m)) - depth_HW)
    depth_HW = guided_filter(grey_HW, depth_HW, max(2, side // int(rng.integers(8, 24))), 1e-3)
    return np.clip(np.exp(depth_HW - np.float32(np.log(far_m))), 0.0, 1.0)


def fan_field(rng: np.random.Generator, height: int, width: int, layer: StreakLayer) -> ImageArray:
    """A streak layer that fans out from a point, HW float32 in [0, 1.5]; the layer's sizes hold half a side from it.

    Drawn with the logarithm of the distance from the point downwards, where all streaks are equal, and bent round.
    """
    side = max(height, width)
    # One moves forwards, the weather moves down: the faster it falls, the higher it seems to come from.
    x, y = width * rng.uniform(-0.2, 1.2), height * rng.uniform(-1.2, 0.5)
    across_W = np.arange(width, dtype=np.float32) + np.float32(0.5 - x)
    down_H1 = (np.arange(height, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    radius_HW = np.hypot(across_W, down_H1) / np.float32(0.5 * side)
    scale = 0.5 * side
    nearest, farthest = 2 * _NEAREST, float(radius_HW.max()) + 1e-3
    rows, columns = int(scale * np.log(farthest / nearest)) + 2, int(2 * np.pi * scale) + 2
    field_RC = streak_field(rng, rows, columns, layer)
    row_HW = np.log(np.maximum(radius_HW, nearest) / np.float32(nearest)) * np.float32(scale)
    column_HW = (np.arctan2(across_W, down_H1) / np.float32(2 * np.pi) + np.float32(0.5)) * np.float32(columns - 1)
    bent_HW = cv2.remap(field_RC, column_HW, row_HW.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(bent_HW * (radius_HW > nearest), np.float32)


def _fall(rng: np.random.Generator, height: int, width: int, strength: float, *, snow: bool) -> ImageArray:
    """Opacity of rain or flakes of two to five distances, HW float32 in [0, 1].

    As many in every cubic metre: the farther, the finer, and the more of the picture they cover.
    """
    clear_HW = np.ones((height, width), np.float32)
    opacity = rng.uniform(0.4, 1.0) if snow else rng.uniform(0.1, 0.3 + 0.6 * strength)
    stretch = float(rng.uniform(1.0, 6.0) if snow else rng.uniform(6.0, 30.0))
    thick = float(rng.uniform(0.8, 2.2) if snow else rng.uniform(0.6, 1.4))
    busy = float((0.3 + strength) * np.exp(rng.normal(0.3, 0.6)))
    for nearness in range(int(rng.integers(-2, 1)), int(rng.integers(2, 4))):
        near = 2.0**nearness
        wide = thick * near**0.8
        # As in parallel streaks: the seed grid is coarser by the width, the covered share stays at a few per cent.
        density = busy * 0.06 * min(wide, 3.0) / (stretch * wide) / near
        layer = StreakLayer(stretch * wide, wide, min(density, 0.5), float(rng.normal(0, 2)), 0.35 * near)
        shade = opacity * min(1.0, wide) * rng.uniform(0.6, 1)  # what is thinner than a pixel hides a part of it
        clear_HW *= 1 - np.clip(fan_field(rng, height, width, layer), 0, 1) * np.float32(shade)
    return 1 - clear_HW


def _windscreen(rng: np.random.Generator, height: int, strength: float) -> Glass:
    """A wet windscreen: small drops, nearly in focus, with bright and dark ends."""
    radius = float(np.exp(rng.uniform(np.log(2.5), np.log(max(3.0, 0.06 * height)))))
    return Glass(
        radius_px=radius,
        cover=float(0.04 + 0.6 * strength),
        defocus_px=float(rng.uniform(0.5, max(0.6, 0.2 * radius))),
        opacity=float(rng.uniform(0.75, 1.0)),
        contrast=float(rng.uniform(0.2, 1.2)),
        trails=False,
    )


def add_street_weather(
    clean_HWC: ImageArray,
    kind: str,
    rng: np.random.Generator,
    *,
    strength: float | None = None,
    distance_m_HW: ImageArray | None = None,
    opacity_HW: ImageArray | None = None,
) -> ImageArray:
    """One of STREET_KINDS over the picture; same shape and range. `strength` in [0, 1], None draws it.

    `distance_m_HW` (float32) is how far off everything is, the sky being kilometres away; None invents a street.
    `opacity_HW` (float32), if given, receives how much of the scene drops hide; without drops it is left as it is.
    """
    height, width = clean_HWC.shape[:2]
    drawn = float(rng.random())
    severity = drawn if strength is None else float(np.clip(strength, 0.0, 1.0))
    if kind == "drops":
        return add_raindrops(clean_HWC, rng, glass=_windscreen(rng, height, severity), opacity_HW=opacity_HW)
    light_HWC = srgb_to_linear(clean_HWC)
    grey = rng.uniform(0.45, 1.0)
    blue, tint_C = rng.normal(0, 0.04), rng.normal(0, 0.01, 3)  # skies are bluish or yellowish, seldom green or pink
    sky_C = srgb_to_linear(np.clip(grey * (1 + np.array([-blue, 0, blue]) + tint_C), 0, 1).astype(np.float32))
    # Optical depth of the far end; where something falls, the air between is clearer than in fog.
    thickness = np.exp(np.log(0.4) + severity * np.log(8 / 0.4)) * (1.0 if kind == "haze" else rng.uniform(0.1, 0.6))
    if distance_m_HW is None:
        depth_HW = street_depth(clean_HWC, rng)
    else:
        depth_HW = distance_m_HW / np.float32(np.exp(rng.uniform(*np.log(FAR_END_M))))
    seen_HW1 = np.exp(np.float32(-thickness) * depth_HW)[..., None]
    if rng.random() < 0.3:
        seen_HW1 = seen_HW1 ** (np.float32(0.7) + np.float32(0.6) * smooth_field(rng, height, width, 3)[..., None])
    light_HWC = light_HWC * seen_HW1 + sky_C * (1 - seen_HW1)
    if kind != "haze":
        alpha_HW1 = _fall(rng, height, width, severity, snow=kind.endswith("snow"))[..., None]
        shine_C = np.minimum(sky_C * np.float32(rng.uniform(0.9, 1.6)), 1.0)
        light_HWC = light_HWC + alpha_HW1 * (np.maximum(shine_C, light_HWC) - light_HWC)
    return np.ascontiguousarray(linear_to_srgb(light_HWC), dtype=np.float32)
