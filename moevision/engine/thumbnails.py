"""Small pictures for the report's page, made from pixels that are in memory anyway, within one budget of bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from moevision.engine.task import TaskResult
from moevision.imaging.picture import Picture, quantise, to_float_tile
from moevision.imaging.scaling import shrink

BUDGET_BYTES = 18 * 2**20
"""Of all thumbnails of a run, whatever their number; a page holds them as base64, which takes a third more."""
LARGEST_PX, SMALLEST_PX = 320, 48

# Of photographs at this quality. JPEG with its own Huffman tables is as small as WebP here, in a fifth of the time.
_BYTES_PER_SQUARE_PX = 0.15
_QUALITY = 60
_SMALLER = (1.0, 0.75, 0.5)


@dataclass(frozen=True)
class Thumbnail:
    """One small picture."""

    name: str
    """What it shows, such as "before"."""
    data: bytes
    """A JPEG file."""


class Thumbnails:
    """Makes the thumbnails of one run; the more jobs, the smaller they are.

    Args:
        jobs: how many will ask for thumbnails, at most.
        budget_bytes: of all thumbnails together; never exceeded.
    """

    def __init__(self, jobs: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self._jobs, self._budget_bytes = max(1, jobs), budget_bytes
        self._asked = self._used_bytes = 0

    def of(self, pictures: tuple[Picture, ...], result: TaskResult) -> tuple[Thumbnail, ...]:
        """What shows a person one job: its pictures and what became of them, or what the task has to show instead.

        Nothing where even the smallest would exceed what is left for this job: its share of the budget, and what
        those before it have saved.
        """
        self._asked += 1
        share_bytes = self._budget_bytes * self._asked // self._jobs - self._used_bytes
        largest_px = self._side_px(len(pictures) + 1)
        shown = views(pictures, result, largest_px)
        small_by_name = {name: shrink(picture.pixels_HWC, largest_px) for name, picture in shown.items()}
        for factor in _SMALLER:
            side_px = max(SMALLEST_PX, round(largest_px * factor))
            made = tuple(Thumbnail(name, _encoded(small, side_px)) for name, small in small_by_name.items())
            taken_bytes = sum(len(thumbnail.data) for thumbnail in made)
            if taken_bytes <= share_bytes:
                self._used_bytes += taken_bytes
                return made
        return ()

    def _side_px(self, pictures: int) -> int:
        share_bytes = self._budget_bytes / (self._jobs * pictures)
        return round(min(LARGEST_PX, max(SMALLEST_PX, math.sqrt(share_bytes / _BYTES_PER_SQUARE_PX))))


def views(pictures: tuple[Picture, ...], result: TaskResult, longer_px: int) -> Mapping[str, Picture]:
    """By name, what shows a person one job; no smaller than `longer_px` unless the picture is."""
    if result.views is not None:
        return result.views(longer_px)
    if len(pictures) == 1:
        return {"before": pictures[0], "after": result.picture}
    return {**{f"input {number}": one for number, one in enumerate(pictures, start=1)}, "result": result.picture}


def _encoded(small_HWC: np.ndarray, side_px: int) -> bytes:
    small_HWC = shrink(small_HWC, side_px)
    if small_HWC.dtype != np.uint8:
        small_HWC = quantise(to_float_tile(small_HWC), np.dtype(np.uint8), small_HWC.shape[2])
    image = Image.fromarray(small_HWC[:, :, 0] if small_HWC.shape[2] == 1 else small_HWC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()
