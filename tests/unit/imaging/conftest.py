"""Pictures made in code: every mode, depth and piece of metadata that the image layer promises to keep."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from moevision.imaging.metadata import Metadata
from moevision.imaging.picture import Picture, picture_from_array


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Random HxWxC samples over the full range of a dtype, the same for the same arguments."""

    def make(height: int, width: int, channels: int, dtype=np.uint8) -> np.ndarray:
        generator = np.random.default_rng([height, width, channels])
        if dtype == np.float32:
            return generator.random((height, width, channels), dtype=np.float32)
        return generator.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)

    return make


@pytest.fixture(scope="session")
def icc() -> bytes:
    """A valid RGB profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="session")
def exif() -> bytes:
    """Camera maker, capture time, maker note and position; upright."""
    block = Image.Exif()
    block[0x010F] = "Maker"
    block[0x0112] = 1
    block.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    block.get_ifd(0x8769)[0x927C] = b"maker note"
    block.get_ifd(0x8825)[1] = "N"
    block.get_ifd(0x8825)[2] = (50.0, 30.0, 15.5)
    return block.tobytes()


@pytest.fixture
def make_picture(noise, icc, exif) -> Callable[..., Picture]:
    """A noise Picture with EXIF, ICC profile and resolution."""

    def make(height: int = 9, width: int = 14, channels: int = 3, dtype=np.uint8) -> Picture:
        bare = picture_from_array(noise(height, width, channels, dtype))
        return Picture(bare.pixels_HWC, bare.alpha_HW, Metadata(exif, icc, (300.0, 150.0)), bare.format)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """The bytes of a PIL image in a format."""

    def make(image: Image.Image, format_name: str, **options) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format_name, **options)
        return buffer.getvalue()

    return make
