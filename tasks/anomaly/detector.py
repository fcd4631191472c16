"""AnomalyDetector: frames in, one after another, scores with heat maps and boxes out."""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.calibration import WINDOW, SiteCalibration
from moevision.tasks.anomaly.model import MemoryOutNet
from moevision.tasks.anomaly.motion import BOX_PX, BOX_STRIDE_PX, working_size
from moevision.tasks.anomaly.scores import Box, FrameScore
from moevision.tasks.anomaly.streams import FrameAnalyser, Measurement, spread

_SAME_ASPECT = 0.03
_MOST_BOXES = 20


class AnomalyDetector:
    """Scores the frames of one source against what is normal at its site.

    Args:
        site: the calibration.
        descriptor: the network that the calibration was made with; None where it was made without.
        box_threshold: heat above which boxes are drawn.
        device, dtype: where and in which float type the network runs.

    Raises:
        InputError: a network is given and the calibration was made without one, or the reverse.
    """

    def __init__(
        self, site: SiteCalibration, descriptor: ModelDescriptor | None, *, box_threshold: float = 3.0,
        device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        if bool(site.model) != (descriptor is not None):
            raise InputError(f"the calibration was made with {site.model or 'no'} model; use it with the same")
        model = None if descriptor is None else cast("MemoryOutNet", descriptor.model.to(device=device, dtype=dtype))
        self.site, self.box_threshold = site, box_threshold
        self.analyser = FrameAnalyser(
            model, normal=site.normal, streams=tuple(site.streams), fps=site.fps, device=device, dtype=dtype
        )
        self.analyser.size_hw = working_size(site.source_size_hw)  # not the first source's
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._last: FrameScore | None = None
        self._number = 0

    def check_size(self, size_hw: tuple[int, int], name: str | Path) -> None:
        """Raises InputError if frames of that size are not of the shape that the calibration was made on."""
        height, width = self.site.source_size_hw
        if abs(size_hw[1] / size_hw[0] / (width / height) - 1) > _SAME_ASPECT or (
            working_size(size_hw) != working_size((height, width)) and max(size_hw) < max(height, width)
        ):
            raise InputError(
                f"{name}: frames of {size_hw[1]}x{size_hw[0]}, but the calibration was made on {width}x{height}; "
                "fit one for this camera with moevision anomaly-fit"
            )

    def restart(self) -> None:
        """The next frame does not follow the last: a new file, a lost connection."""
        self.analyser.restart()
        self._recent.clear()
        self._last = None

    def push(self, frame: Frame) -> FrameScore:
        """Score the next frame; one that comes too soon to be analysed has the score of the last."""
        number, self._number = self._number, self._number + 1
        measurement = self.analyser.push(frame)
        if measurement is None and self._last is not None:
            return replace(self._last, number=number, time_s=frame.time_s, analysed=False)
        self._last = self._score(measurement or Measurement(), frame, number)
        return self._last

    def _score(self, measurement: Measurement, frame: Frame, number: int) -> FrameScore:
        raw = self.site.raw_score(measurement)
        if np.isfinite(raw):
            self._recent.append(raw)
        heat_HW, boxes = self._heat(measurement, frame.pixels_HWC.shape[:2])
        streams = {n: s.standardise(measurement.values[n]) for n, s in self.site.streams.items() if measurement.values}
        score = float(np.mean(self._recent)) if np.isfinite(raw) else float("nan")
        return FrameScore(number, frame.time_s, score, raw, streams, heat_HW, boxes, measurement.disturbed)

    def _heat(
        self, measurement: Measurement, source_hw: tuple[int, int]
    ) -> tuple[NDArray[np.float32], tuple[Box, ...]]:
        size_hw = self.analyser.size_hw or working_size(source_hw)
        if not measurement.grids:
            return np.zeros(size_hw, np.float32), ()
        grid = self.site.heat_grid(measurement)
        return spread(grid, size_hw), boxes_of(grid, self.box_threshold, size_hw, source_hw)


def boxes_of(
    grid: NDArray[np.float32], threshold: float, size_hw: tuple[int, int], source_hw: tuple[int, int]
) -> tuple[Box, ...]:
    """Connected places of the boxes' grid above the threshold, as rectangles in source pixels, hottest first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((grid > threshold).astype(np.uint8), connectivity=8)
    scale_y, scale_x = source_hw[0] / size_hw[0], source_hw[1] / size_hw[1]
    found = []
    for label in range(1, count):
        left, top, width, height = (int(v) for v in stats[label, :4])
        # A box of the grid has its centre at (1 + index) strides and reaches half its side to all sides.
        x0, y0 = ((1 + n) * BOX_STRIDE_PX - BOX_PX // 2 for n in (left, top))
        x1, y1 = x0 + (width - 1) * BOX_STRIDE_PX + BOX_PX, y0 + (height - 1) * BOX_STRIDE_PX + BOX_PX
        found.append(
            Box(
                max(0, round(x0 * scale_x)), max(0, round(y0 * scale_y)),
                min(source_hw[1], round(x1 * scale_x)), min(source_hw[0], round(y1 * scale_y)),
                float(grid[labels == label].max()),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda box: -box.score)[:_MOST_BOXES])
