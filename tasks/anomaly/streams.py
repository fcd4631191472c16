"""Frames to measurements: what moves, how fast, and how far from what the network expected, frame by frame.

One class for files and live cameras: what a frame measures depends on the frames before it and on nothing else, so a
stream is measured as its recording is.
"""

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moevision.datasets.video import grey_at
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.model import FRAMES
from moevision.tasks.anomaly.motion import (
    Grid,
    box_means,
    difference_grid,
    flow_grid,
    highest,
    mean_of_highest,
    working_size,
)

# How the boxes of a stream become the one number of a frame.
POOLS = {"difference": highest, "flow": mean_of_highest, "prediction": highest}
_FLOOR = 1e-3  # added before the logarithm: a frame in which nothing at all moves
_DISTURBED_LEVELS, _DISTURBED_SHARE = 8.0, 0.6  # grey levels by which so many of all boxes differ
_EARLY, _LATE = 0.9, 2.5  # of the time between frames: before it a frame is left out, after it the sequence is broken


@dataclass(frozen=True)
class Measurement:
    """What one frame measures.

    Attributes:
        values: by stream the logarithm of its pooled boxes; empty while too few frames were seen.
        grids: by stream its boxes (h, w).
        frame_error: mean squared error of the prediction in grey levels, as MemoryOut's own score has it; NaN without.
        disturbed: the whole picture changed at once.
    """

    values: dict[str, float]
    grids: dict[str, Grid]
    frame_error: float = float("nan")
    disturbed: bool = False


class FrameAnalyser:
    """Measures frames one after another.

    Args:
        model: a MemoryOutNet in evaluation mode, or None for the streams that need no network.
        fps: frames a second to analyse; those that come earlier are left out. None = all of them.
        device, dtype: where and in which float type the network runs.
    """

    def __init__(
        self, model: nn.Module | None, *, fps: float | None = None, device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.model, self.fps = model, fps
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.size_hw: tuple[int, int] | None = None
        self._seen: deque[NDArray[np.uint8]] = deque(maxlen=FRAMES)
        self._time_s: float | None = None

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Of the streams that are measured."""
        return tuple(name for name in POOLS if name != "prediction" or self.model is not None)

    def restart(self) -> None:
        """Forget what was seen: the next frame begins a new sequence."""
        self._seen.clear()
        self._time_s = None

    def push(self, frame: Frame) -> Measurement | None:
        """Measure the next frame; None if it comes too soon after the last one to be analysed."""
        if self.fps is not None and self._time_s is not None:
            waited = (frame.time_s - self._time_s) * self.fps
            if 0 <= waited < _EARLY:
                return None
            if not 0 <= waited <= _LATE:
                self.restart()
        self._time_s = frame.time_s
        self.size_hw = self.size_hw or working_size(frame.pixels_HWC.shape[:2])
        return self._measure(grey_at(frame.pixels_HWC, self.size_hw))

    def _measure(self, now_HW: NDArray[np.uint8]) -> Measurement:
        seen = list(self._seen)
        self._seen.append(now_HW)
        if not seen:
            return Measurement({}, {})
        difference = difference_grid(seen[-1], now_HW)
        if float((difference > _DISTURBED_LEVELS).mean()) > _DISTURBED_SHARE:
            self._seen.clear()
            self._seen.append(now_HW)
            return Measurement({}, {}, disturbed=True)
        if len(seen) < FRAMES:
            return Measurement({}, {})
        grids = {"difference": difference, "flow": flow_grid(seen[-1], now_HW)}
        frame_error = float("nan")
        if self.model is not None:
            error_HW = self._prediction_error(seen, now_HW)
            grids["prediction"] = box_means(error_HW)
            frame_error = float(error_HW.mean())
        values = {name: float(np.log(POOLS[name](grid) + _FLOOR)) for name, grid in grids.items()}
        return Measurement(values, grids, frame_error)

    @torch.inference_mode()
    def _prediction_error(self, seen: list[NDArray[np.uint8]], now_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        frames_1THW = torch.from_numpy(np.stack(seen)).to(self.device)[None].float() / 127.5 - 1
        assert self.model is not None
        expected_HW = self.model(frames_1THW.to(self.dtype)).frame_B1HW[0, 0].float().cpu().numpy()
        difference_HW = 127.5 * (expected_HW + 1) - now_HW
        return np.asarray(difference_HW * difference_HW, np.float32)


def logarithm(grid: Grid) -> Grid:
    """Of the boxes, on the scale of `Measurement.values`."""
    return np.log(grid + np.float32(_FLOOR))


def spread(grid: Grid, size_hw: tuple[int, int], stride_px: int) -> NDArray[np.float32]:
    """Values at the boxes' centres to every pixel of the working size, linear between them: (h, w) -> (H, W)."""
    to_grid = np.array([[1 / stride_px, 0, -1], [0, 1 / stride_px, -1]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    spread_HW = cv2.warpAffine(grid, to_grid, size_hw[::-1], None, how, cv2.BORDER_REPLICATE)
    return np.asarray(spread_HW, np.float32)
