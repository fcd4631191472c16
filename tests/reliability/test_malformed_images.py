"""Files made to hurt: bombs are refused in under a second, mutated files never raise anything but InputError."""

import io
import random
import resource
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from moevision.errors import InputError
from moevision.imaging.picture import picture_from_array
from moevision.imaging.read import decode_picture, read_picture
from moevision.imaging.write import encode_picture

MUTATIONS_PER_SEED = 60


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, image_data: bytes, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", image_data) + png_chunk(b"IEND", b"")


def saved(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def bombs() -> dict[str, bytes]:
    zeros = zlib.compressobj(9)
    flat = b"".join([*(zeros.compress(bytes(10_000_000)) for _ in range(40)), zeros.flush()])  # 400 MB -> 389 kB
    page = struct.pack("<HHHIIHHIII", 2, 256, 4, 1, 8, 257, 4, 1, 8, 0)
    pages = bytearray(b"II*\x00\x08\x00\x00\x00")
    for k in range(10_000):
        pages += page[:-4] + struct.pack("<I", 8 + len(page) * (k + 1) if k < 9_999 else 0)
    tiff = encode_picture(picture_from_array(np.zeros((4, 4, 3), np.uint16)), "TIFF")
    huge_tiff = bytearray(tiff)
    for at in range(10, 10 + 12 * 2, 12):  # width and height come first
        struct.pack_into("<HI", huge_tiff, at + 2, 4, 1)
        struct.pack_into("<I", huge_tiff, at + 8, 60_000)
    bmp = bytearray(saved(Image.new("RGB", (4, 4)), "BMP"))
    struct.pack_into("<ii", bmp, 18, 60_000, 60_000)
    jpeg = bytearray(saved(Image.new("RGB", (4, 4)), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, 65_000, 65_000)
    webp = bytearray(saved(Image.new("RGBA", (4, 4)), "WEBP", exif=b"Exif\x00\x00II*\x00"))
    webp[24:30] = b"\xfe\x3f\x00\xfe\x3f\x00"
    text = png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(50_000_000)))
    return {
        "20000 x 20000 PNG": png(20_000, 20_000, 8, 0, flat),
        "16-bit 20000 x 20000 PNG": png(20_000, 20_000, 16, 2, flat),
        "one line of 10^9 pixels": png(1_000_000_000, 1, 1, 0, flat),
        "text chunk of 50 MB": png(1, 1, 8, 0, zlib.compress(b"\0\0"), text),
        "profile of 50 MB": png(
            1, 1, 8, 0, zlib.compress(b"\0\0"), png_chunk(b"iCCP", b"a\x00\x00" + zlib.compress(bytes(50_000_000)))
        ),
        "TIFF of 10,000 pages": bytes(pages),
        "TIFF of 60000 x 60000": bytes(huge_tiff),
        "BMP of 60000 x 60000": bytes(bmp),
        "JPEG of 65000 x 65000": bytes(jpeg),
        "WebP of 16383 x 16383": bytes(webp),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_under_a_second_and_300_mb(name, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert time.perf_counter() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert "\n" not in str(caught.value)


def seeds() -> dict[str, bytes]:
    generator = np.random.default_rng(5)
    rgb8 = (generator.random((40, 32, 4)) * 255).astype(np.uint8)
    rgb16 = (generator.random((40, 32, 4)) * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    block = exif.tobytes()
    image = Image.fromarray(np.ascontiguousarray(rgb8[:, :, :3]))
    return {
        "jpeg": saved(image, "JPEG", exif=block),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "png": saved(Image.fromarray(rgb8), "PNG", exif=block),
        "palette": saved(image.quantize(16), "PNG", transparency=3),
        "png16": encode_picture(picture_from_array(rgb16), "PNG"),
        "webp": saved(Image.fromarray(rgb8), "WEBP", exif=block),
        "webp_lossless": saved(image, "WEBP", lossless=True),
        "bmp": saved(image, "BMP"),
        "tiff_lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "tiff_jpeg": saved(image, "TIFF", compression="jpeg"),
        "tiff16": encode_picture(picture_from_array(rgb16[:, :, :3]), "TIFF"),
        "tiff16_grey_alpha": encode_picture(picture_from_array(rgb16[:, :, :2]), "TIFF"),
        "tiff_float": encode_picture(picture_from_array(generator.random((40, 32, 3), dtype=np.float32)), "TIFF"),
    }


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One of: cut, flip a few bytes, damage the header, insert, remove."""
    changed = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind in (1, 2):
        reach = len(data) if kind == 1 else min(len(data), 300)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(reach)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
    elif kind == 3:
        at = chance.randrange(len(data))
        changed[at:at] = chance.randbytes(chance.randint(1, 40))
    else:
        at = chance.randrange(len(data))
        del changed[at : at + chance.randint(1, 40)]
    return bytes(changed)


@pytest.mark.parametrize("name", seeds())
def test_mutated_files_decode_or_raise_input_error_and_nothing_else(name):
    data = seeds()[name]
    assert decode_picture(data).pixels_HWC.size  # the seed itself is good
    chance = random.Random(f"malformed {name}")
    refused, slowest = 0, 0.0
    lines: set[str] = set()  # what should not be there: anything after the first line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(MUTATIONS_PER_SEED):
            start = time.perf_counter()
            try:
                picture = decode_picture(mutate(data, chance))
            except InputError as error:
                refused += 1
                lines.update(str(error).splitlines()[1:])
            else:
                assert picture.pixels_HWC.ndim == 3
                # What was accepted can also be written: no half-valid metadata gets through.
                encode_picture(picture, "TIFF")
            slowest = max(slowest, time.perf_counter() - start)
    assert refused > 0
    assert not lines
    assert slowest < 5


@pytest.mark.filterwarnings("ignore")
def test_every_early_truncation_is_refused():
    for data in seeds().values():
        for length in range(0, 200, 3):
            with pytest.raises(InputError):
                decode_picture(data[:length])
