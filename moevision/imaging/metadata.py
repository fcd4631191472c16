"""What a picture carries besides its pixels, and the byte-level surgery that keeps it honest.

EXIF blocks are patched in place, not parsed and rebuilt: maker notes hold offsets that only survive if nothing moves.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

EXIF_PREFIX = b"Exif\x00\x00"
ORIENTATION = 0x0112
EXIF_IFD = 0x8769
GPS_IFD = 0x8825
INTEROP_IFD = 0xA005
_THUMBNAIL_OFFSET, _THUMBNAIL_BYTES = 0x0201, 0x0202
_SHORT = 3
_MAX_ENTRIES = 4096

# Tags of a TIFF file that describe the scene or the author rather than the storage of the pixels.
DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 316, 33432, EXIF_IFD, GPS_IFD)
# Description, maker, model, software, date, artist, host computer, copyright.


@dataclass(frozen=True)
class Metadata:
    """Metadata that travels from an input file to its output file.

    Attributes:
        exif: EXIF block with the leading ``Exif\\0\\0``, orientation reset to 1 and thumbnail removed; or None.
        icc: ICC profile, passed through unchanged with the pixel values; None means sRGB.
        dpi: horizontal and vertical resolution in dots per inch, or None.
    """

    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None


@dataclass(frozen=True)
class IfdEntry:
    """Where one tag of a TIFF directory lies: its type code, value count and the offset of its 4-byte value field."""

    kind: int
    count: int
    value_at: int


def byte_order(tiff: bytes | bytearray) -> Literal["<", ">"]:
    """`struct` prefix of a classic TIFF block; raises ValueError for anything else."""
    if tiff[:4] == b"II*\x00":
        return "<"
    if tiff[:4] == b"MM\x00*":
        return ">"
    raise ValueError("not a TIFF structure")


def read_ifd(tiff: bytes | bytearray, order: str, offset: int) -> tuple[dict[int, IfdEntry], int, int]:
    """Entries of the directory at `offset`, the offset of the next directory, and where that offset is stored.

    Raises struct.error when the directory leaves the block.
    """
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    entries: dict[int, IfdEntry] = {}
    for at in range(offset + 2, offset + 2 + 12 * min(count, _MAX_ENTRIES), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, at)
        entries[tag] = IfdEntry(kind, values, at + 8)
    next_at = offset + 2 + 12 * count
    (following,) = struct.unpack_from(order + "I", tiff, next_at)
    return entries, following, next_at


def read_integer(tiff: bytes | bytearray, order: str, entry: IfdEntry) -> int:
    """First value of a SHORT or LONG entry."""
    code = "H" if entry.kind == _SHORT else "I"
    return int(struct.unpack_from(order + code, tiff, entry.value_at)[0])


def take_orientation(exif: bytes | None) -> tuple[int, bytes | None]:
    """Split an EXIF block into its orientation (1 to 8) and a copy that says 1 and holds no thumbnail.

    A block that cannot be followed is dropped: (1, None). Everything else in the block keeps its place and bytes.
    """
    if not exif:
        return 1, None
    tiff = bytearray(exif.removeprefix(EXIF_PREFIX))
    try:
        orientation = reset_orientation(tiff)
        _remove_thumbnail(tiff)
    except (struct.error, ValueError):
        return 1, None
    return orientation, EXIF_PREFIX + bytes(tiff)


def reset_orientation(tiff: bytearray) -> int:
    """Write orientation 1 into the first directory of `tiff` (in place) and return what it was, 1 if absent or odd.

    Raises ValueError or struct.error when there is no readable first directory.
    """
    order = byte_order(tiff)
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    entries, _, _ = read_ifd(tiff, order, first)
    entry = entries.get(ORIENTATION)
    if entry is None:
        return 1
    orientation = read_integer(tiff, order, entry)
    struct.pack_into(order + ("H" if entry.kind == _SHORT else "I"), tiff, entry.value_at, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _remove_thumbnail(tiff: bytearray) -> None:
    """Unlink the second directory and blank its JPEG: a stale preview would show the picture as it was before."""
    order = byte_order(tiff)
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    _, second, link_at = read_ifd(tiff, order, first)
    if not second:
        return
    struct.pack_into(order + "I", tiff, link_at, 0)
    try:
        entries, _, _ = read_ifd(tiff, order, second)
        start = read_integer(tiff, order, entries[_THUMBNAIL_OFFSET])
        length = read_integer(tiff, order, entries[_THUMBNAIL_BYTES])
    except (struct.error, KeyError):
        return
    # Only bytes that start a JPEG are blanked: a wrong offset must not wipe the camera data.
    if tiff[start : start + 2] != b"\xff\xd8" or start + length > len(tiff):
        return
    if start + length == len(tiff):
        del tiff[start:]
    else:
        tiff[start : start + length] = bytes(length)


def metadata_from_info(info: dict[Any, Any], exif: bytes | None) -> Metadata:
    """Metadata from Pillow's `Image.info` and an EXIF block that `take_orientation` has cleaned."""
    return Metadata(exif=exif, icc=valid_icc(info.get("icc_profile")), dpi=valid_dpi(info.get("dpi")))


def valid_icc(profile: Any) -> bytes | None:
    """The profile if it has the mandatory ICC signature, else None."""
    if isinstance(profile, bytes) and len(profile) >= 132 and profile[36:40] == b"acsp":
        return profile
    return None


def valid_dpi(dpi: Any) -> tuple[float, float] | None:
    """A pair of finite positive numbers up to 100,000, else None."""
    try:
        horizontal, vertical = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if all(math.isfinite(value) and 0 < value <= 100_000 for value in (horizontal, vertical)):
        return horizontal, vertical
    return None


def exif_from_tiff_tags(tags: Image.Exif) -> bytes | None:
    """EXIF block made of the descriptive tags of a TIFF file (its storage tags are left behind)."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in (EXIF_IFD, GPS_IFD):
            values = {key: value for key, value in tags.get_ifd(tag).items() if key != INTEROP_IFD}
            if values:
                kept[tag] = values
        elif tag in tags:
            kept[tag] = tags[tag]
    return kept.tobytes() if len(kept) else None
