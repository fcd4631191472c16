"""From scores of frames to events: a beginning, an end and a peak, one frame at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moevision.errors import UsageError
from moevision.tasks.anomaly.scores import Box, FrameScore

# An event ends at 0.7 times the threshold, lest a score that wavers about it ends and begins one with every frame. As a
# margin, not a ratio: 0.7 times a threshold below 0 lies above it.
OFF_MARGIN = 0.3
# Two frames of six may miss (a key frame, a moment of standing still); three that are raised by chance start nothing.
NEEDED, OF = 4, 6
# A score is the mean of up to nine frames: one bad frame of a camera can raise nine, 0.36 s at 25 frames a second.
MIN_LENGTH_S = 0.4
# Who passes behind a pole or a sign is back within about a second: still the same event, and one alarm.
MERGE_GAP_S = 1.0


@dataclass(frozen=True)
class Event:
    """Something that does not belong, from the first to the last frame it is seen in.

    Attributes:
        start_s, end_s: times of its first and last frame, since the start of the source.
        start_frame, end_frame: their numbers.
        peak_s: when the score is highest.
        peak_score: the score there.
        boxes: where, at the peak; highest first.
    """

    start_s: float
    end_s: float
    start_frame: int
    end_frame: int
    peak_s: float
    peak_score: float
    boxes: tuple[Box, ...]

    @property
    def length_s(self) -> float:
        """Time between its first and its last frame, in whole microseconds: 0.7 - 0.3 is not 0.4."""
        return round(self.end_s - self.start_s, 6)


class EventTracker:
    """Finds events while the scores come in; holds no more than the last few frames' scores.

    An event begins when `needed` of the last `of` frames are above the threshold, with the first of these frames, and
    lasts to the last frame that is not below the threshold less the margin. Events less than `merge_gap_s` apart are
    one; then those shorter than `min_length_s` are dropped, in this order so that one event that wavers is not lost in
    pieces. A frame that is disturbed or not scored (NaN) neither begins nor ends anything.

    Args:
        threshold: a score, in standard deviations of normal frames.
        off_margin: in the same unit; None takes 0.3 times the threshold's size.
        needed, of: frames.
        min_length_s, merge_gap_s: seconds.

    Raises:
        UsageError: values that make no sense.
    """

    def __init__(
        self,
        threshold: float,
        *,
        off_margin: float | None = None,
        needed: int = NEEDED,
        of: int = OF,
        min_length_s: float = MIN_LENGTH_S,
        merge_gap_s: float = MERGE_GAP_S,
    ) -> None:
        margin = OFF_MARGIN * abs(threshold) if off_margin is None else off_margin
        if not (math.isfinite(threshold) and math.isfinite(margin) and margin >= 0):
            raise UsageError(f"threshold {threshold} with margin {margin}: use finite numbers, the margin 0 or more")
        if not 1 <= needed <= of:
            raise UsageError(
                f"{needed} of {of} frames cannot start an event; use at least 1 and at most as many as there are"
            )
        if not (min_length_s >= 0 and merge_gap_s >= 0):
            raise UsageError(f"event length {min_length_s} s and gap {merge_gap_s} s; use 0 or more")
        self.threshold, self.off_threshold = threshold, threshold - margin
        self._needed, self._min_length_s, self._merge_gap_s = needed, min_length_s, merge_gap_s
        self._recent: deque[FrameScore] = deque(maxlen=of)
        self._on = False
        self._event: Event | None = None  # that is on, or that ended so lately that another may still join it
        self._highest_since: FrameScore | None = None  # that other one's peak, and what lies between
        self._scored_s = -math.inf

    @property
    def active(self) -> bool:
        """Whether the frame pushed last belongs to an event, as far as can be known by now.

        True only within events that `push` or `finish` will return, so an alarm is never taken back; a frame that is
        not scored has what the one before it had.
        """
        return self._on and self._event is not None and self._event.length_s >= self._min_length_s

    def push(self, score: FrameScore) -> Event | None:
        """Take the next frame's score. Returns an event once nothing can join it any more, at most one at a time."""
        if score.disturbed or math.isnan(score.score):
            if score.time_s - self._scored_s > self._merge_gap_s:
                self._recent.clear()  # what was before so long a gap says nothing of what comes after
            return self._settled(score.time_s)
        self._scored_s = score.time_s
        if self._on and self._event is not None:
            if score.score >= self.off_threshold:
                self._event = _extended(self._event, score)
                return None
            self._on, self._highest_since = False, None
            self._recent.clear()
        self._recent.append(score)
        if self._highest_since is None or score.score > self._highest_since.score:
            self._highest_since = score
        settled = self._settled(score.time_s)
        raised = self._raised()
        if len(raised) >= self._needed:
            self._begin(raised[0], score)
        return settled

    def finish(self) -> Event | None:
        """The event that is still open at the end of the source, if any; the tracker is then as new."""
        event = self._event
        self._recent.clear()
        self._on, self._event, self._highest_since, self._scored_s = False, None, None, -math.inf
        return event if event is not None and event.length_s >= self._min_length_s else None

    def _raised(self) -> list[FrameScore]:
        return [score for score in self._recent if score.score > self.threshold]

    def _begin(self, first: FrameScore, last: FrameScore) -> None:
        """An event from `first` to `last`, or the one before goes on."""
        event, inside = self._event, [score for score in self._recent if score.number >= first.number]
        if event is None:
            event = Event(first.time_s, last.time_s, first.number, last.number, first.time_s, first.score, first.boxes)
        elif self._highest_since is not None:
            inside.append(self._highest_since)
        for score in inside:
            event = _peaked(event, score)
        self._on, self._event = True, _extended(event, last)

    def _settled(self, now_s: float) -> Event | None:
        """The event that ended, if by now no other can join it; dropped if it is too short."""
        event = self._event
        if event is None or self._on:
            return None
        starts_s = [score.time_s for score in self._raised()]
        if round(min([now_s, *starts_s]) - event.end_s, 6) < self._merge_gap_s:
            return None
        self._event = None
        return event if event.length_s >= self._min_length_s else None


def find_events(
    scores: Iterable[FrameScore],
    threshold: float,
    *,
    off_margin: float | None = None,
    needed: int = NEEDED,
    of: int = OF,
    min_length_s: float = MIN_LENGTH_S,
    merge_gap_s: float = MERGE_GAP_S,
) -> list[Event]:
    """All events of a source's scores, the same that `EventTracker` gives one by one; arguments and errors as there."""
    tracker = EventTracker(
        threshold, off_margin=off_margin, needed=needed, of=of, min_length_s=min_length_s, merge_gap_s=merge_gap_s
    )
    found = [tracker.push(score) for score in scores]
    return [event for event in (*found, tracker.finish()) if event is not None]


def _peaked(event: Event, score: FrameScore) -> Event:
    if score.score <= event.peak_score:
        return event
    return replace(event, peak_s=score.time_s, peak_score=score.score, boxes=score.boxes)


def _extended(event: Event, score: FrameScore) -> Event:
    return replace(_peaked(event, score), end_s=score.time_s, end_frame=score.number)
