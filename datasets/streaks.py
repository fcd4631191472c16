"""Synthetic rain streaks: noise, thinned to seeds, smeared along one direction, laid over the picture in layers.

That is how the sets of the field were made (Rain100L/H, Yang et al. 2017; Rain1400, Fu et al. 2017; SIRR, Wei et al.
2019: noise, threshold and motion blur in an image editor), so the styles below are points in that family. Measured on
ten SIRR pairs: input minus truth is one grey layer, equal in the three channels, simply added to the sRGB values and
clipped; medians 0.01 to 0.17, 99 % points 0.14 to 0.51; five styles (long dense smear on a uniform veil, long separate
streaks, fine grain under a veil that grows across the picture, sparse slanted streaks, short dashes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from moevision.datasets.light import ImageArray, linear_to_srgb, smooth_field, srgb_to_linear


@dataclass(frozen=True)
class StreakLayer:
    """One layer of streaks; lengths and widths in pixels of the result."""

    length_px: float
    width_px: float
    density: float  # share of the seed grid that starts a streak; 1 = plain noise
    angle_deg: float  # 0 = falling straight down
    blur_px: float = 0.0  # defocus of near rain


def _canvas_px(height: int, width: int, angle_deg: float) -> tuple[int, int]:
    """Upright (height, width) that covers an HW picture turned by the angle."""
    cos, sin = abs(np.cos(np.deg2rad(angle_deg))), abs(np.sin(np.deg2rad(angle_deg)))
    return int(height * cos + width * sin) + 4, int(height * sin + width * cos) + 4


def _seeds(rng: np.random.Generator, rows: int, columns: int, density: float) -> ImageArray:
    """Plain noise (density 1), or about `density` of the cells set to brightnesses of 0.35 to 1.3; float32."""
    if density >= 1.0:
        return rng.standard_normal((rows, columns), dtype=np.float32)
    seeds = np.zeros(rows * columns, np.float32)
    count = int(rng.poisson(density * seeds.size))
    brightness = np.minimum(0.35 + 0.35 * np.abs(rng.standard_normal(count, dtype=np.float32)), 1.3)
    seeds[rng.integers(seeds.size, size=count)] = brightness
    return seeds.reshape(rows, columns)


def streak_field(rng: np.random.Generator, height: int, width: int, layer: StreakLayer) -> ImageArray:
    """Grey streak layer, HW float32: sparse layers in [0, 1.5], dense ones of mean 0 and deviation 1.

    Made upright, where a box filter does the motion blur, and turned afterwards.
    """
    tall, wide = _canvas_px(height, width, layer.angle_deg)
    # Thick streaks come from a seed grid coarser by their width, otherwise each would need hundreds of seeds.
    shrink_x = max(1.0, layer.width_px)
    shrink_y = min(shrink_x, 3.0)
    length = max(1, round(layer.length_px / shrink_y))
    rows, columns = int(tall / shrink_y) + 2 + length, int(wide / shrink_x) + 4
    seeds = _seeds(rng, rows, columns, layer.density)
    # Two boxes of unequal length: a streak that tapers instead of a bar with square ends.
    body, ends = max(1, length - length // 3), max(1, length // 3)
    blurred = np.asarray(cv2.blur(cv2.blur(seeds, (1, body)), (1, ends)), dtype=np.float32)
    upright: ImageArray = blurred[length // 2 : rows - length + length // 2]
    if layer.density < 1.0:
        upright = np.minimum(upright * np.float32(body), np.float32(1.5))
    return _turn(upright, layer, height, width, (shrink_x, shrink_y))


def _turn(
    upright: ImageArray, layer: StreakLayer, height: int, width: int, shrink_xy: tuple[float, float]
) -> ImageArray:
    """Scale the seed grid to pixels, turn it by the fall angle and cut the HW centre out of it."""
    rows, columns = upright.shape
    cos, sin = np.cos(np.deg2rad(layer.angle_deg)), np.sin(np.deg2rad(layer.angle_deg))
    # Inverse map: result pixel -> grid cell, both measured from their centres.
    matrix = np.array([[cos / shrink_xy[0], sin / shrink_xy[0], 0.0], [-sin / shrink_xy[1], cos / shrink_xy[1], 0.0]])
    matrix[:, 2] = np.array([columns / 2, rows / 2]) - matrix[:, :2] @ np.array([width / 2, height / 2])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(upright, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    if layer.blur_px > 0.3:
        field = cv2.GaussianBlur(field, (0, 0), layer.blur_px)
    if layer.density >= 1.0:
        # The whole grid's deviation, not the crop's: a small crop may well lie in one thick streak.
        field = (field - float(upright.mean())) / max(float(upright.std()), 1e-3)
    return np.asarray(field, dtype=np.float32)


def _angle(rng: np.random.Generator) -> float:
    """Dominant fall angle in degrees: mostly steep falls, sometimes driven by wind up to 60 degrees."""
    drawn = rng.random()
    if drawn < 0.85:
        return float(np.clip(rng.normal(0.0, 5.0 if drawn < 0.4 else 15.0), -40.0, 40.0))
    return float(rng.uniform(-60.0, 60.0))


def _smear(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Long dense smear on a uniform veil, or the same cut off below so that separate streaks stay."""
    angle = _angle(rng)
    length = float(np.exp(rng.uniform(np.log(16), np.log(90))))
    blur = float(rng.uniform(0.0, 0.9)) if rng.random() < 0.6 else 0.0
    fine = StreakLayer(length, 1.0, 1.0, angle, blur)
    mask_HW = streak_field(rng, height, width, fine) * np.float32(rng.uniform(0.3, 1.0))
    for _ in range(int(rng.integers(0, 3))):  # the same rain nearer by: wider, softer, dimmer
        thick = float(rng.uniform(2.0, 7.5))
        near = StreakLayer(length * float(rng.uniform(0.8, 1.6)), thick, 1.0, angle + float(rng.normal(0, 1.5)), blur)
        mask_HW += streak_field(rng, height, width, near) * np.float32(rng.uniform(0.3, 0.9))
    level = rng.uniform(-1.0, 2.6)
    return np.maximum(mask_HW + np.float32(level), 0.0) * np.float32(0.27)


def _grain(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Fine grain of short far streaks that rides on a veil growing across the picture."""
    length, thick = float(rng.uniform(6, 30)), float(rng.uniform(0.8, 2.0))
    field_HW = streak_field(rng, height, width, StreakLayer(length, thick, 1.0, _angle(rng), 0.5))
    veil_HW = smooth_field(rng, height, width, int(rng.integers(2, 4)))
    low, high = np.sort(rng.uniform(0.0, 1.0, 2))
    veil_HW = np.float32(low) + np.float32(high - low) * veil_HW
    return np.maximum(veil_HW * (1.0 + np.float32(rng.uniform(0.06, 0.45)) * field_HW), 0.0)


def _sparse(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Separate streaks of two or three distances: Rain100L/H and most real photographs."""
    angle, total_HW = _angle(rng), np.zeros((height, width), np.float32)
    busy = float(np.exp(rng.uniform(np.log(0.5), np.log(9.0))))
    for distance in range(int(rng.integers(1, 4))):
        near = 1.7**distance
        length = float(rng.uniform(9, 28)) * near
        thick = float(rng.uniform(0.8, 1.7)) * near**0.8
        blur = float(rng.uniform(0.3, 0.8)) if rng.random() < 0.7 else float(rng.uniform(0.5, 1.0)) * near
        # Seeds sit on a grid coarser by the width; density is what keeps the covered area at a few per cent.
        density = busy * 0.03 * min(thick, 3.0) * thick / (length * thick) / near
        layer = StreakLayer(length, thick, min(density, 0.5), angle + float(rng.normal(0, 3)), blur)
        total_HW += streak_field(rng, height, width, layer) * np.float32(rng.uniform(0.5, 1.4))
    return total_HW


def _dashes(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Many short dashes a few pixels long, as a fast shutter sees rain."""
    angle, total_HW = _angle(rng), np.zeros((height, width), np.float32)
    for _ in range(2):
        length, thick = float(rng.uniform(4, 11)), float(rng.uniform(1.2, 2.8))
        density = float(rng.uniform(0.02, 0.16))
        layer = StreakLayer(length, thick, density, angle + float(rng.normal(0, 6)), float(rng.uniform(0.4, 1.0)))
        total_HW += streak_field(rng, height, width, layer) * np.float32(rng.uniform(0.4, 0.8))
    return total_HW * (np.float32(0.5) + smooth_field(rng, height, width, 3))


_STYLES: tuple[Callable[[np.random.Generator, int, int], ImageArray], ...] = (_smear, _grain, _sparse, _dashes)
_STYLE_CHANCE = (0.38, 0.17, 0.27, 0.18)


def rain_mask(rng: np.random.Generator, height: int, width: int, strength: float) -> ImageArray:
    """Rain as a grey layer to add, HW float32 >= 0: streaks of one random style plus a veil; `strength` in [0, 1]."""
    style = _STYLES[int(rng.choice(len(_STYLES), p=_STYLE_CHANCE))]
    streaks_HW = style(rng, height, width) * np.float32(0.08 + 0.5 * strength)
    if rng.random() < 0.6:
        veil = np.float32(rng.gamma(1.6, 0.08) * (0.5 + strength))
        streaks_HW = streaks_HW + veil * (0.5 + 0.5 * smooth_field(rng, height, width, 2))
    return streaks_HW * _gusts(rng, height, width)


def _gusts(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """How much thicker the rain is here than on average: HW float32 >= 0 of mean 1, for one in seven 1 everywhere.

    The veil of the ten SIRR pairs varies within a picture by 0.57 of its mean (8 x 8 blocks, median), streaks with it.
    """
    if rng.random() < 0.14:
        return np.ones((height, width), np.float32)
    gusts_HW = smooth_field(rng, height, width, int(rng.integers(2, 7))) ** np.float32(rng.uniform(0.7, 2.5))
    gusts_HW = gusts_HW + np.float32(rng.uniform(0.0, 0.4) ** 2)
    return np.asarray(gusts_HW / max(float(gusts_HW.mean()), 1e-3), np.float32)


def lay_over(clean_HWC: ImageArray, mask_HW: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Composite a grey layer: sRGB addition (SIRR), screen blend, or light scattered in linear light (cameras)."""
    mask_HWC = mask_HW[..., None]
    if rng.random() < 0.15:  # rain mirrors the sky, which is rarely pure white
        mask_HWC = mask_HWC * (1.0 + np.float32(0.06) * rng.uniform(-1, 1, 3).astype(np.float32))
    form = rng.random()
    if form < 0.6:
        return np.clip(clean_HWC + mask_HWC, 0.0, 1.0)
    if form < 0.8:
        return np.clip(clean_HWC + mask_HWC * (1.0 - clean_HWC), 0.0, 1.0)
    sky = np.float32(rng.uniform(0.45, 1.0))
    alpha_HWC = np.clip(mask_HWC * np.float32(0.9), 0.0, 0.97)
    light_HWC = srgb_to_linear(clean_HWC)
    return linear_to_srgb(light_HWC + alpha_HWC * (sky - np.minimum(light_HWC, sky)))


def add_rain(clean_HWC: ImageArray, rng: np.random.Generator, *, strength: float | None = None) -> ImageArray:
    """Rain streaks and veil on `clean_HWC` (HWC float32 sRGB in [0, 1]); same shape and range returned."""
    height, width = clean_HWC.shape[:2]
    drawn = rng.random()
    mask_HW = rain_mask(rng, height, width, float(drawn if strength is None else strength))
    return np.ascontiguousarray(lay_over(clean_HWC, mask_HW, rng), dtype=np.float32)
