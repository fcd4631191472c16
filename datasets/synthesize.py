"""Weather over a folder of clean photographs: paired test sets and example pictures, the same for the same seed."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from moevision.datasets import weather
from moevision.datasets.paired import PixelArray, list_images, read_image
from moevision.errors import UsageError


def synthesize(
    folder: Path | str, kind: str, seed: int = 2026, strength: float | None = None
) -> Iterator[tuple[PixelArray, PixelArray, str]]:
    """Yield (degraded, clean, stem), HWC uint8 RGB, for every photograph in `folder`, by name.

    Args:
        folder: clean photographs.
        kind: one of `weather.KINDS`, or several weathers at once, the farthest first: "haze+rain"; "clean" leaves them
            as they are.
        seed: picture i draws from the stream (seed, i, kind), whatever else the folder holds behind it.
        strength: severity in [0, 1]; None draws it.

    Raises:
        UsageError: unknown kind, or no photograph in the folder.
    """
    numbers = [(*weather.KINDS, "noise").index(part) for part in weather.parts_of(kind)]
    paths = list_images(folder)
    if not paths:
        raise UsageError(f"{folder}: no photograph to weather; put .png, .jpg, .webp, .bmp or .tif files there")
    for i, path in enumerate(paths):
        clean_HWC = read_image(path)
        rng = np.random.default_rng([seed, i, *numbers])
        degraded_HWC = weather.degrade(clean_HWC.astype(np.float32) / np.float32(255), kind, rng, strength=strength)
        yield np.round(degraded_HWC * 255).astype(np.uint8), clean_HWC, path.stem


def write_pairs(folder: Path, out: Path, kind: str, seed: int = 2026, strength: float | None = None) -> list[Path]:
    """Write `out/input/STEM.png` and `out/gt/STEM.png`, ready for `moevision evaluate restoration`.

    Raises:
        UsageError: as `synthesize`, or `out` already holds pairs.
    """
    if (out / "input").exists() or (out / "gt").exists():
        raise UsageError(f"{out}: already holds pairs; choose another folder")
    written = []
    for degraded_HWC, clean_HWC, stem in synthesize(folder, kind, seed, strength):
        for part, image_HWC in (("input", degraded_HWC), ("gt", clean_HWC)):
            path = out / part / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)):
                raise UsageError(f"{path}: cannot be written; check the folder and the disk")
            written.append(path)
    return written
