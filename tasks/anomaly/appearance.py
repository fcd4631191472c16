"""What things look like: features of a small frozen ImageNet encoder, and how far they are from those of normal scenes.

MemoryOut looks at frames through a frozen vision-language encoder of 0.3 G parameters. Here it is the first three
stages of EfficientNet-Lite0 (54 k parameters, Apache-2.0): what tells a bicycle from a pedestrian is texture and shape
of a few pixels, and deeper stages tell no more at this size. Normal is a Gaussian of the features of moving boxes
(PaDiM, Defard et al. 2021, has one at every place; things here move about, so one serves all).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone.inverted import LITE0, STEM, InvertedResidual, SameConv
from moevision.backbone.rows import BAND_BYTES, by_rows
from moevision.errors import InputError

LOOK_PX = 540  # longer side of what the encoder sees, so that a person of 30 px in a frame of 360 has details
STRIDE, CHANNELS = 8, 40
REACH = 6  # places to each side that one depends on, smoothing included
MOVING_LEVELS = 4.0  # grey levels of difference from which on a box moves; only those are looked at
_SMOOTH = 3  # features averaged to each side: about one box of the working size
_SHRINKAGE = 1e-3  # of the mean variance, added to all: directions in which nothing varied must not decide
_LEAST_BOXES = 200
_STAGES = 3  # of EfficientNet-Lite0, up to stride 8
_BAND_BLOCKS, _BAND_STRIDE, _BAND_HALO = 3, 4, 3  # blocks, their stride, rows they see beyond their own, at that stride
_BAND_WIDER = 16  # bytes on the way to one byte of the picture


class AppearanceEncoder(nn.Module):
    """Grey frames to features at stride 8; its normalisation layers are folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(1, STEM, 3, 2)  # of three equal channels, their weights added up
        channels = STEM
        blocks = []
        for stage in LITE0[:_STAGES]:
            for number in range(stage.blocks):
                stride = 1 if number else stage.stride
                blocks.append(
                    InvertedResidual(channels, stage.channels, stage.expansion, stage.kernel, stride, normed=False)
                )
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1], H and W multiples of 8 -> (B, CHANNELS, H / 8, W / 8)."""
        batch, _, height, width = x_B1HW.shape
        # The first steps are wide and short of arithmetic: in bands of rows they stay in the cache.
        rows = x_B1HW.new_empty(batch, 0, height // _BAND_STRIDE, width // _BAND_STRIDE)
        x = by_rows(
            lambda _, part: self._first(part), [rows, x_B1HW], halo=_BAND_HALO, strides=[1, _BAND_STRIDE],
            band_bytes=BAND_BYTES // _BAND_WIDER,
        )  # fmt: skip
        for block in self.blocks[_BAND_BLOCKS:]:
            x = block(x)
        return x

    def _first(self, x_B1HW: Tensor) -> Tensor:
        """The part that is done in bands: (B, 1, H, W) -> (B, C, H / 4, W / 4)."""
        x = F.relu6(self.stem((127.5 * x_B1HW + 0.5) / 128).contiguous(memory_format=torch.channels_last))
        for block in self.blocks[:_BAND_BLOCKS]:
            x = block(x)
        return x


def look_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which the encoder sees a frame of that size: longer side about LOOK_PX, multiples of 8."""
    scale = LOOK_PX / max(size_hw)
    return max(1, round(size_hw[0] * scale / STRIDE)) * STRIDE, max(1, round(size_hw[1] * scale / STRIDE)) * STRIDE


def looked_at(grey_HW: NDArray[np.uint8]) -> Tensor:
    """A grey frame as the encoder takes it: (1, 1, H, W) float32 in [-1, 1] at its size."""
    size_hw = look_size(grey_HW.shape)
    how = cv2.INTER_AREA if size_hw[0] < grey_HW.shape[0] else cv2.INTER_CUBIC
    seen_HW = cv2.resize(grey_HW, size_hw[::-1], interpolation=how)
    return torch.from_numpy(seen_HW.astype(np.float32))[None, None] / 127.5 - 1


def smoothed(features_1CHW: Tensor) -> NDArray[np.float32]:
    """Features averaged over 3 x 3 places, about one box of the working size: (H, W, C)."""
    smooth_CHW = F.avg_pool2d(features_1CHW.float(), _SMOOTH, 1, _SMOOTH // 2, count_include_pad=False)[0]
    return smooth_CHW.permute(1, 2, 0).contiguous().cpu().numpy()


def nearest(from_n: int, to_n: int) -> NDArray[np.int64]:
    """Of `to_n` places evenly along a side, for the centre of each the index of the nearest of `from_n` such places."""
    return np.minimum((np.arange(to_n) + 0.5) * from_n / to_n, from_n - 1).astype(np.int64)


class NormalAppearance(NamedTuple):
    """A Gaussian of normal features: mean (C,), inverse covariance (C, C)."""

    mean_C: NDArray[np.float64]
    precision_CC: NDArray[np.float64]

    def distance(self, features_C: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared Mahalanobis distance over C, of any leading shape; C for a normal box in the mean."""
        away_C = features_C - self.mean_C
        return np.asarray(np.einsum("...c,cd,...d->...", away_C, self.precision_CC, away_C), np.float32)


@dataclass
class FeatureSums:
    """Count, sum and sum of outer products of features: all that a Gaussian needs, and blocks can be taken out."""

    count: int
    sum_C: NDArray[np.float64]
    outer_CC: NDArray[np.float64]

    @staticmethod
    def none(channels: int = CHANNELS) -> FeatureSums:
        """Of no features."""
        return FeatureSums(0, np.zeros(channels), np.zeros((channels, channels)))

    @staticmethod
    def of(features_NC: NDArray[np.float32]) -> FeatureSums:
        """Of N feature vectors."""
        x_NC = features_NC.astype(np.float64)
        return FeatureSums(len(x_NC), x_NC.sum(0), x_NC.T @ x_NC)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(self.count + other.count, self.sum_C + other.sum_C, self.outer_CC + other.outer_CC)

    def __sub__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(self.count - other.count, self.sum_C - other.sum_C, self.outer_CC - other.outer_CC)

    def normal(self) -> NormalAppearance:
        """The Gaussian. Raises InputError where too little moved."""
        if self.count < _LEAST_BOXES:
            raise InputError(f"only {self.count} places moved in the normal footage; more of it is needed")
        mean_C = self.sum_C / self.count
        covariance_CC = self.outer_CC / self.count - np.outer(mean_C, mean_C)
        ridge = max(_SHRINKAGE * float(np.trace(covariance_CC)) / len(mean_C), 1e-9)
        precision_CC = np.linalg.inv(covariance_CC + ridge * np.eye(len(mean_C)))
        return NormalAppearance(mean_C, np.asarray(precision_CC, np.float64))
