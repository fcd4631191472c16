"""Depth: recovered from hazed pictures whose depth is known; invented depth; the bank."""

import numpy as np
import pytest

from moevision.datasets import depth
from moevision.datasets.paired import PairedFolder
from moevision.errors import UsageError

from .conftest import make_photo


def scene(airlight=0.95, betas=(0.5, 1.0, 1.6), noise=0.004):
    """(clean, {level: hazy}, depth with its 95 % point at 1): a slope with a near box in front."""
    clean = make_photo(3, 120, 160) * np.float32(0.75)
    true_HW = np.tile(np.linspace(1.1, 0.4, 120, dtype=np.float32)[:, None], (1, 160))
    true_HW[50:110, 40:100] = 0.3
    true_HW /= np.quantile(true_HW, 0.95)
    rng, hazy = np.random.default_rng(4), {}
    for level, beta in enumerate(betas):
        t = np.exp(-beta * true_HW)[..., None]
        image = clean * t + airlight * (1 - t) + noise * rng.standard_normal(clean.shape)
        hazy[level] = np.clip(image, 0, 1).astype(np.float32)
    return clean, hazy, true_HW


def test_known_depth_is_recovered_up_to_scale():
    clean, hazy, true_HW = scene()
    found_HW = depth.estimate_depth(clean, hazy)
    assert found_HW.dtype == np.float32
    assert found_HW.shape == true_HW.shape
    assert found_HW.min() >= 0
    assert np.median(np.abs(found_HW - true_HW)) < 0.02
    assert np.corrcoef(found_HW.ravel(), true_HW.ravel())[0, 1] > 0.98


def test_known_density_and_airlight_are_recovered():
    clean, hazy, _ = scene()
    fit = depth.fit_scene(clean, hazy)
    for level, beta in enumerate((0.5, 1.0, 1.6)):
        assert fit.beta[level] == pytest.approx(beta, rel=0.06)
        np.testing.assert_allclose(fit.airlight[level], 0.95, atol=0.02)


def test_the_fit_makes_the_hazy_pictures_again():
    clean, hazy, _ = scene()
    fit = depth.fit_scene(clean, hazy)
    for level, image in hazy.items():
        assert -10 * np.log10(np.mean((fit.hazy(clean, level) - image) ** 2)) > 33


def test_texture_of_the_photograph_does_not_leak_into_depth():
    clean, hazy, true_HW = scene()
    error_HW = depth.estimate_depth(clean, hazy) - true_HW
    inner = np.s_[4:46, 4:-4]  # the slope above the box
    slope = np.polyfit(clean.mean(axis=2)[inner].ravel(), error_HW[inner].ravel(), 1)[0]
    assert abs(slope) < 0.02  # black to white would change the depth by less than 2 % of its range


def test_white_objects_get_the_depth_around_them():
    clean, _, true_HW = scene()
    clean = clean.copy()
    clean[10:50, 104:154] = 0.95  # exactly the airlight: any depth explains it
    t = np.exp(-true_HW)[..., None]
    hazy = (clean * t + 0.95 * (1 - t)).astype(np.float32)
    found_HW = depth.estimate_depth(clean, {1: hazy})
    assert np.abs(found_HW - true_HW)[10:50, 104:154].max() < 0.25


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (97, 65)])
def test_invented_depth_is_normalised_for_any_size(shape):
    clean = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    for seed in range(10):
        found_HW = depth.pseudo_depth(clean, np.random.default_rng(seed))
        assert found_HW.shape == shape
        assert found_HW.dtype == np.float32
        assert found_HW.min() >= 0
        assert np.quantile(found_HW, 0.95) == pytest.approx(1, abs=1e-3)


def test_guided_filter_keeps_a_constant_and_an_edge_of_the_guide():
    guide = np.repeat(np.array([0.0, 1.0], np.float32), 20)[None].repeat(30, 0)
    np.testing.assert_allclose(depth.guided_filter(guide, np.full_like(guide, 0.4), 4, 1e-3), 0.4, atol=1e-5)
    filtered = depth.guided_filter(guide, guide * 0.5, 4, 1e-4)
    assert filtered[:, 19].max() < 0.05
    assert filtered[:, 20].min() > 0.45


def test_bank_cuts_any_size_and_repeats_with_the_seed(made_root):
    bank = depth.DepthBank(made_root / "weather" / "sots_indoor_haze_train")
    assert len(bank) == 2
    for height, width, scale in ((16, 16, 1.0), (40, 70, 0.3), (200, 33, 0.5), (1, 1, 0.1)):
        first = bank.sample(np.random.default_rng(1), height, width, scale)
        assert first.shape == (height, width)
        assert first.dtype == np.float32
        assert first.min() >= 0
        np.testing.assert_array_equal(first, bank.sample(np.random.default_rng(1), height, width, scale))


def test_bank_without_folder_says_so(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        depth.DepthBank(tmp_path / "nothing")


def test_real_reside_levels_are_made_again_above_38_db(real_root):
    pairs = PairedFolder(real_root / "weather" / "sots_indoor_haze_train")
    few = [pairs[i] for i in range(10)]
    bank = depth.DepthBank.of_pairs(few)
    for hazy, clean, name in few:
        scene_name, level = name.rsplit("_", 1)
        again = bank.scenes[scene_name].hazy(clean.astype(np.float32) / 255, int(level))
        assert -10 * np.log10(np.mean((again - hazy / 255.0) ** 2)) > 38
