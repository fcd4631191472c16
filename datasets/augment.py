"""What cameras do to a picture, at random: light, colour, blur, noise, JPEG. The only user of albumentations."""

from __future__ import annotations

import os
import random
from functools import cache
from typing import Any

import numpy as np

from moevision.datasets.paired import PixelArray
from moevision.errors import MissingExtraError


def photometric(image_HWC: PixelArray, rng: np.random.Generator) -> PixelArray:
    """The picture (uint8 RGB) as another camera might have taken it, most often only slightly so: a new array.

    Pixels stay where they are, so labels stay true. The result depends on the picture and the generator alone.

    Raises:
        MissingExtraError: albumentations is not installed.
    """
    pipeline = photometric_pipeline()
    # Not `set_random_seed`: it seeds every transform alike, and those of equal chance would then come together or not
    # at all.
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    return np.array(pipeline(image=image_HWC)["image"], np.uint8, order="C")


@cache
def photometric_pipeline() -> Any:
    """The albumentations Compose behind `photometric`, one per process. Raises MissingExtraError."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer release
    try:
        import albumentations as A  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError('augmentation needs albumentations: pip install "moevision[train]"') from None
    return A.Compose(
        [
            A.OneOf([A.GaussianBlur(0, (0.4, 1.5)), A.MotionBlur((3, 5))], p=0.15),
            A.ColorJitter((0.7, 1.3), (0.75, 1.25), (0.7, 1.3), (-0.03, 0.03), p=0.6),
            A.RandomGamma((65, 150), p=0.3),
            A.GaussNoise((0.01, 0.05), p=0.1),
            A.ImageCompression("jpeg", (40, 95), p=0.15),
        ]
    )
