"""Reading: orientation, colour modes, depth, and one clear line for everything that is wrong."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from moevision.errors import InputError
from moevision.imaging.picture import picture_from_array
from moevision.imaging.read import ReadLimits, decode_picture, picture_from_pil, read_picture
from moevision.imaging.write import encode_picture

TRANSPOSED = {  # how the upright picture has to be turned to be stored with each orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def exif_with_orientation(value: int) -> bytes:
    block = Image.Exif()
    block[0x010F] = "Maker"
    block[0x0112] = value
    return block.tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff_file(samples_HWC: np.ndarray, tags: dict, separate: bool = False, order: str = "<") -> bytes:
    """An uncompressed TIFF with the given extra tags."""
    height, width, channels = samples_HWC.shape
    planes = [samples_HWC[:, :, c] for c in range(channels)] if separate else [samples_HWC]
    strips = [np.ascontiguousarray(plane).astype(samples_HWC.dtype.newbyteorder(order)).tobytes() for plane in planes]
    header = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=header)
    offsets = np.cumsum([0, *map(len, strips)])[:-1]
    values = {
        256: width,
        257: height,
        258: (samples_HWC.itemsize * 8,) * channels,
        259: 1,
        262: 2 if channels >= 3 else 1,
        273: tuple(int(offset) for offset in offsets),
        277: channels,
        278: height,
        279: tuple(map(len, strips)),
        284: 2 if separate else 1,
        339: (3 if samples_HWC.dtype.kind == "f" else 1,) * channels,
    } | tags
    for tag, value in values.items():
        directory[tag] = value
    return header + directory.tobytes(8) + b"".join(strips)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("case", ["jpeg", "png", "webp", "png16", "tiff", "tiff16", "tiff_float"])
def test_every_orientation_comes_out_upright_and_is_reset(orientation, case, noise, encode):
    dtype = {"png16": np.uint16, "tiff16": np.uint16, "tiff_float": np.float32}.get(case, np.uint8)
    upright = noise(6, 9, 3, dtype)
    stored = np.ascontiguousarray(TRANSPOSED[orientation](upright))
    exif = exif_with_orientation(orientation)
    if case in ("tiff16", "tiff_float"):
        data = tiff_file(stored, {274: orientation, 271: "Maker"})
    elif case == "png16":
        plain = encode_picture(picture_from_array(stored), "PNG")
        data = plain[:33] + png_chunk(b"eXIf", exif[6:]) + plain[33:]
    else:
        options = {"lossless": True} if case == "webp" else {}
        data = encode(Image.fromarray(stored), case.upper(), exif=exif, **options)
    picture = decode_picture(data)
    assert picture.pixels_HWC.shape == upright.shape
    if case != "jpeg":
        assert np.array_equal(picture.pixels_HWC, upright)
    block = Image.Exif()
    block.load(picture.metadata.exif)
    assert block.get(0x0112, 1) == 1
    assert block[0x010F] == "Maker"


def test_orientation_of_a_jpeg_puts_the_bright_side_on_top(encode):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # left half; "rotate 90 clockwise" brings it to the top
    picture = decode_picture(encode(Image.fromarray(stored), "JPEG", exif=exif_with_orientation(6)))
    assert picture.pixels_HWC.shape == (32, 16, 3)
    assert picture.pixels_HWC[:14].min() > 250
    assert picture.pixels_HWC[18:].max() < 5


def test_palette_becomes_rgb_and_its_transparency_alpha(encode):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture = decode_picture(encode(image, "PNG", transparency=1))
    assert picture.pixels_HWC[0, 0].tolist() == [10, 20, 30]
    assert picture.pixels_HWC[1, 0].tolist() == [70, 80, 90]
    assert picture.alpha_HW.tolist() == [[255, 0], [255, 0]]


def test_one_bit_becomes_grey_bytes(encode):
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    for name in ("PNG", "TIFF", "BMP"):
        picture = decode_picture(encode(image, name))
        assert picture.pixels_HWC[:, :, 0].tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_key_colour_becomes_alpha(mode, encode):
    image = Image.new(mode, (2, 1), 7 if mode == "L" else (7, 8, 9))
    image.putpixel((1, 0), 200 if mode == "L" else (200, 1, 2))
    picture = decode_picture(encode(image, "PNG", transparency=7 if mode == "L" else (7, 8, 9)))
    assert picture.alpha_HW.tolist() == [[0, 255]]
    assert picture.pixels_HWC.shape[2] == (1 if mode == "L" else 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_transparent_key_colour_becomes_alpha(channels, noise):
    samples = noise(4, 5, channels, np.uint16)
    plain = encode_picture(picture_from_array(samples), "PNG")
    key = struct.pack(f">{channels}H", *samples[0, 0].tolist())
    picture = decode_picture(plain[:33] + png_chunk(b"tRNS", key) + plain[33:])
    assert picture.alpha_HW[0, 0] == 0
    assert (picture.alpha_HW == 65535).sum() == 19
    assert np.array_equal(picture.pixels_HWC, samples)


def test_cmyk_jpeg_becomes_srgb_without_the_cmyk_profile(encode, icc):
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    for options in ({}, {"icc_profile": icc}, {"icc_profile": b"x" * 200}):  # none, an RGB one, rubbish
        picture = decode_picture(encode(image, "JPEG", quality=95, **options))
        assert picture.pixels_HWC.shape == (16, 16, 3)
        assert np.abs(picture.pixels_HWC[8, 8].astype(int) - (200, 100, 50)).max() <= 4
        assert picture.metadata.icc is None
    tiff = decode_picture(encode(image, "TIFF"))
    assert tiff.pixels_HWC[0, 0].tolist() == [200, 100, 50]


def test_cmyk_with_a_usable_profile_goes_through_it(encode, monkeypatch):
    used = []

    def convert(image, source, target, outputMode):
        used.append(outputMode)
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda source: source)
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    picture = decode_picture(encode(Image.new("CMYK", (4, 4)), "JPEG", icc_profile=b"p" * 200))
    assert used == ["RGB"]
    assert picture.pixels_HWC[0, 0].tolist() == [1, 2, 3]


def test_a_profile_other_than_srgb_passes_through_with_unchanged_values(noise, encode):
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[-1] ^= 1
    samples = noise(5, 5, 3)
    picture = decode_picture(encode(Image.fromarray(samples), "PNG", icc_profile=bytes(profile)))
    assert np.array_equal(picture.pixels_HWC, samples)
    assert picture.metadata.icc == bytes(profile)


def test_white_is_zero_tiff_is_inverted(noise):
    samples = noise(4, 5, 1, np.uint16)
    assert np.array_equal(decode_picture(tiff_file(samples, {262: 0})).pixels_HWC, 65535 - samples)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("separate", [False, True])
def test_tiff_of_every_byte_order_and_plane_layout_is_exact(dtype, order, channels, separate, noise):
    samples = noise(4, 5, channels, dtype)
    tags = {338: 2} if channels in (2, 4) else {}
    if separate and dtype == np.uint8 and channels == 2:
        return  # Pillow has no such layout
    picture = decode_picture(tiff_file(samples, tags, separate, order))
    colour = 1 if channels <= 2 else 3
    assert np.array_equal(picture.pixels_HWC, samples[:, :, :colour])
    if channels != colour:
        assert np.array_equal(picture.alpha_HW, samples[:, :, colour])


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint16), (".tiff", np.uint16), (".tiff", np.float32)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("compression", [1, 5, 8, 32946])  # none, LZW, deflate, old deflate
def test_deep_files_of_another_program_are_exact(suffix, dtype, channels, compression, noise):
    samples = noise(150, 70, channels, dtype)
    blue_first = samples[:, :, [2, 1, 0, 3][:channels]] if channels > 1 else samples
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if suffix == ".tiff" else []
    done, data = cv2.imencode(suffix, blue_first, options)
    assert done
    picture = decode_picture(data.tobytes())
    assert picture.pixels_HWC.dtype == dtype
    assert np.array_equal(picture.pixels_HWC, samples[:, :, :3])
    assert picture.alpha_HW is None or np.array_equal(picture.alpha_HW, samples[:, :, 3])


def test_premultiplied_16_bit_alpha_is_divided_out():
    samples = np.array([[[1000, 2000, 3000, 32768], [0, 0, 0, 0]]], np.uint16)
    picture = decode_picture(tiff_file(samples, {338: 1}))
    assert picture.pixels_HWC[0].tolist() == [[2000, 4000, 6000], [0, 0, 0]]
    assert picture.alpha_HW.tolist() == [[32768, 0]]


def test_float_tiff_keeps_values_beyond_white():
    samples = np.array([[[0.0, 0.5, 7.25]]], np.float32)
    assert decode_picture(tiff_file(samples, {})).pixels_HWC.tolist() == samples.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_nan_and_infinity_in_a_float_tiff_are_refused(bad, channels):
    samples = np.full((3, 3, channels), 0.5, np.float32)
    samples[1, 1, 0] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        decode_picture(tiff_file(samples, {}))


@pytest.mark.parametrize("dtype", [np.uint32, np.float64, np.int16])
def test_sample_types_without_exact_counterpart_are_refused(dtype):
    samples = np.ones((3, 3, 1), dtype)
    tags = {339: 2} if dtype == np.int16 else {}
    with pytest.raises(InputError, match="save it as"):
        decode_picture(tiff_file(samples, tags))


def test_16_bit_cmyk_tiff_is_refused_not_misread():
    with pytest.raises(InputError, match="not supported"):
        decode_picture(tiff_file(np.ones((3, 3, 4), np.uint16), {262: 5}))


def test_camera_raw_in_a_tiff_coat_is_refused():
    with pytest.raises(InputError, match="camera raw"):
        decode_picture(tiff_file(np.ones((3, 3, 3), np.uint8), {50706: b"\x01\x04\x00\x00"}))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused_with_their_number(name, encode):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 9)) for k in range(3)]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="has 3 frames"):
        decode_picture(data)


def test_animated_gif_is_refused_by_name(encode):
    frames = [Image.new("L", (8, 8), 40 * k) for k in range(3)]
    with pytest.raises(InputError, match="GIF files are not supported"):
        decode_picture(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def test_a_preview_page_behind_the_picture_does_not_count(noise):
    picture = tiff_file(noise(6, 6, 3), {})
    order_at = picture.find(b"II*\x00") + 8
    (entries,) = struct.unpack_from("<H", picture, order_at)
    link_at = order_at + 2 + 12 * entries
    preview = struct.pack("<HHHIII", 1, 254, 4, 1, 1, 0)
    data = bytearray(picture + preview)
    struct.pack_into("<I", data, link_at, len(picture))
    assert decode_picture(bytes(data)).pixels_HWC.shape == (6, 6, 3)


def test_multi_picture_jpeg_gives_its_main_picture(encode):
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 250, 0))
    picture = decode_picture(encode(first, "MPO", save_all=True, append_images=[second]))
    assert picture.format == "JPEG"
    assert picture.pixels_HWC[4, 4, 0] > 240


def test_content_decides_the_format(tmp_path, noise, encode):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(Image.fromarray(noise(3, 4, 3)), "PNG"))
    assert read_picture(path).format == "PNG"


def write_bad(folder, name, noise, encode):
    """A path for each way a file can be wrong."""
    png = encode(Image.fromarray(noise(40, 40, 3)), "PNG")
    content = {
        "empty.png": b"",
        "text.png": b"this is no picture\n",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": encode(Image.fromarray(noise(40, 40, 3)), "JPEG")[:400],
        "cut16.tif": tiff_file(noise(20, 20, 3, np.uint16), {})[:-50],
        "header_only.png": png[:20],
        "big.heic": b"\x00\x00\x00\x18ftypheic" + bytes(50),
        "doc.pdf": b"%PDF-1.7 ...",
    }
    path = folder / name
    if name in content:
        path.write_bytes(content[name])
    elif name == "folder.png":
        path.mkdir()
    elif name == "pipe.png":
        os.mkfifo(path)
    return path


BAD = ["missing.png", "empty.png", "text.png", "cut.png", "cut.jpg", "cut16.tif", "header_only.png", "big.heic"]


@pytest.mark.parametrize("name", [*BAD, "doc.pdf", "folder.png", "pipe.png", "nul\0.png"])
def test_every_bad_file_is_one_line_with_path_and_remedy(name, tmp_path, noise, encode):
    path = write_bad(tmp_path, name, noise, encode)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert ";" in text  # "what; remedy"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_input_error(tmp_path, noise, encode):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(noise(4, 4, 3)), "PNG"))
    path.chmod(0)
    with pytest.raises(InputError, match="permissions"):
        read_picture(path)


def test_limits_are_respected_and_can_be_raised(tmp_path, noise, encode):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(noise(20, 30, 3)), "PNG"))
    with pytest.raises(InputError, match="over the limit of 599"):
        read_picture(path, ReadLimits(max_pixels=599))
    with pytest.raises(InputError, match="raise the limit"):
        read_picture(path, ReadLimits(max_bytes=100))
    assert read_picture(path, ReadLimits(max_pixels=600)).pixels_HWC.shape == (20, 30, 3)


def test_reading_leaves_the_file_unchanged(tmp_path, noise, encode):
    path = tmp_path / "a.tif"
    path.write_bytes(encode(Image.fromarray(noise(20, 30, 3)), "TIFF", compression="tiff_lzw"))
    before = path.read_bytes(), path.stat().st_mtime_ns
    read_picture(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV", "LAB", "I"])
def test_pil_images_of_every_mode_are_taken_or_refused_clearly(mode):
    image = Image.new(mode, (3, 2))
    if mode in ("HSV", "LAB", "I"):
        with pytest.raises(InputError, match="not supported"):
            picture_from_pil(image)
        return
    picture = picture_from_pil(image)
    assert picture.pixels_HWC.shape == (2, 3, 1 if mode in ("1", "L", "LA", "I;16", "F") else 3)
    assert (picture.alpha_HW is not None) == mode.endswith("A")


def test_pil_image_is_turned_upright_like_a_file(encode):
    data = encode(Image.new("RGB", (40, 20)), "JPEG", exif=exif_with_orientation(6))
    with Image.open(io.BytesIO(data)) as image:
        assert picture_from_pil(image).pixels_HWC.shape == (40, 20, 3)
