"""Frames to measurements: what moves, how fast, how it looks, and how far from what the network expected.

One class for files and live cameras: what a frame measures depends on the frames before it and on nothing else, so a
stream is measured as its recording is.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from moevision.datasets.video import grey_of, resized
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.appearance import (
    CHANNELS,
    MOVING_LEVELS,
    REACH,
    STRIDE,
    AppearanceEncoder,
    NormalAppearance,
    looked_at,
    nearest,
    smoothed,
)
from moevision.tasks.anomaly.model import FRAMES, MemoryOutNet
from moevision.tasks.anomaly.motion import (
    BOX_STRIDE_PX,
    Grid,
    box_means,
    difference_grid,
    flow_grid,
    highest,
    mean_of_highest,
    working_size,
)

STREAMS = ("difference", "flow", "appearance", "prediction")
_FLOOR = 1e-3  # added before the logarithm: a frame in which nothing at all moves
_DISTURBED_LEVELS, _DISTURBED_SHARE = 8.0, 0.6  # grey levels by which so many of all boxes differ
EARLY, _LATE = 0.9, 2.5  # of the time between frames: before it a frame is left out, after it the sequence is broken


@dataclass(frozen=True)
class Measurement:
    """What one frame measures.

    Attributes:
        values: by stream the logarithm of its highest box ("difference", the field's baseline) or of the mean of its
            five highest; empty while too few frames were seen.
        grids: by stream its boxes (h, w).
        moves: whether anything does.
        frame_error: mean squared error of the prediction in grey levels, as MemoryOut's own score has it; NaN without.
        features_NC: of the N boxes that move, as the encoder sees them, where asked for.
        disturbed: the whole picture changed at once.
    """

    values: dict[str, float] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    moves: bool = False
    frame_error: float = float("nan")
    features_NC: NDArray[np.float32] | None = None
    disturbed: bool = False


class FrameAnalyser:
    """Measures frames one after another.

    Args:
        model: a MemoryOutNet in evaluation mode, or None for the streams that need no network.
        normal: how normal things look; None leaves out "appearance".
        streams: names of those to measure; None = all that can be.
        collect: give the features of moving boxes, too.
        fps: frames a second to analyse; those that come earlier are left out. None = all of them.
        device, dtype: where and in which float type the network runs.
    """

    def __init__(
        self, model: MemoryOutNet | None, *, normal: NormalAppearance | None = None,
        streams: Collection[str] | None = None, collect: bool = False, fps: float | None = None,
        device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.streams = set(STREAMS if streams is None else streams)
        if model is None:
            self.streams -= {"appearance", "prediction"}
        elif model.encoder is None or normal is None:
            self.streams -= {"appearance"}
        self.model, self.normal, self.collect, self.fps = model, normal, collect, fps
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.size_hw: tuple[int, int] | None = None
        self._seen: deque[NDArray[np.uint8]] = deque(maxlen=FRAMES)
        self._time_s: float | None = None

    def restart(self) -> None:
        """Forget what was seen: the next frame begins a new sequence."""
        self._seen.clear()
        self._time_s = None

    def push(self, frame: Frame) -> Measurement | None:
        """Measure the next frame; None if it comes too soon after the last one to be analysed."""
        if self.fps is not None and self._time_s is not None:
            waited = (frame.time_s - self._time_s) * self.fps
            if 0 <= waited < EARLY:
                return None
            if not 0 <= waited <= _LATE:
                self.restart()
        self._time_s = frame.time_s
        grey_HW = grey_of(frame.pixels_HWC)
        self.size_hw = self.size_hw or working_size(grey_HW.shape)
        now_HW = resized(grey_HW, self.size_hw)
        seen = list(self._seen)
        self._seen.append(now_HW)
        if not seen:
            return Measurement()
        difference = difference_grid(seen[-1], now_HW)
        if float((difference > _DISTURBED_LEVELS).mean()) > _DISTURBED_SHARE:
            self._seen.clear()
            self._seen.append(now_HW)
            return Measurement(disturbed=True)
        return self._measure(seen, now_HW, grey_HW, difference) if len(seen) == FRAMES else Measurement()

    def _measure(
        self, seen: list[NDArray[np.uint8]], now_HW: NDArray[np.uint8], grey_HW: NDArray[np.uint8], difference: Grid
    ) -> Measurement:
        grids, frame_error = {"difference": difference}, float("nan")
        features_NC = np.zeros((0, CHANNELS), np.float32) if self.collect else None
        moves = bool((difference > MOVING_LEVELS).any())
        values = {"difference": highest(difference)}
        if "flow" in self.streams:
            grids["flow"] = flow_grid(seen[-1], now_HW)
            values["flow"] = mean_of_highest(grids["flow"])
        if "appearance" in self.streams:
            grids["appearance"], values["appearance"] = np.zeros_like(difference), 0.0
        if moves and (self.collect or "appearance" in self.streams):  # where nothing moves there is nothing to look at
            features_hwC, moving_hw = self._looks(grey_HW, difference)
            features_NC = features_hwC[moving_hw] if self.collect else None
            if self.normal is not None:
                away_hw = np.zeros(moving_hw.shape, np.float32)
                away_hw[moving_hw] = self.normal.distance(features_hwC[moving_hw])
                grids["appearance"] = _to_boxes(away_hw, difference.shape)
                values["appearance"] = mean_of_highest(grids["appearance"])
        if "prediction" in self.streams:
            error_HW = self._prediction_error(seen, now_HW)
            grids["prediction"], frame_error = box_means(error_HW), float(error_HW.mean())
            values["prediction"] = mean_of_highest(grids["prediction"])
        logarithms = {name: float(np.log(value + _FLOOR)) for name, value in values.items()}
        return Measurement(logarithms, grids, moves, frame_error, features_NC)

    @torch.inference_mode()
    def _looks(self, grey_HW: NDArray[np.uint8], difference: Grid) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What the encoder sees, (h, w, C), at the places that move, and which these are; elsewhere anything."""
        encoder = cast("AppearanceEncoder", cast("MemoryOutNet", self.model).encoder)
        size_hw = cast("tuple[int, int]", self.size_hw)
        frame_11HW = looked_at(grey_HW).to(self.device, self.dtype)
        places_hw = (frame_11HW.shape[2] // STRIDE, frame_11HW.shape[3] // STRIDE)
        rows, columns = (nearest(n, m) for n, m in zip(size_hw, places_hw, strict=True))
        moving_hw = spread(difference, size_hw)[rows][:, columns] > MOVING_LEVELS
        features_hwC = np.zeros((*places_hw, CHANNELS), np.float32)
        if moving_hw.any():
            down, right = (_around(np.any(moving_hw, axis=axis)) for axis in (1, 0))
            part_11HW = frame_11HW[
                ..., down.start * STRIDE : down.stop * STRIDE, right.start * STRIDE : right.stop * STRIDE
            ]
            features_hwC[down, right] = smoothed(encoder(part_11HW))
        return features_hwC, moving_hw

    @torch.inference_mode()
    def _prediction_error(self, seen: list[NDArray[np.uint8]], now_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        frames_1THW = torch.from_numpy(np.stack(seen)).to(self.device)[None].float() / 127.5 - 1
        model = cast("MemoryOutNet", self.model)
        expected_HW = model(frames_1THW).frame_B1HW[0, 0].cpu().numpy()
        difference_HW = 127.5 * (expected_HW + 1) - now_HW
        return np.asarray(difference_HW * difference_HW, np.float32)


def logarithm(grid: Grid) -> Grid:
    """Of the boxes, on the scale of `Measurement.values`."""
    return np.asarray(np.log(grid + np.float32(_FLOOR)), np.float32)


def spread(grid: Grid, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Values at the boxes' centres to every pixel of the working size, linear between them: (h, w) -> (H, W)."""
    to_grid = np.array([[1 / BOX_STRIDE_PX, 0, -1], [0, 1 / BOX_STRIDE_PX, -1]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    spread_HW = cv2.warpAffine(grid, to_grid, size_hw[::-1], None, how, cv2.BORDER_REPLICATE)
    return np.asarray(spread_HW, np.float32)


def _around(moving_N: NDArray[np.bool_]) -> slice:
    """The places that are needed along one side to see all that move as they are seen in the whole frame."""
    first, last = np.flatnonzero(moving_N)[[0, -1]]
    return slice(max(0, int(first) - REACH), int(last) + 1 + REACH)


def _to_boxes(places_hw: NDArray[np.float32], grid_hw: tuple[int, int]) -> Grid:
    """The highest value near every box: places of the encoder to the grid of boxes; the outermost boxes are 0.

    What the frame cuts looks unusual, and the encoder has seen nothing but black beyond the edge.
    """
    around_hw = cv2.dilate(places_hw, np.ones((3, 3), np.uint8))
    # Boxes have their centres at 1, 2, ... strides of the working size, which ends a stride beyond the last.
    rows, columns = ((1 + np.arange(m)) * n // (m + 1) for n, m in zip(places_hw.shape, grid_hw, strict=True))
    grid = np.zeros(grid_hw, np.float32)
    grid[1:-1, 1:-1] = around_hw[rows[1:-1]][:, columns[1:-1]]
    return grid
