"""Photometric augmentation: repeatable, varied, never moving a pixel."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from moevision.datasets.augment import photometric, photometric_pipeline

from .conftest import make_photo

pytestmark = pytest.mark.skipif(find_spec("albumentations") is None, reason="needs albumentations")


@pytest.fixture(scope="module")
def image_HWC():
    return np.round(make_photo(0, 64, 80) * 255).astype(np.uint8)


def test_the_same_generator_gives_the_same_picture_and_the_source_is_left_alone(image_HWC):
    before = image_HWC.copy()
    for seed in range(20):
        first = photometric(image_HWC, np.random.default_rng(seed))
        photometric(image_HWC, np.random.default_rng(seed + 99))
        np.testing.assert_array_equal(photometric(image_HWC, np.random.default_rng(seed)), first)
        assert first.shape == image_HWC.shape
        assert first.dtype == np.uint8
        assert first.flags.c_contiguous
        assert not np.shares_memory(first, image_HWC)
    np.testing.assert_array_equal(image_HWC, before)


def test_global_random_state_is_neither_used_nor_changed(image_HWC):
    import random

    random.seed(1)
    np.random.seed(1)
    first = photometric(image_HWC, np.random.default_rng(0))
    drawn = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    assert (random.random(), np.random.random()) == drawn
    random.seed(2)
    np.random.seed(2)
    np.testing.assert_array_equal(photometric(image_HWC, np.random.default_rng(0)), first)


def test_transforms_are_drawn_one_by_one(image_HWC):
    """Not all together or not at all, as they would be if each had the same seed."""
    parts = photometric_pipeline().transforms
    from albumentations import OneOf

    chances = [part.p for part in parts]
    applied = []
    for seed in range(400):
        photometric(image_HWC, np.random.default_rng(seed))
        # `params` is filled where a transform was applied; a choice of several holds them one level below.
        leaves = [part.transforms if isinstance(part, OneOf) else [part] for part in parts]
        applied.append([any(bool(leaf.params) for leaf in group) for group in leaves])
        for group in leaves:
            for leaf in group:
                leaf.params = {}
    applied = np.array(applied, float)
    np.testing.assert_allclose(applied.mean(0), chances, atol=0.08)
    assert np.abs(np.corrcoef(applied.T) - np.eye(len(parts))).max() < 0.2


def test_a_picture_changes_moderately_and_keeps_its_edges_in_place(image_HWC):
    grey = image_HWC.mean(2)
    results = [photometric(image_HWC, np.random.default_rng(seed)) for seed in range(60)]
    likeness = [np.corrcoef(grey.ravel(), result.mean(2).ravel())[0, 1] for result in results]
    change = [np.abs(result.astype(float) - image_HWC).mean() for result in results]
    assert min(likeness) > 0.85
    assert max(change) < 80
    assert len({result.tobytes() for result in results}) > 40


def test_importing_the_data_sets_does_not_import_albumentations():
    code = "import sys, moevision.datasets.segmentation; print('albumentations' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
