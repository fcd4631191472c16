"""Folders of degraded and true pictures: `input/` and `gt/`, matched by file stem.

RESIDE shares one truth among several inputs: `input/SCENE_LEVEL.png` belongs to `gt/SCENE.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.errors import InputError, UsageError

PixelArray = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def list_images(folder: Path | str) -> list[Path]:
    """All picture files directly in `folder`, sorted by name; raises UsageError if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give a folder of pictures ({' '.join(SUFFIXES)})")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def read_image(path: Path | str) -> PixelArray:
    """Picture file -> HWC uint8 RGB; raises InputError if it cannot be read."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    pixels_HWC = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if pixels_HWC is None:
        raise InputError(f"{path}: not a picture OpenCV can decode; convert it to PNG or remove it")
    return np.asarray(pixels_HWC, dtype=np.uint8)


class PairedFolder:
    """Pairs of `root/input` and `root/gt`; `orphans` lists the files of either folder that have no partner."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        for part in ("input", "gt"):
            if not (self.root / part).is_dir():
                raise UsageError(f"{self.root / part}: no such folder; pairs need {self.root}/input and {self.root}/gt")
        truths = {path.stem: path for path in list_images(self.root / "gt")}
        self.pairs: list[tuple[Path, Path]] = []
        self.orphans: list[Path] = []
        used: set[str] = set()
        for path in list_images(self.root / "input"):
            stem = path.stem if path.stem in truths else path.stem.rpartition("_")[0]
            if stem not in truths:
                self.orphans.append(path)
                continue
            used.add(stem)
            self.pairs.append((path, truths[stem]))
        self.orphans += [path for stem, path in truths.items() if stem not in used]
        if not self.pairs:
            raise UsageError(f"{self.root}: no pair found; files of input/ and gt/ must have equal stems")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[PixelArray, PixelArray, str]:
        """(input HWC uint8 RGB, truth HWC uint8 RGB, stem of the input)."""
        input_path, truth_path = self.pairs[index]
        input_HWC, truth_HWC = read_image(input_path), read_image(truth_path)
        if input_HWC.shape != truth_HWC.shape:
            sizes = " against ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (input_HWC, truth_HWC))
            raise InputError(f"{input_path}: {sizes} in {truth_path}; a pair must have one size")
        return input_HWC, truth_HWC, input_path.stem

    def __iter__(self) -> Iterator[tuple[PixelArray, PixelArray, str]]:
        return (self[i] for i in range(len(self)))
