"""From a source of frames to scores, events and files: what `moevision detect` and `moevision.detect` run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from moevision.errors import InputError, UsageError
from moevision.imaging.sources import VideoSource
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.calibration import Threshold
from moevision.tasks.anomaly.detector import AnomalyDetector
from moevision.tasks.anomaly.drawing import time_text
from moevision.tasks.anomaly.events import Event, EventTracker
from moevision.tasks.anomaly.outputs import DetectionWriter
from moevision.tasks.anomaly.scores import FrameScore

_LEAST_RATE = 0.8  # of the frames a second that the site was calibrated at


class BrokenOffError(InputError):
    """A source is damaged, lost, or changes its shape, after frames that were scored; `note` says where and how."""

    def __init__(self, name: str, note: str) -> None:
        super().__init__(f"{name}: broke off {note}")
        self.note = note


class Scored(NamedTuple):
    """One frame with all that is known of it: whether an event is on, and the event that has just ended, if any."""

    frame: Frame
    score: FrameScore
    alarm: bool
    ended: Event | None


@dataclass
class Detection:
    """What was found in one source.

    Attributes:
        threshold: the score above which frames are unusual.
        times_s, scores: of every frame; NaN where a frame is not scored.
        events: in order.
        dropped: frames of a live source that came faster than they could be scored.
        disturbed: frames in which the whole picture changed.
        broken_off: where and why the source could not be read to its end, such as "at 0:00:02.000: ..."; all else then
            is what was found until there. None if it could.
    """

    threshold: Threshold
    times_s: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    dropped: int = 0
    disturbed: int = 0
    broken_off: str | None = None


def scored_frames(
    source: VideoSource, detector: AnomalyDetector, threshold: Threshold, duration_s: float | None = None
) -> Iterator[Scored]:
    """Every frame of the source with its score; the last one may come twice, with the event that its end ends.

    Frames from `duration_s` on are left out. Raises InputError where the source's shape is not the calibrated one or it
    has too few frames a second, BrokenOffError at the end where it cannot be read further, UsageError for a duration
    that is not positive.
    """
    if duration_s is not None and not duration_s > 0:
        raise UsageError(f"duration is {duration_s}; use a number of seconds above 0")
    _check_source(source, detector)
    detector.restart()
    tracker = EventTracker(threshold.value)
    last: Scored | None = None
    broken: InputError | None = None
    try:
        for number, frame in enumerate(source):
            if duration_s is not None and round(frame.time_s, 6) >= duration_s:
                break
            if source.restarted:
                detector.restart()
            score = replace(detector.push(frame), number=number)  # a detector counts on from source to source
            ended = tracker.push(score) if score.analysed else None  # one that only repeats the last decides nothing
            last = Scored(frame, score, tracker.active, ended)
            yield last
    except InputError as error:
        if last is None:
            raise
        broken = error
    if last is not None and (unended := tracker.finish()) is not None:
        yield last._replace(ended=unended)
    if last is not None and broken is not None:
        reason = str(broken).removeprefix(f"{source.name}: ")
        raise BrokenOffError(source.name, f"at {time_text(last.score.time_s)}: {reason}") from broken


def detect(
    source: VideoSource, detector: AnomalyDetector, threshold: Threshold, writer: DetectionWriter | None = None, *,
    keep_scores: bool = True, duration_s: float | None = None, say: Callable[[Scored], None] | None = None,
) -> Detection:  # fmt: skip
    """Score a whole source, or a live one for a while.

    One that breaks off after its first frames ends there, which is noted in what is returned and in the report.

    Args:
        source: open.
        detector: its past is forgotten.
        threshold: see `SiteCalibration`.
        writer: receives every frame and event.
        keep_scores: off for a source that does not end.
        duration_s: stop after so much time of the source.
        say: called after every frame.

    Raises as `scored_frames`, but for BrokenOffError.
    """
    found = Detection(threshold)
    number = -1
    try:
        for scored in scored_frames(source, detector, threshold, duration_s):
            if scored.score.number != number:  # the last frame comes again with the event that its end ends
                number = scored.score.number
                found.disturbed += scored.score.disturbed and scored.score.analysed
                if keep_scores:
                    found.times_s.append(scored.score.time_s)
                    found.scores.append(scored.score.score)
                if writer is not None:
                    writer.write(scored.frame, scored.score, scored.alarm)
            if scored.ended is not None:
                found.events.append(scored.ended)
                if writer is not None:
                    writer.event(scored.ended)
            if say is not None:
                say(scored)
    except BrokenOffError as error:
        found.broken_off = error.note
    found.dropped = source.dropped
    if writer is not None:
        writer.facts["dropped_frames"], writer.facts["reconnects"] = source.dropped, source.reconnects
        writer.facts["disturbed_frames"], writer.facts["broken_off"] = found.disturbed, found.broken_off
    return found


def _check_source(source: VideoSource, detector: AnomalyDetector) -> None:
    """Raises InputError for a source that the calibration says nothing of."""
    detector.check_size(source.size_hw, source.name)
    if source.fps is not None and source.fps < _LEAST_RATE * detector.site.fps:
        raise InputError(
            f"{source.name}: {source.fps:.3g} frames a second, but the calibration was made at "
            f"{detector.site.fps:.3g}; fit one for this camera with moevision anomaly-fit"
        )
