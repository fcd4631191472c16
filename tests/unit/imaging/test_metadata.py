"""EXIF surgery: orientation and thumbnail change, nothing else moves."""

import struct

import pytest
from PIL import Image

from moevision.imaging.metadata import EXIF_PREFIX, metadata_from_info, take_orientation

MAKER_NOTE = bytes(range(64))
THUMBNAIL = b"\xff\xd8" + b"old preview" * 5 + b"\xff\xd9"


def camera_exif(order: str, orientation: int, tail: bytes = b"") -> bytes:
    """A block with an orientation, an opaque tag at a fixed offset and a thumbnail, followed by `tail`."""
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    note_at, second_at = 8 + 2 + 2 * 12 + 4, 8 + 2 + 2 * 12 + 4 + len(MAKER_NOTE)
    thumbnail_at = second_at + 2 + 2 * 12 + 4
    first = struct.pack(order + "HHHIHH", 2, 0x0112, 3, 1, orientation, 0)
    first += struct.pack(order + "HHIII", 0xC4A5, 7, len(MAKER_NOTE), note_at, second_at)
    second = struct.pack(order + "HHHII", 2, 0x0201, 4, 1, thumbnail_at)
    second += struct.pack(order + "HHIII", 0x0202, 4, 1, len(THUMBNAIL), 0)
    return EXIF_PREFIX + magic + struct.pack(order + "I", 8) + first + MAKER_NOTE + second + THUMBNAIL + tail


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_taken_and_reset_in_both_byte_orders(order, orientation):
    found, cleaned = take_orientation(camera_exif(order, orientation))
    assert found == orientation
    assert take_orientation(cleaned) == (1, cleaned)


@pytest.mark.parametrize("tail", [b"", b"more data"])
def test_thumbnail_is_gone_and_the_maker_note_did_not_move(tail):
    block = camera_exif("<", 6, tail)
    _, cleaned = take_orientation(block)
    assert b"old preview" not in cleaned
    assert cleaned.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert cleaned.endswith(tail)
    parsed = Image.Exif()
    parsed.load(cleaned)
    assert parsed[0x0112] == 1
    assert parsed[0xC4A5] == MAKER_NOTE


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_impossible_orientation_counts_as_upright(value):
    assert take_orientation(camera_exif("<", value))[0] == 1


@pytest.mark.parametrize("block", [None, b"", b"Exif\x00\x00", b"junk" * 9, camera_exif("<", 6)[:20]])
def test_an_unreadable_block_is_dropped(block):
    assert take_orientation(block) == (1, None)


@pytest.mark.parametrize("dpi", [None, (0, 0), (float("nan"), 72), (72,), "abc", (-1, 72), (1e9, 1e9)])
def test_an_impossible_resolution_is_dropped(dpi):
    assert metadata_from_info({"dpi": dpi}, None).dpi is None


def test_something_that_is_no_icc_profile_is_dropped(icc):
    assert metadata_from_info({"icc_profile": b"x" * 500}, None).icc is None
    assert metadata_from_info({"icc_profile": icc}, None).icc == icc
