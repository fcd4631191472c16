"""Aligned infrared and visible pairs: folders `ir/` and `vis/`, matched by file stem, and training crops of them.

The visible image's luma is what is fused. Crops are darkened at random, so that a network trained on daylight pairs
meets night: exposure, gamma and the noise that comes with little light.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.datasets.paired import PixelArray, list_images, read_image
from moevision.errors import InputError, UsageError

DARKENED = 0.35  # share of crops
_DARKEST_EXPOSURE = 0.1


class Pair(NamedTuple):
    """One pair; both (H, W, 3) uint8 RGB, infrared with three equal channels if its file is grey."""

    infrared_HWC: PixelArray
    visible_HWC: PixelArray
    name: str


class PairFolder:
    """Pairs of `root/ir` and `root/vis`; `orphans` lists the files of either folder that have no partner."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        for part in ("ir", "vis"):
            if not (self.root / part).is_dir():
                raise UsageError(f"{self.root / part}: no such folder; pairs need {self.root}/ir and {self.root}/vis")
        infrared, visible = ({path.stem: path for path in list_images(self.root / part)} for part in ("ir", "vis"))
        self.pairs = [(infrared[stem], visible[stem]) for stem in sorted(infrared.keys() & visible.keys())]
        self.orphans = [(infrared.get(s) or visible[s]) for s in sorted(infrared.keys() ^ visible.keys())]
        if not self.pairs:
            raise UsageError(f"{self.root}: no pair found; files of ir/ and vis/ must have equal stems")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """Raises InputError if a file cannot be read or the two differ in size."""
        infrared_path, visible_path = self.pairs[index]
        infrared_HWC, visible_HWC = read_image(infrared_path), read_image(visible_path)
        if infrared_HWC.shape != visible_HWC.shape:
            sizes = " against ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (infrared_HWC, visible_HWC))
            raise InputError(f"{infrared_path}: {sizes} in {visible_path}; a pair to learn from must have one size")
        return Pair(infrared_HWC, visible_HWC, infrared_path.stem)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))


class PairCrops:
    """Random crops of pairs held in memory as grey uint8; a batch is a function of its generator alone."""

    def __init__(self, pairs: Iterator[Pair] | list[Pair]) -> None:
        self.images = [(_grey(pair.visible_HWC), _grey(pair.infrared_HWC)) for pair in pairs]

    def batch(self, rng: np.random.Generator, size: int, crop_px: int) -> NDArray[np.float32]:
        """(B, 2, crop, crop) float32 in [0, 1]: visible and infrared."""
        return np.stack([self._crop(rng, crop_px) for _ in range(size)])

    def _crop(self, rng: np.random.Generator, crop_px: int) -> NDArray[np.float32]:
        visible_HW, infrared_HW = self.images[rng.integers(len(self.images))]
        short = min(visible_HW.shape)
        # Some crops are shrunk, so that objects come in more sizes than the few scenes have.
        side = int(min(short, crop_px * rng.choice([1.0, 1.0, 1.5, 2.0])))
        y, x = (int(rng.integers(length - side + 1)) for length in visible_HW.shape)
        pair = [image[y : y + side, x : x + side] for image in (visible_HW, infrared_HW)]
        if side != crop_px:
            how = cv2.INTER_AREA if side > crop_px else cv2.INTER_CUBIC
            pair = [np.asarray(cv2.resize(i, (crop_px, crop_px), interpolation=how), np.uint8) for i in pair]
        crops_2HW = np.stack(pair).astype(np.float32) / np.float32(255)
        if rng.random() < 0.5:
            crops_2HW = np.ascontiguousarray(crops_2HW[:, :, ::-1])
        if rng.random() < DARKENED:
            crops_2HW[0] = darken(crops_2HW[0], rng)
        return np.asarray(crops_2HW, np.float32)


def _grey(image_HWC: PixelArray) -> PixelArray:
    return np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), np.uint8)


def darken(image_HW: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The image as at night, in [0, 1]: less light, less of it in the shadows than in the lights, more noise.

    Exposure 0.1 to 0.9; gamma 1 to 3.5, which keeps lamps and what they light bright, as a camera's night pictures do.
    """
    exposure = float(np.exp(rng.uniform(np.log(_DARKEST_EXPOSURE), np.log(0.9))))
    gamma = rng.uniform(1.0, 3.5)
    noise = rng.uniform(0.001, 0.008) * (1 - exposure)
    dark_HW = exposure * image_HW**gamma
    dark_HW = dark_HW + noise * rng.standard_normal(image_HW.shape, dtype=np.float32)
    return np.asarray(np.clip(dark_HW, 0, 1), dtype=np.float32)
