"""What the decoding process says is checked, and it is ended when it takes too long or too much."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.app import sandbox
from moevision.app.sandbox import Decoder
from moevision.app.settings import Settings
from moevision.errors import InputError
from moevision.imaging.read import read_picture

EXAMPLES = Path(__file__).parents[3] / "app" / "examples"


def liar(monkeypatch, code):
    """Have the decoding process run `code` instead, once it has read its request."""
    code = f"import sys, time, struct, json; sys.stdin.readline(); out = sys.stdout.buffer\n{code}"
    original = sandbox.subprocess.Popen
    monkeypatch.setattr(
        sandbox.subprocess, "Popen", lambda command, **rest: original([sys.executable, "-c", code], **rest)
    )


def said(block):
    data = json.dumps(block).encode()
    return f"out.write({struct.pack('>I', len(data)) + data!r}); out.flush()\n"


GOOD = {"format": "PNG", "shape": [2, 2, 3], "dtype": "uint8", "alpha": False}


@pytest.mark.parametrize(
    "block",
    [
        {**GOOD, "shape": [10**6, 10**6, 3]}, {**GOOD, "shape": [-1, 2, 3]}, {**GOOD, "shape": [2, 2, 7]},
        {**GOOD, "dtype": "object"}, {**GOOD, "format": "../x"}, {**GOOD, "icc": "no base64!"}, {**GOOD, "dpi": "x"},
        {}, [], "x", GOOD,
    ],
)  # fmt: skip
def test_what_the_process_says_is_checked(monkeypatch, block):
    liar(monkeypatch, said(block))  # of the last one the pixels are missing
    with pytest.raises(InputError, match=r"a\.png"):
        Decoder(Settings()).pictures([(Path("a.png"), "a.png")])
    with pytest.raises(InputError, match=r"a\.mp4"):
        Decoder(Settings()).video(Path("a.mp4"), "a.mp4")


def test_what_is_said_honestly_arrives(monkeypatch):
    liar(monkeypatch, said(GOOD) + "out.write(bytes(range(12)))")
    (picture,) = Decoder(Settings()).pictures([(Path("a.png"), "a.png")])
    assert picture.pixels_HWC.ravel().tolist() == list(range(12))


def test_one_that_takes_too_long_is_ended(monkeypatch):
    liar(monkeypatch, "time.sleep(60)")
    with pytest.raises(InputError, match=r"a\.png: took more than 0\.5 s"):
        Decoder(Settings(), decode_s=0.5).pictures([(Path("a.png"), "a.png")])


@pytest.mark.skipif(sys.platform != "linux", reason="no limits on memory there")
def test_memory_and_writing_are_limited(tmp_path, monkeypatch):
    code = "from moevision.app.decode import _limit\n_limit(300 * 2**20, 5)\n"
    liar(monkeypatch, code + "x = bytearray(2**30)\n" + said(GOOD) + "out.write(bytes(12))")
    with pytest.raises(InputError, match="within the limits"):
        Decoder(Settings()).pictures([(Path("a.png"), "a.png")])
    monkeypatch.undo()
    target = tmp_path / "written"
    liar(monkeypatch, code + f"open({str(target)!r}, 'wb', 0).write(b'x')\n" + said(GOOD) + "out.write(bytes(12))")
    with pytest.raises(InputError):
        Decoder(Settings()).pictures([(Path("a.png"), "a.png")])
    assert not target.exists() or target.stat().st_size == 0


def test_pictures_arrive_as_they_are_read(tmp_path):
    decoder = Decoder(Settings())
    transparent = tmp_path / "alpha.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    Image.fromarray(pixels).save(transparent, dpi=(300, 300))
    files = [transparent, EXAMPLES / "snow-path.webp"]
    for picture, file in zip(decoder.pictures([(file, file.name) for file in files]), files, strict=True):
        expected = read_picture(file)
        np.testing.assert_array_equal(picture.pixels_HWC, expected.pixels_HWC)
        assert (picture.metadata, picture.format) == (expected.metadata, expected.format)
        assert (picture.alpha_HW is None) == (expected.alpha_HW is None)
    decoder.close()


def test_errors_name_the_file_as_the_visitor_does(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^holiday\.png: not an image file"):
        Decoder(Settings()).pictures([(file, "holiday.png")])
    with pytest.raises(InputError, match=r"^large\.webp: picture of .* is over the limit"):
        Decoder(Settings(max_megapixels=0.01)).pictures([(EXAMPLES / "snow-path.webp", "large.webp")])
