"""A pair of videos to one: frames paired by time, gates that follow the scene slowly and keep what they have chosen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.engine.task import JSON
from moevision.errors import InputError
from moevision.imaging.picture import picture_from_array
from moevision.imaging.video import Frame, VideoWriter, frame_rate, read_frames
from moevision.moe import Context, LayerRecord
from moevision.tasks.fusion.predict import FusionTask

RATE = 0.15  # of a new frame in the running mean that the gates see
KEPT = 0.1  # by so much in its logit must another expert be better than one that the frame before had
_CUT = 0.5  # distance of brightness histograms, 0 to 1, beyond which a new scene begins
_APART_S = 0.04  # further apart in time two frames are no pair


@dataclass
class Steadiness:
    """The running mean of what the gates see, and which experts they chose; both forgotten at a cut."""

    rate: float = RATE
    mean_BF: Tensor | None = None
    _records: dict[str, LayerRecord] = field(default_factory=dict, repr=False)
    _histogram: NDArray[np.float32] | None = field(default=None, repr=False)

    def watch(self, visible_HWC: NDArray[np.uint8]) -> bool:
        """Look at the next visible frame; True if a new scene begins with it."""
        counts = cv2.calcHist([cv2.cvtColor(visible_HWC, cv2.COLOR_RGB2GRAY)], [0], None, [32], [0, 256]).ravel()
        histogram = np.asarray(counts / counts.sum(), np.float32)
        before, self._histogram = self._histogram, histogram
        cut = before is not None and float(np.abs(before - histogram).sum()) / 2 > _CUT
        if cut:
            self.mean_BF, self._records = None, {}
        return cut

    def context(self) -> Context:
        """For the next forward pass."""
        context = _SteadyContext(steadiness=self, before=self._records)
        self._records = context.records
        return context


@dataclass
class _SteadyContext(Context):
    steadiness: Steadiness = field(default_factory=Steadiness)
    before: dict[str, LayerRecord] = field(default_factory=dict)

    def statistic(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        """As `Context.statistic`; what the gates see and choose is drawn towards what they saw and chose before."""
        value = super().statistic(name, measure)
        if name in (self.frozen_statistics or {}):
            return value
        gate = name.removesuffix(".kept")
        if gate != name and gate in self.before:
            self.statistics[name] = value.scatter(1, self.before[gate].routing.index_NK.clamp_min(0), KEPT)
            return self.statistics[name]
        if name != "pooled":
            return value
        mean_BF = self.steadiness.mean_BF
        self.steadiness.mean_BF = value if mean_BF is None else torch.lerp(mean_BF, value, self.steadiness.rate)
        self.statistics[name] = self.steadiness.mean_BF
        return self.steadiness.mean_BF


def fuse_video(
    task: FusionTask, infrared: Path, visible: Path, output: Path, *, say: Callable[[int, float], None] | None = None
) -> dict[str, JSON]:
    """Fuse two videos of the same view; the result has size, frame rate and sound of the visible one.

    Args:
        task: as for single pairs; its registration is done for every frame.
        infrared, visible: video files.
        output: a video file; it appears when all is done.
        say: called after every frame with their number so far and the visible weight.

    Returns:
        `frames`, `dropped` (visible frames without an infrared one within 40 ms), `cuts`, mean `visible_weight`, and
        `largest_step` of the visible weight from frame to frame within a scene.

    Raises:
        InputError: a file cannot be read as a video, or no frames belong together. MissingExtraError: PyAV is missing.
    """
    steadiness = Steadiness()
    weights: list[float] = []
    steps: list[float] = []
    cuts = dropped = 0
    new_context, task.new_context = task.new_context, steadiness.context
    try:
        with VideoWriter(output, frame_rate(visible), sound_from=visible) as writer:
            for thermal, frame in _paired(infrared, visible):
                if thermal is None:
                    dropped += 1
                    continue
                cut = steadiness.watch(frame.pixels_HWC)
                cuts += cut
                result = task((picture_from_array(thermal.pixels_HWC), picture_from_array(frame.pixels_HWC)))
                weight = float(str(result.facts["visible_weight"]))
                if weights and not cut:
                    steps.append(abs(weight - weights[-1]))
                weights.append(weight)
                writer.write(result.picture.pixels_HWC)
                if say is not None:
                    say(len(weights), weight)
            if not weights:
                raise InputError(f"{visible}: no frame lies within 40 ms of one of {infrared}; check their start times")
    finally:
        task.new_context = new_context
    return {
        "frames": len(weights),
        "dropped": dropped,
        "cuts": cuts,
        "visible_weight": round(float(np.mean(weights)), 4),
        "largest_step": round(max(steps, default=0.0), 4),
    }


def _paired(infrared: Path, visible: Path) -> Iterator[tuple[Frame | None, Frame]]:
    """Every visible frame with the infrared frame nearest in time, None if that is too far; both read once."""
    thermal_frames = read_frames(infrared)
    nearest: Frame | None = next(thermal_frames, None)
    following: Frame | None = next(thermal_frames, None)
    for frame in read_frames(visible):
        while (
            nearest is not None
            and following is not None
            and abs(following.time_s - frame.time_s) <= abs(nearest.time_s - frame.time_s)
        ):
            nearest, following = following, next(thermal_frames, None)
        close = nearest is not None and abs(nearest.time_s - frame.time_s) <= _APART_S
        yield (nearest if close else None), frame
