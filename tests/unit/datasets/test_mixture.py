"""The training stream: contract of a batch, what it may learn from, how it degrades with less data."""

import numpy as np
import pytest

from moevision.datasets.mixture import MixtureWeights, RestorationMixture, dev_sets, load_clean, synthetic_dev
from moevision.datasets.street import STREET_KINDS
from moevision.datasets.weather import MIXTURES, WEATHER
from moevision.errors import UsageError

from .conftest import make_photo, save

WEIGHTS = MixtureWeights()


@pytest.fixture(scope="module")
def mixture(made_root):
    return RestorationMixture(made_root)


def test_batch_has_the_promised_form(mixture):
    x, y, opacity, kinds = mixture.batch(np.random.default_rng(0), 24, 48)
    for array in (x, y):
        assert array.shape == (24, 3, 48, 48)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.min() >= 0
        assert array.max() <= 1
    assert opacity.shape == (24, 1, 48, 48)
    assert opacity.dtype == np.float32
    for kind, opacity_1HW in zip(kinds, opacity, strict=True):
        if kind == "pairs":
            assert np.isnan(opacity_1HW).all()
        elif "drops" in kind.split("+"):
            assert 0 < opacity_1HW.max() <= 1
        else:
            assert (opacity_1HW == 0).all()
    assert len(kinds) == 24
    assert set(kinds) <= {"clean", "pairs", *WEATHER, *("+".join(names) for names in MIXTURES)}


def test_batch_repeats_with_the_seed(mixture):
    first = mixture.batch(np.random.default_rng(3), 12, 32)
    second = mixture.batch(np.random.default_rng(3), 12, 32)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(first[2], second[2])
    assert first[3] == second[3]


def test_stored_pictures_stay_untouched(mixture):
    before = [image.copy() for image in mixture.clean]
    mixture.batch(np.random.default_rng(1), 30, 32)
    for image, copy in zip(mixture.clean, before, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_all_sources_turn_up_in_their_shares(mixture):
    *_, kinds = mixture.batch(np.random.default_rng(0), 400, 16)
    share = {kind: kinds.count(kind) / 400 for kind in set(kinds)}
    total = sum(vars(WEIGHTS).values())
    assert share["haze"] == pytest.approx((WEIGHTS.haze_pairs + WEIGHTS.haze) / total, abs=0.07)
    assert share["rain"] == pytest.approx(WEIGHTS.rain / total, abs=0.06)
    assert share["pairs"] == pytest.approx(WEIGHTS.user_pairs / total, abs=0.06)
    assert {"drops", "snow", "clean"} <= set(share)
    mixed = sum(part for kind, part in share.items() if "+" in kind)
    assert mixed == pytest.approx(WEIGHTS.mixture / total, abs=0.04)


def test_streets_have_every_weather_of_theirs_and_say_which(made_root):
    alone = MixtureWeights(**{name: float(name == "street") for name in vars(WEIGHTS)})
    x, y, opacity, kinds = RestorationMixture(made_root, alone).batch(np.random.default_rng(0), 40, 32)
    assert set(kinds) == set(STREET_KINDS)
    assert (np.abs(x - y).mean((1, 2, 3)) > 0.001).all()
    assert (opacity.any((1, 2, 3)) == [kind == "drops" for kind in kinds]).all()


def test_street_weather_falls_on_the_street_photographs_alone_and_other_weather_on_all(made_root, tmp_path):
    blue_C = np.array([0.1, 0.2, 0.9], np.float32)
    save(tmp_path / "streets" / "car.png", np.broadcast_to(blue_C, (60, 80, 3)))
    mixture = RestorationMixture(made_root, streets=tmp_path / "streets")
    rng = np.random.default_rng(0)

    def is_blue(source: str) -> bool:
        _, y_HWC = mixture.sample(rng, source, 16)
        return bool((y_HWC[..., 2] > y_HWC[..., 0] + 0.4).all())

    assert all(is_blue("street") for _ in range(20))
    assert 0 < sum(is_blue("drops") for _ in range(40)) < 40


def test_told_distances_stay_with_what_the_street_photographs_show(made_root, tmp_path, monkeypatch):
    # White at the left and far off, black at the right and near: in crops of any place, size and side.
    left_HWC = np.zeros((60, 80, 3), np.float32)
    left_HWC[:, :37] = 1
    save(tmp_path / "streets" / "car.png", left_HWC)
    seen = []

    def kept(clean_HWC, kind, rng, *, distance_m_HW, opacity_HW):
        seen.append((clean_HWC, distance_m_HW))
        return clean_HWC

    monkeypatch.setattr("moevision.datasets.mixture.add_street_weather", kept)
    mixture = RestorationMixture(
        made_root,
        streets=tmp_path / "streets",
        distance=lambda street_HWC: np.where(street_HWC[..., 0] > 127, 5000, 10).astype(np.float32),
    )
    for seed in range(40):
        mixture.sample(np.random.default_rng(seed), "street haze", int(seed % 3 + 1) * 16)
    for clean_HWC, distance_m_HW in seen:
        assert distance_m_HW.min() > 0
        white_HW, black_HW = clean_HWC[..., 0] > 0.98, clean_HWC[..., 0] < 0.02
        assert (distance_m_HW[white_HW] > 100).all()
        np.testing.assert_allclose(distance_m_HW[black_HW], 10, rtol=0.1)
    assert sum(bool((clean_HWC[..., 0] > 0.9).any()) for clean_HWC, _ in seen) > 10


@pytest.mark.parametrize("told_HW", [np.ones((80, 60)), np.zeros((60, 80)), np.full((60, 80), np.nan)])
def test_distances_that_cannot_be_are_refused(made_root, tmp_path, told_HW):
    save(tmp_path / "streets" / "car.png", np.zeros((60, 80, 3), np.float32))
    with pytest.raises(ValueError, match="above 0"):
        RestorationMixture(made_root, streets=tmp_path / "streets", distance=lambda street_HWC: told_HW)


def test_a_folder_without_street_photographs_is_one_line_with_the_path(made_root, tmp_path):
    (tmp_path / "streets").mkdir()
    with pytest.raises(UsageError, match="streets") as caught:
        RestorationMixture(made_root, streets=tmp_path / "streets")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crop_px", [8, 95, 200])
def test_crops_larger_than_the_photographs_are_made_by_resizing(mixture, crop_px):
    x, *_ = mixture.batch(np.random.default_rng(0), 10, crop_px)
    assert x.shape == (10, 3, crop_px, crop_px)
    assert np.isfinite(x).all()


def test_clean_samples_are_mostly_equal_on_both_sides(mixture):
    rng = np.random.default_rng(0)
    equal = [np.array_equal(*mixture.sample(rng, "clean", 24)) for _ in range(60)]
    assert 0.75 < np.mean(equal) < 1.0


def test_pairs_stay_aligned(made_root):
    """Input and truth of a recorded pair get the same crop and flip: haze of a slope keeps the order of pixels."""
    mixture = RestorationMixture(made_root, MixtureWeights(haze_pairs=1, haze=0, rain=0, drops=0, snow=0, mixture=0))
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = mixture.sample(rng, "haze_pairs", 40)
        assert (
            np.corrcoef((x - x.mean(axis=1, keepdims=True)).ravel(), (y - y.mean(axis=1, keepdims=True)).ravel())[0, 1]
            > 0.8
        )


@pytest.mark.parametrize("count", [3, 8, 25])
def test_every_batch_holds_each_weather_in_its_share_as_far_as_it_has_room(mixture, count):
    rng = np.random.default_rng(0)
    batches = [mixture.batch(rng, count, 16)[-1] for _ in range(60)]
    for kind in ("rain", "drops", "snow"):
        counts = np.array([kinds.count(kind) for kinds in batches])
        assert (np.abs(counts - mixture.shares[kind] * count) < 1).all()
        assert counts.mean() == pytest.approx(mixture.shares[kind] * count, abs=0.2)


def test_dev_and_test_and_real_folders_are_never_trained_on(tmp_path):
    for name in ("mine", "mine/kodak12_dev", "set_test", "real_rain", "x_dev/deeper"):
        save(tmp_path / "clean" / name / "p.png", make_photo(1, 16, 16))
    assert len(load_clean(tmp_path)) == 1


def test_big_photographs_are_stored_smaller(tmp_path):
    save(tmp_path / "clean" / "big.png", make_photo(1, 100, 300))
    assert load_clean(tmp_path, longest_px=150)[0].shape == (50, 150, 3)


def test_a_folder_with_photographs_alone_is_enough(tmp_path):
    save(tmp_path / "clean" / "p.png", make_photo(1, 40, 40))
    mixture = RestorationMixture(tmp_path)
    without_pairs = sum(vars(WEIGHTS).values()) - WEIGHTS.user_pairs
    assert mixture.shares["haze"] == pytest.approx((WEIGHTS.haze_pairs + WEIGHTS.haze) / without_pairs)
    x, *_, kinds = mixture.batch(np.random.default_rng(0), 16, 24)
    assert x.shape == (16, 3, 24, 24)
    assert "pairs" not in kinds


@pytest.mark.parametrize("made", [False, True])
def test_no_photographs_is_one_line_with_the_path(tmp_path, made):
    if made:
        (tmp_path / "clean").mkdir()
    with pytest.raises(UsageError, match="clean") as caught:
        RestorationMixture(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rain", [-0.1, float("nan")])
def test_impossible_weights_are_refused(made_root, rain):
    with pytest.raises(UsageError, match="weights"):
        RestorationMixture(made_root, MixtureWeights(rain=rain))


def test_synthetic_dev_set_repeats_and_keeps_the_truth(made_root):
    first, second = synthetic_dev(made_root, "rain"), synthetic_dev(made_root, "rain")
    assert [name for _, _, name in first] == ["k"]
    np.testing.assert_array_equal(first[0][0], second[0][0])
    assert first[0][0].dtype == first[0][1].dtype == np.uint8
    assert not np.array_equal(first[0][0], first[0][1])
    assert not np.array_equal(first[0][0], synthetic_dev(made_root, "rain", seed=1)[0][0])


def test_unknown_kind_of_dev_set_is_refused(made_root):
    with pytest.raises(UsageError, match="hail"):
        synthetic_dev(made_root, "hail")


def test_dev_sets_missing_here_are_left_out(made_root):
    assert dev_sets(made_root) == {}


def test_real_dev_sets_are_complete(real_root):
    sets = dev_sets(real_root)
    assert {name: len(pairs) for name, pairs in sets.items()} == {
        "sots_indoor_haze_dev": 14,
        "rainstreak_sirr10_dev": 10,
        "raindrop_2pairs_dev": 2,
    }
