"""What `detect` writes for one source: scores, events, the video with its heat map, a plot. All of it or nothing."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, get_args

from moevision.engine.names import shown
from moevision.engine.task import JSON, as_json
from moevision.errors import InputError, UsageError
from moevision.imaging.atomic import atomic_write_text
from moevision.imaging.picture import picture_from_array
from moevision.imaging.sources import VideoSource
from moevision.imaging.video import Frame, VideoWriter
from moevision.imaging.write import write_picture
from moevision.tasks.anomaly.calibration import SiteCalibration, Threshold
from moevision.tasks.anomaly.drawing import draw_overlay, draw_plot, time_text
from moevision.tasks.anomaly.events import Event
from moevision.tasks.anomaly.scores import FrameScore

__all__ = [
    "ALL_OUTPUTS",
    "FILE_NAMES",
    "Curve",
    "DetectionWriter",
    "Output",
    "draw_overlay",
    "draw_plot",
    "events_as_json",
    "parse_outputs",
    "time_text",
]

Output = Literal["scores", "events", "heat", "plot"]
ALL_OUTPUTS: tuple[Output, ...] = get_args(Output)

FILE_NAMES: dict[Output, str] = {
    "scores": "scores.csv",
    "events": "events.json",
    "heat": "heat.mp4",
    "plot": "scores.png",
}
_FLUSH_ROWS = 25  # about a second: who follows a live source in its part file sees it grow


def parse_outputs(text: str) -> tuple[Output, ...]:
    """`heat, scores` -> ("scores", "heat"). Raises UsageError for an unknown name, and where none is left."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    _check(names)
    if not names:
        raise UsageError(f"--outputs names nothing to write; use some of {', '.join(ALL_OUTPUTS)}")
    return tuple(output for output in ALL_OUTPUTS if output in names)


class DetectionWriter:
    """Collects what a detector says of one source; the files appear together when the `with` block ends.

    Until then they grow in a folder `unfinished-...` beside their place, where those of a live source can be followed.
    An exception in the block takes it away and leaves the output folder as it was; a run that is killed leaves it.
    Files of the same names are replaced. Memory does not grow with the length of the source, but by its events.

    Args:
        folder: made if missing.
        source: its name, for the report.
        fps: frames per second of the source; None where unknown.
        threshold: a score, in standard deviations.
        threshold_from: how it was chosen, in words.
        streams: names of the scores in `FrameScore.streams`: the columns of the table.
        sound_from: a file whose sound goes with the heat video.
        outputs: which files are wanted.
        facts: more to write into `events.json`; the attribute of that name may be added to until the end.
        clear: at the end take away what an earlier run wrote and this one does not: a folder never mixes two runs.

    Raises:
        UsageError: an unknown output. InputError: the folder cannot be written. MissingExtraError: the heat video is
        wanted and PyAV is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: str,
        fps: float | None,
        threshold: float,
        threshold_from: str,
        streams: Sequence[str] = (),
        sound_from: Path | None = None,
        outputs: Collection[Output] = ALL_OUTPUTS,
        facts: Mapping[str, JSON] | None = None,
        clear: bool = False,
    ) -> None:
        _check(outputs)
        self.folder, self.outputs = Path(folder), frozenset(outputs)
        self.frames = 0
        self.events: list[Event] = []
        self._source, self._fps, self._streams, self._sound_from = source, fps, tuple(streams), sound_from
        self._threshold, self._threshold_from = threshold, threshold_from
        self.facts: dict[str, JSON] = dict(facts or {})
        self._clear = clear
        self._curve = Curve()
        self._part = self.folder
        self._table: IO[str] | None = None
        self._video: VideoWriter | None = None
        self._cleaning = contextlib.ExitStack()  # takes away what is not wanted any more, at whatever end

    @classmethod
    def for_source(
        cls, folder: Path, source: VideoSource, site: SiteCalibration, threshold: Threshold,
        outputs: Collection[Output] = ALL_OUTPUTS, *, clear: bool = False,
    ) -> DetectionWriter:  # fmt: skip
        """A writer for an open source, with what the report says of the calibration."""
        return cls(
            folder,
            source=source.name,
            fps=source.fps,
            threshold=threshold.value,
            threshold_from=threshold.asked,
            streams=tuple(site.streams),
            sound_from=source.sound_path,
            outputs=outputs,
            facts={
                "threshold_95": [round(threshold.low, 4), round(threshold.high, 4)],
                "model": site.model,
                "normal_hours": round(site.hours, 4),
            },
            clear=clear,
        )

    def __enter__(self) -> DetectionWriter:
        with contextlib.ExitStack() as stack, _explained(self.folder):
            for folder in reversed([path for path in (self.folder, *self.folder.parents) if not path.exists()]):
                folder.mkdir()
                stack.callback(_remove_if_empty, folder)
            part = tempfile.TemporaryDirectory(prefix="unfinished-", dir=self.folder, ignore_cleanup_errors=True)
            self._part = Path(stack.enter_context(part))
            if "scores" in self.outputs:
                path = self._part / FILE_NAMES["scores"]
                self._table = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
                self._row("frame", "time_s", "score", "raw", *self._streams, "alarm", "disturbed")
            if "heat" in self.outputs:
                rate = Fraction(self._fps or 25).limit_denominator(1001)
                self._video = VideoWriter(self._part / FILE_NAMES["heat"], rate, self._sound_from)
            self._cleaning = stack.pop_all()
        return self

    def write(self, frame: Frame, score: FrameScore, alarm: bool) -> None:
        """Append one frame.

        Args:
            frame: of the source.
            score: of this frame.
            alarm: whether an event is on, `EventTracker.active`.

        Raises:
            InputError: the disk is full.
        """
        with _explained(self.folder):
            values = [score.score, score.raw, *(score.streams.get(name, math.nan) for name in self._streams)]
            self._row(score.number, f"{score.time_s:.3f}", *map(_cell, values), int(alarm), int(score.disturbed))
            if self._table is not None and self.frames % _FLUSH_ROWS == 0:
                self._table.flush()
            if self._video is not None:
                drawn_HWC = draw_overlay(frame.pixels_HWC, score, threshold=self._threshold, alarm=alarm)
                self._video.write(drawn_HWC, score.time_s)
        self._curve.add(score.time_s, score.score)
        self.frames += 1

    def event(self, event: Event) -> None:
        """Note an event."""
        self.events.append(event)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._cleaning, _explained(self.folder):
            if self._video is not None:
                self._video.__exit__(kind, error, at)
            if kind is None:
                self._finish()

    def _row(self, *cells: object) -> None:
        if self._table is not None:
            csv.writer(self._table, lineterminator="\n").writerow(cells)

    def _finish(self) -> None:
        """Complete the files in the part folder, then give them their names."""
        if self._table is not None:
            self._table.flush()
            os.fsync(self._table.fileno())
            self._table.close()
        if "events" in self.outputs:
            report = events_as_json(
                self.events,
                source=self._source,
                fps=self._fps,
                threshold=self._threshold,
                threshold_from=self._threshold_from,
                facts={"frames": self.frames, **self.facts},
            )
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            atomic_write_text(self._part / FILE_NAMES["events"], text)
        if "plot" in self.outputs:
            times_s, scores = self._curve.points()
            plot_HWC = draw_plot(times_s, scores, self._threshold, self.events, title=self._source)
            write_picture(picture_from_array(plot_HWC), self._part / FILE_NAMES["plot"], on_exists="overwrite")
        written = [name for name in FILE_NAMES.values() if (self._part / name).exists()]  # no video without frames
        for name in written:
            os.replace(self._part / name, self.folder / name)
        for name in FILE_NAMES.values() if self._clear else ():
            if name not in written and (self.folder / name).is_file():
                (self.folder / name).unlink()


class Curve:
    """Scores over time in bounded memory: when there are too many points, each two become their higher one.

    Args:
        limit: of points, even.
    """

    def __init__(self, limit: int = 4000) -> None:
        self._limit = limit
        self._points: list[tuple[float, float]] = []
        self._stride = 1  # frames to a point
        self._filled = 0  # frames in the last point

    def add(self, time_s: float, score: float) -> None:
        """Append a frame; a score of NaN leaves a gap unless it shares its point with others."""
        if self._points and self._filled < self._stride:
            self._points[-1] = _higher(self._points[-1], (time_s, score))
            self._filled += 1
            return
        if len(self._points) == self._limit:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_higher(*pair) for pair in pairs]
            self._stride *= 2
        self._points.append((time_s, score))
        self._filled = 1

    def points(self) -> tuple[list[float], list[float]]:
        """Times and scores."""
        return [time_s for time_s, _ in self._points], [score for _, score in self._points]


def events_as_json(
    events: Sequence[Event],
    *,
    source: str,
    fps: float | None,
    threshold: float,
    threshold_from: str,
    facts: Mapping[str, JSON] | None = None,
) -> dict[str, JSON]:
    """The report on one source.

    Returns:
        `source`, `fps`, `threshold`, `threshold_from`, the `facts`, and `events`: for each the fields of `Event`, its
        `length_s`, boxes with their four sides and score, and `start`, `end`, `peak` as H:MM:SS.mmm.
    """
    return {
        "source": shown(source),
        "fps": as_json(fps),
        "threshold": as_json(threshold),
        "threshold_from": threshold_from,
        **{key: as_json(value) for key, value in (facts or {}).items()},
        "events": [_event_as_json(event) for event in events],
    }


def _event_as_json(event: Event) -> dict[str, JSON]:
    times: dict[str, JSON] = {
        "start": time_text(event.start_s),
        "end": time_text(event.end_s),
        "peak": time_text(event.peak_s),
        "length_s": round(event.length_s, 3),
    }
    boxes = [{key: as_json(value) for key, value in box._asdict().items()} for box in event.boxes]
    fields = {key: as_json(value) for key, value in vars(event).items() if key != "boxes"}
    return {**times, **fields, "boxes": as_json(boxes)}


def _check(outputs: Collection[str]) -> None:
    if unknown := sorted(set(outputs) - set(ALL_OUTPUTS)):
        raise UsageError(f"unknown output {unknown[0]}; use {', '.join(ALL_OUTPUTS)}")


def _higher(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return other if math.isnan(one[1]) or other[1] > one[1] else one


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Failures of the file system as one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder}: cannot be written ({reason}); check the folder and its free space") from error
