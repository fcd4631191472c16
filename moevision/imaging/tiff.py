"""TIFF beyond what Pillow can hold: header facts, 16-bit and float decoding, and one encoder for every depth."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from moevision.errors import InputError
from moevision.imaging.metadata import (
    DESCRIPTIVE_TAGS,
    EXIF_IFD,
    GPS_IFD,
    INTEROP_IFD,
    ORIENTATION,
    Metadata,
    byte_order,
    exif_from_tiff_tags,
    read_ifd,
    read_integer,
    reset_orientation,
    valid_dpi,
    valid_icc,
)

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES = 273, 277, 278, 279
_X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _RESOLUTION_UNIT, _PREDICTOR = 282, 283, 284, 296, 317
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _ICC, _DNG_VERSION = 338, 339, 34675, 50706
_RAW, _DEFLATE, _OLD_DEFLATE = 1, 8, 32946
_UNSIGNED, _FLOAT = 1, 3
_PREMULTIPLIED, _STRAIGHT = 1, 2
_MAX_PAGES = 100_000
_STRIP_TARGET_BYTES = 512 * 1024


@dataclass(frozen=True)
class TiffHeader:
    """Facts about the first picture of a TIFF file, read without decoding any pixel."""

    width: int
    height: int
    bits: int
    samples: int
    sample_format: int
    photometric: int
    orientation: int
    pages: int
    is_preview: bool
    tags: Image.Exif

    @property
    def is_deep(self) -> bool:
        """More than 8 bits a sample, or floats: Pillow would squeeze these to 8 bits or refuse them."""
        return self.bits > 8 or self.sample_format == _FLOAT

    def metadata(self) -> Metadata:
        """EXIF, ICC and resolution from the tags; a part that cannot be read is left out."""
        try:
            exif = exif_from_tiff_tags(self.tags)
        except Exception:  # Pillow's serialiser raises many types on odd values; the picture itself is still fine
            exif = None
        scale = 2.54 if self.tags.get(_RESOLUTION_UNIT) == 3 else 1.0
        dpi = valid_dpi((self.tags.get(_X_RESOLUTION), self.tags.get(_Y_RESOLUTION)))
        return Metadata(exif, valid_icc(self.tags.get(_ICC)), dpi and (dpi[0] * scale, dpi[1] * scale))


def read_header(data: bytes) -> TiffHeader:
    """Header of a TIFF file. Raises InputError for camera raw files, other exceptions for damaged ones."""
    tags = Image.Exif()
    tags.load(data)
    if _DNG_VERSION in tags or data[8:10] == b"CR":
        raise InputError("camera raw file; develop it to TIFF or PNG first")
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise ValueError("no size in the header")
    bits = _first(tags.get(_BITS, 1))
    orientation = _first(tags.get(ORIENTATION, 1))
    return TiffHeader(
        width=_first(tags[_WIDTH]),
        height=_first(tags[_HEIGHT]),
        bits=bits,
        samples=_first(tags.get(_SAMPLES, 1)),
        sample_format=_first(tags.get(_SAMPLE_FORMAT, _UNSIGNED)),
        photometric=_first(tags.get(_PHOTOMETRIC, 0)),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        pages=_count_pages(data),
        is_preview=bool(_first(tags.get(_SUBFILE, 0)) & 1),
        tags=tags,
    )


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, tuple) else int(value)


def _count_pages(data: bytes) -> int:
    """Full-size pictures in the file; reduced copies (previews) do not count."""
    order = byte_order(data)
    (offset,) = struct.unpack_from(order + "I", data, 4)
    pages = 0
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_PAGES:
        seen.add(offset)
        entries, offset, _ = read_ifd(data, order, offset)
        preview = _SUBFILE in entries and read_integer(data, order, entries[_SUBFILE]) & 1
        pages += not preview
    return max(pages, 1)


def decode_deep(data: bytes, header: TiffHeader) -> np.ndarray:
    """Stored samples of a 16-bit or float TIFF: HxWxC (C = 1, 2, 3, 4 in RGB order), uint16 or float32, not rotated.

    Alpha comes back straight. Raises InputError for sample types that have no exact counterpart here.
    """
    kinds = {(16, _UNSIGNED): np.uint16, (32, _FLOAT): np.float32}
    dtype = kinds.get((header.bits, header.sample_format))
    extra = header.samples - (3 if header.photometric == 2 else 1)
    if dtype is None or header.photometric not in (0, 1, 2) or extra not in (0, 1):
        raise InputError(
            f"TIFF with {header.samples} x {header.bits}-bit samples of this kind is not supported; "
            "save it as grey or RGB with 8-bit, 16-bit or 32-bit float samples"
        )
    stored = _decode_strips(data, header, np.dtype(dtype))
    if stored is None:
        stored = _decode_opencv(data)
    if stored is None or stored.shape != (header.height, header.width, header.samples) or stored.dtype != dtype:
        raise InputError("damaged or truncated TIFF, or an unusual layout; open it and save it again")
    if header.photometric == 0:
        stored = (np.iinfo(np.uint16).max if dtype is np.uint16 else 1) - stored
    if extra and _first(header.tags.get(_EXTRA_SAMPLES, _STRAIGHT)) == _PREMULTIPLIED:
        stored = _unpremultiply(stored)
    return stored.astype(dtype, copy=False)


def _decode_opencv(data: bytes) -> np.ndarray | None:
    """Deep pixels by OpenCV, or None where it gives up."""
    upright = bytearray(data)
    reset_orientation(upright)  # OpenCV would rotate some files and not others; the caller rotates all
    return opencv_decode(upright)


def opencv_decode(data: bytes | bytearray) -> np.ndarray | None:
    """HxWxC in RGB(A) order at the stored depth, or None. The caller has checked size and format before."""
    import cv2  # 0.1 s that no 8-bit picture should pay

    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if decoded is None:
        return None
    if decoded.ndim == 2:
        return decoded[:, :, None]
    order = [2, 1, 0, 3] if decoded.shape[2] == 4 else [2, 1, 0]
    return np.ascontiguousarray(decoded[:, :, order])


def _decode_strips(data: bytes, header: TiffHeader, dtype: np.dtype) -> np.ndarray | None:
    """Raw or deflate strips; None if stored otherwise. OpenCV cannot read grey+alpha and mixes up separate planes."""
    tags = header.tags
    compression, predictor = _first(tags.get(_COMPRESSION, _RAW)), _first(tags.get(_PREDICTOR, 1))
    separate = _first(tags.get(_PLANAR, 1)) == 2
    if not (separate or header.samples == 2):
        return None
    if compression not in (_RAW, _DEFLATE, _OLD_DEFLATE) or predictor not in (1, 2) or _STRIP_OFFSETS not in tags:
        raise InputError("TIFF layout is not supported; save it as interleaved samples with deflate or no compression")
    planes, channels = (header.samples, 1) if separate else (1, header.samples)
    row_bytes = header.width * channels * dtype.itemsize
    rows = min(max(_first(tags.get(_STRIP_ROWS, header.height)), 1), header.height)
    raw = bytearray()
    for offset, length in zip(_many(tags[_STRIP_OFFSETS]), _many(tags[_STRIP_BYTES]), strict=True):
        strip = data[offset : offset + length]
        raw += strip if compression == _RAW else zlib.decompressobj().decompress(strip, rows * row_bytes)
    stored_dtype = dtype.newbyteorder(byte_order(data))
    samples = np.frombuffer(raw, stored_dtype).reshape(planes, header.height, header.width, channels)
    if predictor == 2 and dtype.kind == "u":
        samples = np.cumsum(samples, axis=2, dtype=dtype)
    image = samples[:, :, :, 0].transpose(1, 2, 0) if separate else samples[0]
    return np.ascontiguousarray(image, dtype)


def _many(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _unpremultiply(stored_HWC: np.ndarray) -> np.ndarray:
    alpha = stored_HWC[:, :, -1:].astype(np.float64)
    top = 65535.0 if stored_HWC.dtype == np.uint16 else 1.0
    colour = np.divide(stored_HWC[:, :, :-1] * top, alpha, out=np.zeros(stored_HWC[:, :, :-1].shape), where=alpha > 0)
    if stored_HWC.dtype == np.uint16:
        colour = np.rint(np.minimum(colour, top))
    return np.concatenate([colour.astype(stored_HWC.dtype), stored_HWC[:, :, -1:]], axis=2)


def encode_tiff(samples_HWC: np.ndarray, metadata: Metadata) -> bytes:
    """TIFF file (deflate, horizontal predictor for integers) of uint8, uint16 or float32 samples, C = 1, 2, 3 or 4.

    Two and four channels end with straight alpha. Values are stored exactly.
    """
    height, width, channels = samples_HWC.shape
    predictor = 2 if samples_HWC.dtype.kind == "u" else 1
    rows = max(1, _STRIP_TARGET_BYTES // (width * channels * samples_HWC.itemsize))
    strips = [_encode_strip(samples_HWC[y : y + rows], predictor) for y in range(0, height, rows)]
    offsets = np.cumsum([0, *map(len, strips)])[:-1]  # Pillow adds the place where the directory ends
    tags: dict[int, Any] = _descriptive_tags(metadata.exif)
    tags |= {
        _WIDTH: width,
        _HEIGHT: height,
        _BITS: (samples_HWC.itemsize * 8,) * channels,
        _COMPRESSION: _DEFLATE,
        _PHOTOMETRIC: 2 if channels >= 3 else 1,
        _STRIP_OFFSETS: tuple(int(offset) for offset in offsets),
        _SAMPLES: channels,
        _STRIP_ROWS: rows,
        _STRIP_BYTES: tuple(map(len, strips)),
        _PLANAR: 1,
        _PREDICTOR: predictor,
        _SAMPLE_FORMAT: (_FLOAT if samples_HWC.dtype.kind == "f" else _UNSIGNED,) * channels,
    }
    if channels in (2, 4):
        tags[_EXTRA_SAMPLES] = _STRAIGHT
    if metadata.icc:
        tags[_ICC] = metadata.icc
    if metadata.dpi:
        tags |= {_X_RESOLUTION: metadata.dpi[0], _Y_RESOLUTION: metadata.dpi[1], _RESOLUTION_UNIT: 2}
    header = b"II*\x00" + struct.pack("<I", 8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=header)
    for tag, value in tags.items():
        directory[tag] = value
    return b"".join([header, directory.tobytes(8), *strips])


def _encode_strip(rows_HWC: np.ndarray, predictor: int) -> bytes:
    stored = rows_HWC.astype(rows_HWC.dtype.newbyteorder("<"))
    if predictor == 2:
        stored[:, 1:] -= rows_HWC[:, :-1]
    return zlib.compress(stored.tobytes(), 3)


def _descriptive_tags(exif: bytes | None) -> dict[int, Any]:
    """Tags of an EXIF block in the form a TIFF directory takes; none if they cannot be written again."""
    if not exif:
        return {}
    try:
        block = Image.Exif()
        block.load(exif)
        tags: dict[int, Any] = {tag: block[tag] for tag in DESCRIPTIVE_TAGS if tag in block}
        for tag in (EXIF_IFD, GPS_IFD):
            values = {key: value for key, value in block.get_ifd(tag).items() if key != INTEROP_IFD}
            tags.pop(tag, None)
            if values:
                tags[tag] = values
        probe = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            probe[tag] = value
        probe.save(io.BytesIO())
    except Exception:  # odd values make Pillow's serialiser raise many types; the pixels matter more
        return {}
    return tags
