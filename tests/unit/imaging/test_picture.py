"""Arrays in and out: shapes, ranges, rounding, refusal of NaN."""

import numpy as np
import pytest

from moevision.errors import InputError
from moevision.imaging.picture import Picture, from_float_rgb, picture_from_array, to_float_rgb


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2), (3, 4, 3), (3, 4, 4)])
def test_arrays_of_every_shape_and_depth_become_pictures(shape, dtype):
    picture = picture_from_array(np.ones(shape, dtype))
    channels = shape[2] if len(shape) == 3 else 1
    assert picture.pixels_HWC.shape == (3, 4, 1 if channels <= 2 else 3)
    assert (picture.alpha_HW is not None) == (channels in (2, 4))
    assert picture.pixels_HWC.dtype == dtype


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 4, 5), np.uint8),
        np.ones((3,), np.uint8),
        np.ones((0, 4, 3), np.uint8),
        np.ones((3, 4), np.float64),
        np.ones((3, 4), bool),
        np.full((3, 4), np.nan, np.float32),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InputError, match=";"):
        picture_from_array(array)


def test_a_picture_with_a_wrong_layout_cannot_be_built():
    with pytest.raises(ValueError, match="HxWx1 or HxWx3"):
        Picture(np.ones((3, 4), np.uint8))
    with pytest.raises(ValueError, match="does not fit"):
        Picture(np.ones((3, 4, 3), np.uint8), np.ones((3, 4), np.uint16))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_value_survives_the_trip_to_float_and_back(dtype, channels):
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(channels, axis=2)
    picture = picture_from_array(values)
    rgb = to_float_rgb(picture)
    assert rgb.dtype == np.float32
    assert rgb.shape[2] == 3
    assert rgb.min() == 0
    assert rgb.max() == 1
    assert np.array_equal(from_float_rgb(rgb, picture).pixels_HWC, values)


def test_results_are_rounded_clipped_and_averaged_to_grey():
    grey = picture_from_array(np.zeros((1, 3), np.uint8))
    rgb = np.array([[[0.5, 0.5, 0.5], [2, 2, 2], [0, 0.3, 0.6]]], np.float32)
    assert from_float_rgb(rgb, grey).pixels_HWC[0, :, 0].tolist() == [128, 255, 76]


def test_alpha_and_metadata_of_the_source_are_attached_again(make_picture):
    source = make_picture(channels=4)
    result = from_float_rgb(np.zeros((9, 14, 3), np.float32), source)
    assert result.alpha_HW is source.alpha_HW
    assert result.metadata is source.metadata


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nan_from_the_network_is_refused_not_painted_black(bad, dtype):
    source = picture_from_array(np.zeros((2, 2, 3), dtype))
    rgb = np.zeros((2, 2, 3), np.float32)
    rgb[0, 1, 2] = bad
    with pytest.raises(InputError, match="fp32"):
        from_float_rgb(rgb, source)


def test_hdr_values_are_clipped_and_it_is_said(caplog):
    picture = picture_from_array(np.array([[[-1.0, 0.5, 3.0]]], np.float32))
    assert to_float_rgb(picture).tolist() == [[[0.0, 0.5, 1.0]]]
    assert "clipped" in caplog.text
