"""Mode x depth x format: what goes into a file comes out of it."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from moevision.errors import InputError
from moevision.imaging.picture import picture_from_array
from moevision.imaging.read import FORMATS, decode_picture, read_picture
from moevision.imaging.write import encode_picture, write_picture

DEPTHS = {"PNG": (np.uint8, np.uint16), "TIFF": (np.uint8, np.uint16, np.float32), "BMP": (np.uint8,)}
LOSSLESS = [
    (name, dtype, channels)
    for name, dtypes in DEPTHS.items()
    for dtype, channels in itertools.product(dtypes, (1, 2, 3, 4))
    if not (name == "BMP" and channels in (2, 4))
]
REFUSED = [
    (name, dtype, channels)
    for name in FORMATS
    for dtype, channels in itertools.product((np.uint8, np.uint16, np.float32), (1, 2, 3, 4))
    if dtype not in DEPTHS.get(name, (np.uint8,)) or (name in ("JPEG", "BMP") and channels in (2, 4))
]


def equal(one, other) -> bool:
    same_alpha = (one.alpha_HW is None) == (other.alpha_HW is None)
    if same_alpha and one.alpha_HW is not None:
        same_alpha = one.alpha_HW.dtype == other.alpha_HW.dtype and np.array_equal(one.alpha_HW, other.alpha_HW)
    same_depth = one.pixels_HWC.dtype == other.pixels_HWC.dtype
    return same_alpha and same_depth and np.array_equal(one.pixels_HWC, other.pixels_HWC)


@pytest.mark.parametrize(("name", "dtype", "channels"), LOSSLESS)
def test_lossless_formats_keep_pixels_depth_channels_and_alpha(name, dtype, channels, make_picture, tmp_path):
    picture = make_picture(channels=channels, dtype=dtype)
    path = tmp_path / f"out{FORMATS[name][0]}"
    write_picture(picture, path)
    again = read_picture(path)
    assert again.format == name
    assert equal(again, picture)


@pytest.mark.parametrize(("name", "dtype", "channels"), LOSSLESS)
def test_lossless_formats_keep_exif_icc_and_resolution(name, dtype, channels, make_picture):
    picture = make_picture(channels=channels, dtype=dtype)
    kept = decode_picture(encode_picture(picture, name)).metadata
    assert kept.dpi == pytest.approx((300, 150), abs=0.1)
    if name == "BMP":
        return  # the format has no place for the rest
    assert kept.icc == picture.metadata.icc
    block = Image.Exif()
    block.load(kept.exif)
    assert block[0x010F] == "Maker"
    assert block.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
    assert block.get_ifd(0x8769)[0x927C] == b"maker note"
    assert block.get_ifd(0x8825)[2] == (50.0, 30.0, 15.5)


@pytest.mark.parametrize(("name", "dtype", "channels"), REFUSED)
def test_a_format_that_cannot_hold_the_picture_is_refused_with_the_remedy(
    name, dtype, channels, make_picture, tmp_path
):
    path = tmp_path / f"out{FORMATS[name][0]}"
    with pytest.raises(InputError, match=r"choose (png|tiff)"):
        write_picture(make_picture(channels=channels, dtype=dtype), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_written_with_full_chroma_and_stays_close(channels, make_picture):
    picture = make_picture(64, 48, channels)
    smooth = picture_from_array(np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None, :, None], 64, 0))
    data = encode_picture(smooth, "JPEG")
    assert np.abs(decode_picture(data).pixels_HWC.astype(int) - smooth.pixels_HWC).max() <= 2
    with Image.open(io.BytesIO(encode_picture(picture, "JPEG"))) as image:
        assert image.mode == ("RGB" if channels == 3 else "L")
        assert all(layer[1:3] == (1, 1) for layer in image.layer)
        assert image.info["icc_profile"] == picture.metadata.icc
        assert image.info["exif"] == picture.metadata.exif
        assert image.info["dpi"] == (300, 150)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_webp_at_quality_100_is_exact_and_keeps_alpha_and_metadata(channels, make_picture):
    picture = make_picture(channels=channels)
    again = decode_picture(encode_picture(picture, "WEBP", quality=100))
    # WebP has no grey: it comes back as three equal channels.
    assert np.array_equal(again.pixels_HWC, np.broadcast_to(picture.pixels_HWC, again.pixels_HWC.shape))
    assert (again.alpha_HW is None) == (picture.alpha_HW is None)
    if picture.alpha_HW is not None:
        assert np.array_equal(again.alpha_HW, picture.alpha_HW)
    assert again.metadata.icc == picture.metadata.icc
    assert again.metadata.exif == picture.metadata.exif


def test_lossy_webp_keeps_alpha_exactly(make_picture):
    picture = make_picture(channels=4)
    assert np.array_equal(decode_picture(encode_picture(picture, "WEBP")).alpha_HW, picture.alpha_HW)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    height=st.integers(1, 257),
    width=st.integers(1, 257),
    case=st.sampled_from(LOSSLESS),
)
def test_any_size_survives_every_lossless_format(height, width, case):
    name, dtype, channels = case
    generator = np.random.default_rng(height * 1000 + width)
    samples = (
        generator.random((height, width, channels)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)
    ).astype(dtype)
    picture = picture_from_array(samples)
    assert equal(decode_picture(encode_picture(picture, name)), picture)


def test_a_tall_16_bit_tiff_of_many_strips_is_exact(noise):
    picture = picture_from_array(noise(900, 700, 3, np.uint16))
    assert equal(decode_picture(encode_picture(picture, "TIFF")), picture)


def test_pillow_reads_our_deep_files_at_least_in_8_bits(make_picture):
    for name, channels in itertools.product(("PNG", "TIFF"), (1, 3, 4)):
        picture = make_picture(channels=channels, dtype=np.uint16)
        with Image.open(io.BytesIO(encode_picture(picture, name))) as image:
            image.load()
            if channels > 1:
                assert np.abs(np.array(image)[:, :, :3].astype(int) - (picture.pixels_HWC >> 8)).max() <= 1


def test_stripping_removes_exif_and_resolution_but_not_the_colour_profile(make_picture):
    for name, dtype in (("PNG", np.uint8), ("PNG", np.uint16), ("JPEG", np.uint8), ("TIFF", np.uint8)):
        picture = make_picture(dtype=dtype)
        kept = decode_picture(encode_picture(picture, name, strip_metadata=True)).metadata
        assert kept.exif is None
        assert kept.dpi is None
        assert kept.icc == picture.metadata.icc
