"""Synthetic weather: what every kind must keep, and how strong it may be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.datasets import weather
from moevision.datasets.streaks import StreakLayer, rain_mask, streak_field
from moevision.errors import UsageError

DEGRADED = ("rain", "drops", "snow", "haze", "mixture")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.mean((a.astype(np.float64) - b) ** 2), 1e-12)))


def test_srgb_tables_agree_with_the_exact_curve():
    x = np.linspace(0, 1, 20001)
    exact = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    assert np.abs(weather.srgb_to_linear(x.astype(np.float32)) - exact).max() < 1e-4
    assert np.abs(weather.linear_to_srgb(exact.astype(np.float32)) - x).max() < 1e-3


def test_srgb_tables_clip_what_lies_outside():
    x = np.array([-0.5, 0.0, 1.0, 7.0], np.float32)
    np.testing.assert_allclose(weather.srgb_to_linear(x), [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(weather.linear_to_srgb(x), [0, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("kind", weather.KINDS)
def test_shape_range_type_and_layout_are_kept(photo_HWC, kind):
    for seed in range(8):
        result = weather.degrade(photo_HWC, kind, np.random.default_rng(seed))
        assert result.shape == photo_HWC.shape
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize("kind", weather.KINDS)
def test_same_seed_same_picture_and_input_untouched(photo_HWC, kind):
    before = photo_HWC.copy()
    first = weather.degrade(photo_HWC, kind, np.random.default_rng(5))
    second = weather.degrade(photo_HWC, kind, np.random.default_rng(5))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(photo_HWC, before)
    assert not np.shares_memory(first, photo_HWC)


@pytest.mark.parametrize("kind", DEGRADED)
def test_other_seed_other_picture(photo_HWC, kind):
    first = weather.degrade(photo_HWC, kind, np.random.default_rng(5))
    assert not np.array_equal(first, weather.degrade(photo_HWC, kind, np.random.default_rng(6)))


def test_a_mixture_is_one_of_the_joined_kinds_and_these_can_be_named(photo_HWC):
    rng = np.random.default_rng(3)
    parts = weather.draw_mixture(rng)
    assert tuple(parts.split("+")) in weather.MIXTURES
    named = weather.degrade(photo_HWC, parts, rng)
    np.testing.assert_array_equal(named, weather.degrade(photo_HWC, "mixture", np.random.default_rng(3)))


@pytest.mark.parametrize("kind", ["drops", "haze+drops", "mixture"])
def test_the_opacity_of_drops_tells_where_they_changed_the_picture(kind):
    grey = np.full((64, 80, 3), 0.02, np.float32)
    for seed in range(12):
        opacity_HW = np.zeros((64, 80), np.float32)
        drawn = "+".join(weather.MIXTURES[seed % len(weather.MIXTURES)]) if kind == "mixture" else kind
        result = weather.degrade(grey, drawn, np.random.default_rng(seed), strength=0.4, opacity_HW=opacity_HW)
        np.testing.assert_array_equal(result, weather.degrade(grey, drawn, np.random.default_rng(seed), strength=0.4))
        assert 0 <= opacity_HW.min() <= opacity_HW.max() <= 1
        assert (opacity_HW.max() > 0) == ("drops" in drawn)
        if drawn == "drops":
            change_HW = np.abs(result - grey).mean(2)
            assert np.corrcoef(change_HW.ravel(), opacity_HW.ravel())[0, 1] > 0.6


@pytest.mark.parametrize("kind", ["hail", "haze+hail", "haze+"])
def test_an_unknown_weather_alone_or_in_a_mixture_is_refused(photo_HWC, kind):
    with pytest.raises(UsageError, match="use"):
        weather.degrade(photo_HWC, kind, np.random.default_rng(0))


def test_clean_is_an_equal_copy(photo_HWC):
    np.testing.assert_array_equal(weather.degrade(photo_HWC, "clean", np.random.default_rng(0)), photo_HWC)


@pytest.mark.parametrize("kind", DEGRADED)
def test_median_damage_lies_in_the_band_of_the_published_sets(photo_HWC, kind):
    values = [psnr(weather.degrade(photo_HWC, kind, np.random.default_rng(seed)), photo_HWC) for seed in range(60)]
    low, high = {"rain": (17, 26), "drops": (20, 31), "snow": (17, 26), "haze": (9, 19), "mixture": (11, 22)}[kind]
    assert low < np.median(values) < high


@pytest.mark.parametrize("kind", sorted(weather.WEATHER))
def test_more_strength_means_more_damage(photo_HWC, kind):
    means = []
    for strength in (0.05, 0.5, 1.0):
        results = [
            weather.degrade(photo_HWC, kind, np.random.default_rng(seed), strength=strength) for seed in range(24)
        ]
        means.append(np.mean([psnr(result, photo_HWC) for result in results]))
    assert means[0] > means[1] + 1
    assert means[1] > means[2]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 41), width=st.integers(1, 41), kind=st.sampled_from(weather.KINDS), seed=st.integers(0, 99)
)
def test_any_size_down_to_one_pixel_works(height, width, kind, seed):
    clean = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    result = weather.degrade(clean, kind, np.random.default_rng(seed))
    assert result.shape == clean.shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("function", [weather.add_noise, weather.add_jpeg])
def test_noise_and_jpeg_stay_small_and_keep_the_contract(photo_HWC, function):
    before = photo_HWC.copy()
    for strength in (0.0, 1.0, None):
        result = function(photo_HWC, np.random.default_rng(3), strength=strength)
        assert result.shape == photo_HWC.shape
        assert result.dtype == np.float32
        assert 20 < psnr(result, photo_HWC) < 55
        assert result.min() >= 0
        assert result.max() <= 1
    np.testing.assert_array_equal(photo_HWC, before)


def test_haze_hides_the_far_side_more(photo_HWC):
    depth = np.tile(np.linspace(0, 1, photo_HWC.shape[1], dtype=np.float32), (photo_HWC.shape[0], 1))
    for seed in range(6):
        hazy = weather.add_haze(photo_HWC, np.random.default_rng(seed), depth_HW=depth, strength=0.6)
        np.testing.assert_allclose(hazy[:, 0], photo_HWC[:, 0], atol=2e-3)  # depth 0: no haze
        assert hazy[:, -20:].std() < 0.7 * photo_HWC[:, -20:].std()


def test_haze_takes_depth_of_another_size(photo_HWC):
    hazy = weather.add_haze(photo_HWC, np.random.default_rng(0), depth_HW=np.ones((7, 5), np.float32))
    assert hazy.shape == photo_HWC.shape


def test_rain_only_adds_light(photo_HWC):
    for seed in range(20):
        rainy = weather.add_rain(photo_HWC, np.random.default_rng(seed))
        assert (rainy - photo_HWC).min() > -0.02


def test_rain_is_thicker_in_some_parts_of_a_picture_as_in_sirr():
    spread = []
    for seed in range(60):
        mask = rain_mask(np.random.default_rng(seed), 320, 480, 0.6)
        blocks = mask.reshape(8, 40, 8, 60).mean(axis=(1, 3))
        spread.append(blocks.std() / max(blocks.mean(), 1e-6))
    assert 0.4 < np.median(spread) < 0.7


def test_streaks_run_along_their_angle():
    rng = np.random.default_rng(0)
    for angle in (0.0, 60.0):
        field = streak_field(rng, 200, 200, StreakLayer(40.0, 1.5, 1.0, angle))
        turn = np.deg2rad(angle)
        dx, dy = round(8 * np.sin(-turn)), round(8 * np.cos(turn))
        along = np.mean(field[20:-20, 20:-20] * np.roll(field, (-dy, -dx), (0, 1))[20:-20, 20:-20])
        across = np.mean(field[20:-20, 20:-20] * np.roll(field, (-dx, dy), (0, 1))[20:-20, 20:-20])
        assert along > 0.5 > 0.3 > abs(across)


def test_a_mask_brightens_and_keeps_the_contract(photo_HWC):
    mask = (np.random.default_rng(0).random((50, 60)) < 0.1).astype(np.float32)
    snowy = weather.add_mask(photo_HWC, np.random.default_rng(1), mask, strength=0.5)
    assert snowy.shape == photo_HWC.shape
    assert snowy.mean() > photo_HWC.mean()


def test_unknown_weather_names_the_choices(photo_HWC):
    with pytest.raises(UsageError, match="haze"):
        weather.degrade(photo_HWC, "hail", np.random.default_rng(0))
