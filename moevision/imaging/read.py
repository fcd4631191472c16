"""From a file to a `Picture`. Whatever is wrong with the file ends as one `InputError` line with a remedy.

The header is read and checked before any pixel is decoded. Pillow decodes everything with 8 bits; OpenCV is used only
for 16-bit and float samples, which Pillow would silently cut to 8 bits, and only after Pillow or our own header check
accepted the file.
"""

import io
import logging
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, Image, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from moevision.errors import InputError
from moevision.imaging import tiff
from moevision.imaging.metadata import Metadata, metadata_from_info, take_orientation
from moevision.imaging.picture import Picture, from_float_rgb, picture_from_array, require_finite, to_float_rgb

__all__ = [
    "FORMATS",
    "Picture",
    "ReadLimits",
    "decode_picture",
    "from_float_rgb",
    "picture_from_array",
    "picture_from_pil",
    "read_picture",
    "to_float_rgb",
]

logger = logging.getLogger(__name__)

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
_OPENERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,  # not the factory: of a multi-picture file only the main picture counts
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_REFUSED_MAGIC = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
)
_PLAIN_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBX": "RGB", "RGBa": "RGBA", "YCbCr": "RGB"}


@dataclass(frozen=True)
class ReadLimits:
    """Largest file (bytes) and largest picture (pixels) that are decoded."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000


_DEFAULT_LIMITS = ReadLimits()


def read_picture(path: Path, limits: ReadLimits = _DEFAULT_LIMITS) -> Picture:
    """Decode one still picture, upright, at its own depth.

    The content decides the format, not the file's extension. CMYK is converted to sRGB (by its embedded profile if it
    has one); palettes become RGB and their transparency becomes alpha; one bit becomes 8-bit grey.

    Raises InputError, and nothing else, for everything that can be wrong with the file; the text is one line.
    """
    try:
        return decode_picture(_read_bytes(Path(path), limits), limits)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_picture(data: bytes, limits: ReadLimits = _DEFAULT_LIMITS) -> Picture:
    """As `read_picture`, from the bytes of a file; the error text then lacks the path."""
    try:
        format_name = _sniff(data)
        return _decode_tiff(data, limits) if format_name == "TIFF" else _decode_pillow(data, format_name, limits)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError("not enough memory to decode it; make the picture smaller") from error
    except Exception as error:
        # Damaged files make decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, KeyError,
        # RuntimeError, OverflowError and more; a shorter list here would turn some bad file into a crash of the batch.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"damaged or truncated image ({reason}); copy or export it again") from error


def picture_from_pil(image: Image.Image) -> Picture:
    """A Picture from a PIL image (current frame), rotated upright by its EXIF orientation.

    PIL itself has cut 16-bit RGB to 8 bits by the time it gets here; use `read_picture` for such files.
    Raises InputError for modes that are not pictures (LAB, 32-bit integer, ...).
    """
    try:
        image.load()
        samples, icc_holds = _samples_from_pil(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"PIL image cannot be used ({error}); convert it to RGB") from error
    orientation, exif = take_orientation(image.info.get("exif"))
    metadata = metadata_from_info(image.info if icc_holds else _without_icc(image.info), exif)
    format_name = image.format if image.format in FORMATS else "PNG"
    return _assemble(samples, orientation, metadata, "TIFF" if samples.dtype == np.float32 else format_name)


def _read_bytes(path: Path, limits: ReadLimits) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("is a folder; name a file, or pass the folder as an input of a batch")
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file; copy it to one")  # a pipe would block for ever
        if status.st_size == 0:
            raise InputError("file is empty (0 bytes); copy it again")
        if status.st_size > limits.max_bytes:
            raise InputError(f"file has {status.st_size:,} bytes, limit is {limits.max_bytes:,}; raise the limit")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)[: limits.max_bytes]
    except FileNotFoundError as error:
        raise InputError("no such file; check the path") from error
    except PermissionError as error:
        raise InputError("cannot be read; check its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise InputError(f"cannot be read ({reason}); check the path and the disk") from error


def _sniff(data: bytes) -> str:
    """Format by content; raises InputError for everything that is not on the list."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    name = next((name for magic, name in _REFUSED_MAGIC if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        name = "HEIC/AVIF or video"
    what = f"{name} files are not supported" if name else "not an image file that is known here"
    raise InputError(f"{what}; convert it to {', '.join(FORMATS)}")


def _check_size(width: int, height: int, limits: ReadLimits) -> None:
    if width < 1 or height < 1:
        raise InputError("picture has no pixels; export it again")
    if width * height > limits.max_pixels:
        raise InputError(
            f"picture of {width} x {height} pixels is over the limit of {limits.max_pixels:,}; "
            "make it smaller or raise the limit"
        )


def _check_frames(frames: int) -> None:
    if frames > 1:
        raise InputError(f"has {frames} frames or pages; extract the one you want as a still picture")


def _decode_pillow(data: bytes, format_name: str, limits: ReadLimits) -> Picture:
    if format_name == "WEBP":
        _check_size(*_webp_size(data), limits)  # Pillow allocates the canvas while opening
    with _OPENERS[format_name](io.BytesIO(data)) as image:
        _check_size(*image.size, limits)
        _check_frames(getattr(image, "n_frames", 1))
        image.load()  # also verifies checksums before OpenCV, which does not, sees the file
        samples, icc_holds = _samples_from_pil(image)
        if format_name == "PNG" and data[24] == 16 and data[25] != 0:
            samples = _decode_png16(data, image.size, grey=data[25] == 4)
        orientation, exif = take_orientation(image.info.get("exif"))
        metadata = metadata_from_info(image.info if icc_holds else _without_icc(image.info), exif)
    return _assemble(samples, orientation, metadata, format_name)


def _decode_tiff(data: bytes, limits: ReadLimits) -> Picture:
    header = tiff.read_header(data)
    _check_size(header.width, header.height, limits)
    _check_frames(header.pages)
    if header.is_preview:
        raise InputError("holds only a preview first (camera raw file?); develop it to TIFF or PNG first")
    metadata = header.metadata()
    if header.is_deep:
        return _assemble(tiff.decode_deep(data, header), header.orientation, metadata, "TIFF")
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
        _check_size(*image.size, limits)
        image.load()  # rotates by itself
        samples, icc_holds = _samples_from_pil(image)
    if not icc_holds:
        metadata = Metadata(metadata.exif, None, metadata.dpi)
    return _assemble(samples, 1, metadata, "TIFF")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size from the first chunk of a WebP file."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _decode_png16(data: bytes, size: tuple[int, int], *, grey: bool) -> np.ndarray:
    """HxWxC uint16 of a PNG that Pillow has verified; only the chunks that hold pixels go to OpenCV."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IHDR", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        at = end
    samples = tiff.opencv_decode(b"".join(kept))
    if samples is None or samples.shape[:2] != size[::-1] or samples.dtype != np.uint16:
        raise InputError("damaged 16-bit PNG; export it again")
    return np.ascontiguousarray(samples[:, :, [0, 3]]) if grey else samples


def _samples_from_pil(image: Image.Image) -> tuple[np.ndarray, bool]:
    """HxWxC samples (C = 1, 2, 3, 4) of a loaded image, and whether its ICC profile still describes them."""
    if image.mode.startswith("I;16"):
        grey = np.array(image).astype(np.uint16)
        key = image.info.get("transparency")
        if isinstance(key, int):
            return np.dstack([grey, np.where(grey == key, 0, 65535).astype(np.uint16)]), True
        return grey[:, :, None], True
    if image.mode == "F":
        return np.array(image)[:, :, None], True
    if image.mode == "CMYK":
        return np.array(_cmyk_to_srgb(image)), False
    mode = _PLAIN_MODES.get(image.mode, image.mode)
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(f"colour mode {image.mode} is not supported; save it as grey or RGB")
    if "transparency" in image.info and mode in ("L", "RGB"):
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    samples = np.array(image if image.mode == mode else image.convert(mode))
    return samples[:, :, None] if samples.ndim == 2 else samples, True


def _cmyk_to_srgb(image: Image.Image) -> Image.Image:
    """sRGB by the embedded CMYK profile, else by the plain complement formula."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (KeyError, OSError, ValueError, TypeError, ImageCms.PyCMSError):
        logger.info("CMYK without a usable profile: converted to sRGB by the plain formula, colours are approximate")
        return image.convert("RGB")
    logger.info("CMYK converted to sRGB by the embedded profile")
    return converted if converted is not None else image.convert("RGB")


def _without_icc(info: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in info.items() if key != "icc_profile"}


def _assemble(samples_HWC: np.ndarray, orientation: int, metadata: Metadata, format_name: str | None) -> Picture:
    """Rotate upright, split alpha off, refuse NaN."""
    require_finite(samples_HWC, "pixel values in the file", "export it again without them")
    upright = np.ascontiguousarray(_upright(samples_HWC, orientation))
    channels = 1 if upright.shape[2] <= 2 else 3
    if upright.shape[2] == channels:
        return Picture(upright, None, metadata, format_name or "PNG")
    pixels, alpha = np.ascontiguousarray(upright[:, :, :channels]), np.ascontiguousarray(upright[:, :, channels])
    return Picture(pixels, alpha, metadata, format_name or "PNG")


def _upright(samples_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8). Values above 4 swap the axes first, the rest are mirrorings."""
    if orientation > 4:
        samples_HWC = samples_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples_HWC = samples_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        samples_HWC = samples_HWC[:, ::-1]
    return samples_HWC
