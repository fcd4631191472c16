"""Depth for synthetic haze: invented from one photograph, or measured from pairs with several haze levels.

RESIDE (Li et al. 2019) hazed each indoor scene at several densities, I = J t + A (1 - t), t = exp(-beta d). Clean and
hazy pictures together give t, hence d up to scale, which then serves any other photograph and any density.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from moevision.datasets.light import ImageArray, smooth_field
from moevision.datasets.paired import PairedFolder, PixelArray

_T_FLOOR = 0.02


def guided_filter(guide_HW: ImageArray, source_HW: ImageArray, radius_px: int, epsilon: float) -> ImageArray:
    """Edge-preserving smoothing of `source_HW` along the edges of `guide_HW` (He, Sun and Tang 2010)."""
    size = (2 * radius_px + 1, 2 * radius_px + 1)

    def mean(array_HW: ImageArray) -> ImageArray:
        return np.asarray(cv2.blur(array_HW, size, borderType=cv2.BORDER_REFLECT), dtype=np.float32)

    guide_mean_HW, source_mean_HW = mean(guide_HW), mean(source_HW)
    variance_HW = mean(guide_HW * guide_HW) - guide_mean_HW**2
    slope_HW = (mean(guide_HW * source_HW) - guide_mean_HW * source_mean_HW) / (variance_HW + np.float32(epsilon))
    return mean(slope_HW) * guide_HW + mean(source_mean_HW - slope_HW * guide_mean_HW)


def pseudo_depth(clean_HWC: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Invented depth, HW float32 >= 0 with its 95 % point at 1: ground plane, low-frequency relief, image edges.

    A guided filter lets the relief break where the picture's brightness does, as the depth of a real scene would.
    """
    height, width = clean_HWC.shape[:2]
    top, bottom = (1.0, float(rng.uniform(0.0, 0.7))) if rng.random() < 0.75 else tuple(rng.uniform(0.2, 1.0, 2))
    slope_HW = np.linspace(top, bottom, height, dtype=np.float32)[:, None]
    relief_HW = smooth_field(rng, height, width, int(rng.integers(2, 6))) * np.float32(rng.uniform(0.2, 1.2))
    grey_HW = np.ascontiguousarray(clean_HWC.mean(axis=2), dtype=np.float32)
    depth_HW = (slope_HW + relief_HW).astype(np.float32)
    if rng.random() < 0.6:  # outdoors the bright part is mostly sky, the farthest thing there is
        depth_HW = depth_HW + np.float32(rng.uniform(0.0, 0.9)) * grey_HW * slope_HW
    radius = max(2, min(height, width) // int(rng.integers(6, 16)))
    depth_HW = np.maximum(guided_filter(grey_HW, depth_HW, radius, float(rng.choice([1e-3, 1e-2]))), 0.0)
    return depth_HW / max(float(np.quantile(depth_HW, 0.95)), 1e-3)


def estimate_airlight(clean_HWC: ImageArray, hazy_HWC: ImageArray) -> ImageArray:
    """Airlight colour, C float32, of one hazy picture (HWC float32 in [0, 1]) whose clean version is known.

    In a small window t is one number: the regression of hazy on clean has slope t and intercept A (1 - t).
    """

    def mean(product_HWC: ImageArray) -> ImageArray:  # neighbouring windows say the same: one in 16 is enough
        return np.asarray(cv2.blur(product_HWC, (15, 15))[2::4, 2::4], dtype=np.float32)

    clean_mean, hazy_mean = mean(clean_HWC), mean(hazy_HWC)
    variance_HW = (mean(clean_HWC * clean_HWC) - clean_mean**2).sum(axis=2)
    covariance_HW = (mean(clean_HWC * hazy_HWC) - clean_mean * hazy_mean).sum(axis=2)
    t_HW = covariance_HW / np.maximum(variance_HW, 1e-6)
    trusted_HW = (variance_HW > np.quantile(variance_HW, 0.6)) & (t_HW > 0.02) & (t_HW < 0.9)
    if trusted_HW.sum() < 50:
        return np.full(3, max(0.7, float(np.quantile(hazy_HWC, 0.999))), np.float32)
    t_N1 = t_HW[trusted_HW][:, None]
    airlight_C = np.median((hazy_mean[trusted_HW] - t_N1 * clean_mean[trusted_HW]) / (1.0 - t_N1), axis=0)
    return np.clip(airlight_C, 0.3, 1.05).astype(np.float32)


def _channel_sum(array_HWC: ImageArray) -> ImageArray:
    """Sum over three channels, HWC -> HW; several times faster than `sum(axis=2)` on so short an axis."""
    return array_HWC[..., 0] + array_HWC[..., 1] + array_HWC[..., 2]


def optical_depth(clean_HWC: ImageArray, hazy_HWC: ImageArray, airlight_C: ImageArray) -> tuple[ImageArray, ImageArray]:
    """(-log t, trust), both HW float32: t by least squares over the channels; trust is (A - J)^2, noise's inverse."""
    clean_gap_HWC, hazy_gap_HWC = airlight_C - clean_HWC, airlight_C - hazy_HWC
    trust_HW = _channel_sum(clean_gap_HWC**2)
    t_HW = _channel_sum(clean_gap_HWC * hazy_gap_HWC) / np.maximum(trust_HW, 1e-4)
    return -np.log(np.clip(t_HW, _T_FLOOR, 1.0)), trust_HW


@dataclass(frozen=True)
class SceneDepth:
    """Depth of one scene (HW, 95 % point = 1), and per haze level the density and airlight that go with it."""

    depth: ImageArray
    beta: dict[int, float]
    airlight: dict[int, ImageArray]

    def hazy(self, clean_HWC: ImageArray, level: int) -> ImageArray:
        """The level made again from the clean picture: how good the estimate is."""
        t_HW1 = np.exp(-np.float32(self.beta[level]) * self.depth)[..., None]
        return np.clip(clean_HWC * t_HW1 + self.airlight[level] * (1.0 - t_HW1), 0.0, 1.0)


def fit_scene(clean_HWC: ImageArray, hazy_by_level: dict[int, ImageArray]) -> SceneDepth:
    """Depth, densities and airlights of one scene seen at several haze levels (all HWC float32 in [0, 1])."""
    airlights, depths, trusts, betas = {}, [], [], {}
    for level, hazy_HWC in sorted(hazy_by_level.items()):
        airlights[level] = estimate_airlight(clean_HWC, hazy_HWC)
        thickness_HW, trust_HW = optical_depth(clean_HWC, hazy_HWC, airlights[level])
        solid_HW = trust_HW > max(0.05, float(np.quantile(trust_HW[::4, ::4], 0.3)))
        solid_HW = solid_HW if solid_HW.any() else np.ones_like(solid_HW)
        betas[level] = max(float(np.quantile(thickness_HW[solid_HW][::7], 0.95)), 1e-3)
        depths.append(thickness_HW / np.float32(betas[level]))
        trusts.append(trust_HW)
    depth_HW = _clean_up(np.median(np.stack(depths), axis=0).astype(np.float32), np.median(np.stack(trusts), axis=0))
    scale = max(float(np.quantile(depth_HW, 0.95)), 1e-3)
    return SceneDepth(depth_HW / np.float32(scale), {k: v * scale for k, v in betas.items()}, airlights)


def _fill(values_HW: ImageArray, weight_HW: ImageArray) -> ImageArray:
    """Replace values of little weight (in [0, 1]) by the weighted mean around them, from as far as it takes."""
    height, width = values_HW.shape
    if min(height, width) < 4:
        return values_HW
    half = ((width + 1) // 2, (height + 1) // 2)
    weight_half_HW = cv2.resize(weight_HW, half, interpolation=cv2.INTER_AREA)
    sum_half_HW = cv2.resize(values_HW * weight_HW, half, interpolation=cv2.INTER_AREA)
    values_half_HW = np.asarray(sum_half_HW / np.maximum(weight_half_HW, 1e-6), dtype=np.float32)
    # The mean of a cell that holds some trusted pixels is trusted in full, so holes shrink level by level.
    coarse_HW = _fill(values_half_HW, np.asarray(np.minimum(weight_half_HW * 2.0, 1.0), dtype=np.float32))
    around_HW = cv2.resize(coarse_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(values_HW * weight_HW + around_HW * (1.0 - weight_HW), dtype=np.float32)


def _clean_up(depth_HW: ImageArray, trust_HW: ImageArray) -> ImageArray:
    """Fill what white objects hide (there J = A, every t fits) from around, then take out noise, keep edges."""
    weight_HW = np.clip(trust_HW.astype(np.float32) / np.float32(0.12), 0.0, 1.0) ** 2
    median_HW = np.asarray(cv2.medianBlur(_fill(depth_HW, weight_HW), 5), dtype=np.float32)
    return np.maximum(guided_filter(median_HW, median_HW, 3, 1e-3), 0.0).astype(np.float32)


def estimate_depth(clean_HWC: ImageArray, hazy_by_level: dict[int, ImageArray]) -> ImageArray:
    """Depth up to scale, HW float32 >= 0 with its 95 % point at 1; pictures HWC float32 in [0, 1]."""
    return fit_scene(clean_HWC, hazy_by_level).depth


def _unit(pixels_HWC: PixelArray) -> ImageArray:
    """uint8 -> float32 in [0, 1]."""
    return pixels_HWC.astype(np.float32) * np.float32(1 / 255)


class DepthBank:
    """Depth maps of all scenes of a folder `input/SCENE_LEVEL.*`, `gt/SCENE.*`, ready to be cut to any size."""

    def __init__(self, root: Path | str) -> None:
        self.scenes: dict[str, SceneDepth]
        self._fit(PairedFolder(root))

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[PixelArray, PixelArray, str]]) -> DepthBank:
        """From pictures already read: (hazy HWC uint8, clean HWC uint8, "SCENE_LEVEL")."""
        bank = cls.__new__(cls)
        bank._fit(pairs)
        return bank

    def _fit(self, pairs: Iterable[tuple[PixelArray, PixelArray, str]]) -> None:
        """Sort the pairs by scene, then fit each; names without a level are left out."""
        levels: dict[str, dict[int, PixelArray]] = {}
        clean: dict[str, PixelArray] = {}
        for hazy_HWC, clean_HWC, name in pairs:
            scene, _, level = name.rpartition("_")
            if scene and level.isdigit():
                levels.setdefault(scene, {})[int(level)] = hazy_HWC
                clean.setdefault(scene, clean_HWC)
        self.scenes = {
            scene: fit_scene(_unit(clean[scene]), {level: _unit(hazy) for level, hazy in levels[scene].items()})
            for scene in sorted(levels)
        }

    def __len__(self) -> int:
        return len(self.scenes)

    def sample(self, rng: np.random.Generator, height: int, width: int, scale: float) -> ImageArray:
        """Random cut of a scene, `height` x `width` float32, showing `scale` (0 to 1] of it; flipped half the time."""
        depth_HW = list(self.scenes.values())[int(rng.integers(len(self.scenes)))].depth
        rows, columns = depth_HW.shape
        # One factor for both sides keeps the aspect; the larger ask decides how much of the scene fits.
        factor = min(max(scale, 0.02), 1.0) * min(rows / height, columns / width)
        cut_rows, cut_columns = max(1, round(height * factor)), max(1, round(width * factor))
        top, left = int(rng.integers(rows - cut_rows + 1)), int(rng.integers(columns - cut_columns + 1))
        cut_HW = depth_HW[top : top + cut_rows, left : left + cut_columns]
        if rng.random() < 0.5:
            cut_HW = cut_HW[:, ::-1]
        resized_HW = cv2.resize(np.ascontiguousarray(cut_HW), (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized_HW, dtype=np.float32)
