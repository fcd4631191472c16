"""Tiling: cover everything once, blend without seams, stay within memory, change nothing by itself."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.errors import InputError, UsageError
from moevision.imaging.picture import Picture, picture_from_array
from moevision.imaging.tiling import map_picture, map_tiles, plan_tiles, raised_cosine


def identity(tile, _):
    return tile


def blur3(tile, _):
    """3x3 mean with replicated borders: needs one pixel of context."""
    padded = np.pad(tile, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = tile.shape[:2]
    shifted = [padded[y : y + height, x : x + width] for y, x in itertools.product(range(3), range(3))]
    return np.mean(shifted, axis=0, dtype=np.float32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 200), st.data())
def test_plan_covers_every_pixel_with_equal_tiles_and_the_asked_overlap(height, width, tile_px, data):
    overlap_px = data.draw(st.integers(0, tile_px - 1))
    if (height // (tile_px - overlap_px)) * (width // (tile_px - overlap_px)) > 20_000:
        return
    rows = plan_tiles(height, width, tile_px, overlap_px)
    for spans, length in (
        ([(row[0].y0, row[0].y1) for row in rows], height),
        ([(tile.x0, tile.x1) for tile in rows[0]], width),
    ):
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert {stop - start for start, stop in spans} == {min(tile_px, length)}
        for (start, stop), (following, _) in itertools.pairwise(spans):
            assert start < following <= stop - overlap_px


def test_tile_zero_or_a_small_picture_is_one_tile():
    for tile_px in (0, 40, 64):
        assert [[(t.y0, t.y1, t.x0, t.x1) for t in row] for row in plan_tiles(40, 30, tile_px, 8)] == [[(0, 40, 0, 30)]]


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(-1, 0), (64, -1), (64, 64), (64, 100)])
def test_impossible_tiles_are_a_usage_error(tile_px, overlap_px):
    with pytest.raises(UsageError, match="overlap"):
        plan_tiles(100, 100, tile_px, overlap_px)


def test_window_is_positive_symmetric_and_flat_in_the_middle():
    window = raised_cosine(20, 6)
    assert window.min() > 0
    assert np.allclose(window, window[::-1])
    assert window[6:14].tolist() == [1.0] * 8
    assert np.allclose(window[:6] + window[:6][::-1], 1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.sampled_from([1, 2, 3, 4]), st.data())
def test_identity_returns_the_very_same_pixels(height, width, tile_px, channels, data):
    overlap_px = data.draw(st.integers(0, max(0, min(tile_px - 1, tile_px // 2 + 2))))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    generator = np.random.default_rng(height * 100 + width)
    samples = generator.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
    picture = picture_from_array(samples)
    result = map_picture(picture, identity, tile_px=tile_px, overlap_px=overlap_px)
    assert result.pixels_HWC.dtype == dtype
    assert np.array_equal(result.pixels_HWC, picture.pixels_HWC)
    assert result.alpha_HW is picture.alpha_HW


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (7, 513), (513, 7), (1030, 600)])
@pytest.mark.parametrize(("tile_px", "overlap_px"), [(0, 0), (512, 64), (128, 48), (100, 90)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_identity_is_exact_at_awkward_sizes(height, width, tile_px, overlap_px, dtype, noise):
    picture = picture_from_array(noise(height, width, 3, dtype))
    result = map_picture(picture, identity, tile_px=tile_px, overlap_px=overlap_px)
    assert np.array_equal(result.pixels_HWC, picture.pixels_HWC)


def test_identity_on_floats_is_exact_to_rounding(noise):
    picture = picture_from_array(noise(150, 170, 3, np.float32))
    result = map_picture(picture, identity, tile_px=64, overlap_px=20)
    assert np.abs(result.pixels_HWC - picture.pixels_HWC).max() < 1e-6


def test_rows_are_handed_out_top_to_bottom_exactly_once(noise):
    seen = []
    map_tiles(noise(150, 90, 3), identity, tile_px=64, overlap_px=40, out=lambda y0, rows: seen.append((y0, len(rows))))
    assert seen[0][0] == 0
    assert all(y0 + count == following for (y0, count), (following, _) in itertools.pairwise(seen))
    assert sum(count for _, count in seen) == 150


def test_local_filter_in_tiles_equals_the_filter_on_the_whole(noise):
    picture = picture_from_array(noise(200, 230, 3, np.uint16))
    whole = map_picture(picture, blur3, tile_px=0, overlap_px=0).pixels_HWC.astype(int)
    tiled = map_picture(picture, blur3, tile_px=96, overlap_px=32).pixels_HWC.astype(int)
    # The outermost pixel of a tile lacks its context; the window gives it almost no weight.
    assert np.abs(whole - tiled).max() <= 65535 * 0.005


def test_a_brightness_step_between_tiles_becomes_a_ramp_not_a_seam():
    levels = itertools.cycle([0.25, 0.75])

    def constant(tile, _):
        return np.full_like(tile, next(levels))

    picture = picture_from_array(np.zeros((64, 112, 3), np.float32))
    row = map_picture(picture, constant, tile_px=64, overlap_px=16).pixels_HWC[30, :, 0]
    assert row[0] == pytest.approx(0.25)
    assert row[-1] == pytest.approx(0.75)
    assert np.abs(np.diff(row)).max() < 0.06


@pytest.mark.parametrize("channels", [1, 2])
def test_grey_stays_grey_and_the_function_sees_three_equal_channels(channels, noise):
    def check(tile, _):
        assert tile.shape[2] == 3
        assert tile.dtype == np.float32
        assert np.array_equal(tile[:, :, 0], tile[:, :, 2])
        return 1 - tile

    picture = picture_from_array(noise(70, 50, channels))
    result = map_picture(picture, check, tile_px=32, overlap_px=8)
    visible = np.ones((70, 50), bool) if picture.alpha_HW is None else picture.alpha_HW > 0
    assert np.array_equal(result.pixels_HWC[visible], 255 - picture.pixels_HWC[visible])


def test_source_is_never_changed_even_by_a_function_that_writes_into_its_tile(noise):
    samples = noise(50, 60, 4, np.float32)
    before = samples.copy()

    def destructive(tile, _):
        tile[:] = 0
        return tile

    map_picture(picture_from_array(samples), destructive, tile_px=32, overlap_px=8)
    assert np.array_equal(samples, before)


def test_colour_under_transparent_pixels_does_not_bleed_and_comes_back():
    pixels = np.full((40, 40, 3), 200, np.uint8)
    alpha = np.full((40, 40), 255, np.uint8)
    pixels[:, 20:], alpha[:, 20:] = 3, 0  # dark junk under full transparency
    pixels[:5], alpha[:5] = 7, 0
    picture = Picture(pixels, alpha)
    result = map_picture(picture, blur3, tile_px=16, overlap_px=6)
    assert np.all(result.pixels_HWC[alpha > 0] == 200)
    assert np.array_equal(result.pixels_HWC[alpha == 0], pixels[alpha == 0])
    assert np.array_equal(result.alpha_HW, alpha)


def test_a_fully_transparent_picture_comes_back_unchanged(noise):
    picture = Picture(noise(20, 20, 3), np.zeros((20, 20), np.uint8))
    result = map_picture(picture, lambda tile, _: tile * 0.5, tile_px=16, overlap_px=4)
    assert np.array_equal(result.pixels_HWC, picture.pixels_HWC)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_one_tile_is_refused(bad, noise):
    def broken(tile, _):
        tile[0, 0, 0] = bad
        return tile

    with pytest.raises(InputError, match="fp32"):
        map_picture(picture_from_array(noise(50, 50, 3)), broken, tile_px=32, overlap_px=8)


def test_a_function_that_changes_the_shape_is_a_bug_not_an_input_error(noise):
    with pytest.raises(ValueError, match="returned shape"):
        map_picture(picture_from_array(noise(50, 50, 3)), lambda tile, _: tile[:-1], tile_px=32, overlap_px=8)


@pytest.mark.parametrize("channels", [3, 4])
def test_twelve_megapixels_need_less_than_100_mb_beside_source_and_result(channels):
    samples = np.zeros((3000, 4000, channels), np.uint8)
    samples[::7, :, -1] = 255
    picture = picture_from_array(samples)
    tracemalloc.start()
    result = map_picture(picture, identity, tile_px=512, overlap_px=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - result.pixels_HWC.nbytes < 100e6
