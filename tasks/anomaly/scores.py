"""What the detector says of one frame."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle in pixels of the source frame; right and bottom are one past the last pixel."""

    left_px: int
    top_px: int
    right_px: int
    bottom_px: int
    score: float
    """The highest value of the heat map inside."""


@dataclass(frozen=True)
class FrameScore:
    """What the detector says of one frame.

    Attributes:
        number: of the frame in its source, from 0.
        time_s: since the start of its source.
        score: how unusual the frame is, in standard deviations of normal frames' scores; the mean of this and at most
            eight frames before it. NaN where the frame is not scored: the first of a source, and while `disturbed`.
        raw: the same of this frame alone.
        streams: the calibrated score of every stream ("difference", "flow", "prediction", ...) of this frame alone.
        heat_HW: where, in standard deviations of the highest place of normal frames, at the detector's working size
            (it covers the whole frame, scaled).
        boxes: where the heat is above what is normal anywhere, highest first.
        disturbed: the whole picture changed (a cut, a light switched, the camera shaken): says nothing of its content.
        analysed: False for a frame that came sooner than the site's rate asks for: it has the last one's score.
    """

    number: int
    time_s: float
    score: float
    raw: float
    streams: dict[str, float]
    heat_HW: NDArray[np.float32]
    boxes: tuple[Box, ...]
    disturbed: bool
    analysed: bool = True
