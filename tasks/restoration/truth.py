"""Compares restored pictures with true ones, where there are any: PSNR and SSIM of the result and of the input."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePath

import numpy as np

from moevision.engine.inputs import Search
from moevision.engine.names import IMAGE_SUFFIXES, shown
from moevision.engine.task import JSON
from moevision.errors import InputError, UsageError
from moevision.imaging.picture import Picture, quantise, to_float_tile
from moevision.imaging.read import read_picture

METRICS = ("psnr", "ssim", "input_psnr", "input_ssim")
"""Facts of every picture that could be compared."""

_BAND_ROWS = 512
_WINDOW_ROWS = 11  # of SSIM
_EQUAL_PSNR_DB = 100.0  # for pictures that are equal, as in `moevision evaluate`


class Truth:
    """True pictures by name.

    Args:
        folder: holds them under the relative paths of the restored pictures; suffixes may differ.

    Raises:
        UsageError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"--truth {shown(folder)}: no such folder")
        search = Search(recursive=True, output_root="")
        search.add(os.fspath(folder))
        self.folder = folder
        self._paths_by_key: dict[PurePath, list[Path]] = {}
        for found in search.found:
            self._paths_by_key.setdefault(_key(found.relative), []).append(found.path)

    def judge(self, name: PurePath, before: Picture, after: Picture) -> dict[str, JSON]:
        """Compare a picture and its restoration with the true one of that name.

        Args:
            name: relative path of the picture; its suffix does not matter.
            before, after: the picture and its restoration, of one size.

        Returns:
            `truth`: "compared", or why not; where it was, METRICS: `psnr` and `input_psnr` in dB (100 for equal
            pictures), `ssim` and `input_ssim` (None for pictures smaller than its window), of 8 bits and RGB.
        """
        paths = self._paths_by_key.get(_key(name), [])
        if len(paths) != 1:
            return {"truth": "several pictures of this name" if paths else "no picture of this name"}
        try:
            target = read_picture(paths[0])
        except InputError as error:
            return {"truth": shown(str(error).removeprefix(f"{paths[0]}: "))}
        (height, width), wanted_hw = target.pixels_HWC.shape[:2], after.pixels_HWC.shape[:2]
        if (height, width) != wanted_hw:
            return {"truth": f"is of another size: {width} x {height}, not {wanted_hw[1]} x {wanted_hw[0]}"}
        facts: dict[str, JSON] = {}
        for prefix, picture in (("", after), ("input_", before)):
            psnr_db, ssim = compare(picture.pixels_HWC, target.pixels_HWC)
            facts |= {f"{prefix}psnr": round(psnr_db, 3), f"{prefix}ssim": None if ssim is None else round(ssim, 4)}
        return {**facts, "truth": "compared"}


def compare(pixels_HWC: np.ndarray, target_HWC: np.ndarray) -> tuple[float, float | None]:
    """PSNR (dB, at most 100) and SSIM (None for less than 11 x 11 pixels) as `metrics.psnr` and `metrics.ssim`.

    Both of any depth and channels, of one height and width; they are compared as RGB of 8 bits, in bands of rows, for
    the intermediate values of a large picture would take gigabytes.
    """
    from moevision.tasks.restoration.metrics import psnr, ssim  # torch: not for --dry-run

    height, width = target_HWC.shape[:2]
    error_sum, ssim_sum = 0.0, 0.0
    for top in range(0, height, _BAND_ROWS):
        rows = min(_BAND_ROWS, height - top)
        a_HWC, b_HWC = (_eight_bits(picture[top : top + rows]) for picture in (pixels_HWC, target_HWC))
        error_sum += rows * 10 ** (-psnr(a_HWC, b_HWC) / 10)
    places = height - _WINDOW_ROWS + 1
    if places < 1 or width < _WINDOW_ROWS:
        return _decibels(error_sum / height), None
    for top in range(0, places, _BAND_ROWS):
        rows = min(_BAND_ROWS, places - top)
        band = slice(top, top + rows + _WINDOW_ROWS - 1)
        ssim_sum += rows * ssim(_eight_bits(pixels_HWC[band]), _eight_bits(target_HWC[band]))
    return _decibels(error_sum / height), ssim_sum / places


def _decibels(error: float) -> float:
    """Of a mean squared error, as a share of full scale squared."""
    return min(_EQUAL_PSNR_DB, -10 * math.log10(error)) if error > 0 else _EQUAL_PSNR_DB


def _eight_bits(pixels_HWC: np.ndarray) -> np.ndarray:
    return quantise(to_float_tile(pixels_HWC), np.dtype(np.uint8), 3)


def _key(name: PurePath) -> PurePath:
    """An unknown suffix belongs to the name, as in 'scan.v2'."""
    return name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name
