"""Weather seen from a moving car: distance grows along the street, streaks fan out, only light of the sky is added."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.datasets.streaks import StreakLayer
from moevision.datasets.street import STREET_KINDS, add_street_weather, fan_field, street_depth

from .conftest import make_photo


def photo(seed: int, height: int, width: int) -> np.ndarray:
    return make_photo(seed, height, width).astype(np.float32) / 255


@pytest.mark.parametrize("kind", STREET_KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size_keeps_shape_range_and_layout_and_leaves_the_input(kind, seed, height, width):
    clean_HWC = photo(0, height, width)
    before = clean_HWC.copy()
    bad_HWC = add_street_weather(clean_HWC, kind, np.random.default_rng(seed))
    assert bad_HWC.shape == clean_HWC.shape
    assert bad_HWC.dtype == np.float32
    assert bad_HWC.flags.c_contiguous
    assert 0 <= bad_HWC.min() <= bad_HWC.max() <= 1
    np.testing.assert_array_equal(clean_HWC, before)


@pytest.mark.parametrize("kind", STREET_KINDS)
def test_the_seed_decides_and_more_strength_means_more_damage(kind):
    clean_HWC = photo(1, 96, 128)
    first, again, other = (add_street_weather(clean_HWC, kind, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    damage = [
        np.mean(
            [
                np.abs(add_street_weather(clean_HWC, kind, np.random.default_rng(seed), strength=s) - clean_HWC).mean()
                for seed in range(20)
            ]
        )
        for s in (0.0, 0.5, 1.0)
    ]
    assert damage == sorted(damage)
    assert damage[2] > 1.5 * damage[0]


def test_where_distance_is_known_mist_hides_what_is_far_and_leaves_what_is_near():
    clean_HWC = photo(2, 40, 60)
    distance_m_HW = np.full((40, 60), 0.01, np.float32)
    distance_m_HW[:20] = 5000
    for seed in range(10):
        bad_HWC = add_street_weather(
            clean_HWC, "haze", np.random.default_rng(seed), strength=0.5, distance_m_HW=distance_m_HW
        )
        # Mist may hang in banks, but at five kilometres all of it is the sky's one light.
        assert np.ptp(bad_HWC[:20], axis=(0, 1)).max() < 0.01
        np.testing.assert_allclose(bad_HWC[20:], clean_HWC[20:], atol=0.02)


def test_the_ground_comes_nearer_towards_the_bottom_and_nothing_is_beyond_the_far_end():
    flat_HWC = np.full((120, 160, 3), 0.5, np.float32)
    for seed in range(20):
        depth_HW = street_depth(flat_HWC, np.random.default_rng(seed))
        assert depth_HW.min() >= 0
        assert depth_HW.max() <= 1
        assert depth_HW[-1].mean() < 0.5 * depth_HW.max()


def test_streaks_fan_out_and_grow_towards_the_edge():
    """Away from the point they come from: the gradient is across their direction, and marks get larger."""
    layer = StreakLayer(30.0, 2.0, 0.004, 0.0, 0.5)
    tilts = []
    for seed in range(6):
        field_HW = fan_field(np.random.default_rng(seed), 200, 200, layer)
        left, right = field_HW[:, :60], field_HW[:, -60:]
        for part in (left, right):
            dx, dy = cv2.Sobel(part, cv2.CV_32F, 1, 0), cv2.Sobel(part, cv2.CV_32F, 0, 1)
            tensor = np.array([[(dx * dx).sum(), (dx * dy).sum()], [(dx * dy).sum(), (dy * dy).sum()]])
            along = np.linalg.eigh(tensor)[1][:, 0]
            tilts.append(np.degrees(np.arctan2(along[0], along[1])) % 180)
    spread = [min(abs(a - b), 180 - abs(a - b)) for a, b in zip(tilts[::2], tilts[1::2], strict=True)]
    assert np.median(spread) > 10  # parallel streaks: 0


def test_drops_of_a_windscreen_say_what_they_hide_and_mist_hides_nothing():
    clean_HWC = photo(2, 80, 80)
    opacity_HW = np.zeros((80, 80), np.float32)
    bad_HWC = add_street_weather(clean_HWC, "drops", np.random.default_rng(0), strength=0.3, opacity_HW=opacity_HW)
    changed_HW = np.abs(bad_HWC - clean_HWC).max(2) > 0.2
    assert changed_HW.any()
    assert opacity_HW[changed_HW].min() > 0.05
    nothing_HW = np.zeros((80, 80), np.float32)
    add_street_weather(clean_HWC, "haze", np.random.default_rng(0), opacity_HW=nothing_HW)
    assert not nothing_HW.any()
