"""by_rows: bands of rows give what the whole map gives."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moevision.backbone.rows import by_rows

SIZES = st.integers(1, 23)


def _blur(x):
    return F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(0, 2), st.booleans(), st.integers(1, 4096))
@example(2, 1, 0, True, 1)  # a part of one pixel, whose layout cannot be told
@torch.inference_mode()
def test_bands_give_what_the_whole_gives_for_any_size_halo_and_band(height, width, halo, channels_last, band_bytes):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.rand(2, 3, height, width).contiguous(memory_format=layout)

    def function(x):
        for _ in range(halo):
            x = _blur(x)
        return torch.cat([x, 2 * x], 1)

    banded = by_rows(function, [x], halo=halo, band_bytes=band_bytes)
    torch.testing.assert_close(banded, function(x))
    assert banded.is_contiguous(memory_format=layout)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(0, 1), st.integers(0, 1), st.integers(1, 4096))
@torch.inference_mode()
def test_maps_of_several_strides_stay_together_also_where_the_finest_lacks_rows(rows, width, missing, halo, band_bytes):
    coarse, fine = torch.rand(1, 2, rows, width), torch.rand(1, 2, 2 * rows - missing, 2 * width)

    def function(fine, coarse):
        coarse = _blur(coarse) if halo else coarse
        return fine + F.interpolate(coarse, scale_factor=2)[:, :, : fine.shape[2]]

    banded = by_rows(function, [fine, coarse], halo=halo, strides=[2, 1], band_bytes=band_bytes)
    torch.testing.assert_close(banded, function(fine, coarse))


def test_the_result_may_take_the_place_of_a_map():
    x = torch.rand(1, 2, 31, 9)
    expected = 3 * x
    with torch.inference_mode():
        assert by_rows(lambda x: 3 * x, [x], out=x, band_bytes=100) is x
    torch.testing.assert_close(x, expected)


def test_with_gradients_the_whole_map_goes_through_at_once():
    x = torch.rand(1, 2, 31, 9, requires_grad=True)
    heights = []

    def function(x):
        heights.append(x.shape[2])
        return x.square()

    by_rows(function, [x], halo=1, out=x.detach(), band_bytes=100).sum().backward()
    assert heights == [31]
    torch.testing.assert_close(x.grad, 2 * x.detach())
    with torch.no_grad():
        by_rows(function, [x], halo=1, band_bytes=100)
    assert len(heights) > 3
