"""Pictures made smaller: sizes, depths, and what stays as it is."""

import numpy as np
import pytest

from moevision.imaging.scaling import shrink


def test_pictures_are_never_enlarged_and_0_keeps_any():
    for longer_px in (0, 30, 64):
        pixels = np.zeros((20, 30, 3), np.uint8)
        assert shrink(pixels, longer_px) is pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size_hw", "small_hw"), [((40, 60), (20, 30)), ((3, 300), (1, 30)), ((70_000, 2), (30, 1))])
def test_the_longer_side_is_what_was_asked_for_at_any_depth_and_no_side_vanishes(size_hw, small_hw, channels, dtype):
    small = shrink(np.full((*size_hw, channels), 1, dtype), 30)
    assert small.shape == (*small_hw, channels)
    assert small.dtype == dtype
    assert small == pytest.approx(np.ones_like(small), abs=1e-4)


def test_a_pixel_is_the_mean_of_what_it_stands_for():
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    assert shrink(pixels, 2)[..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
