"""A line of progress on stderr, where that is a terminal: what is done, of how much, and the time left."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from moevision.cli.common import one_line, stderr_console

if TYPE_CHECKING:
    from moevision.imaging.sources import VideoSource

_NAME_CHARACTERS = 30


@contextlib.contextmanager
def progress_line(*more: ProgressColumn, quiet: bool, period_s: float = 30.0) -> Iterator[Progress | None]:
    """A bar with what `more` shows and the time left, as the last `period_s` went; None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn(),
    )  # fmt: skip
    # stdout is ours, it may be a pipe.
    with Progress(
        *columns, console=stderr_console(), speed_estimate_period=period_s, redirect_stdout=False, transient=True
    ) as progress:
        yield progress


class FrameProgress:
    """One line for the source that is being read: frames done and in all, as far as it says, and frames a second.

    Args:
        progress: None shows nothing.
        duration_s: of every source that is read.
    """

    def __init__(self, progress: Progress | None, duration_s: float | None = None) -> None:
        self._progress, self._duration_s = progress, duration_s

    def show(self, source: VideoSource, frames: int) -> None:
        """So many frames of the source are done; with its first frame a new line begins."""
        if self._progress is None:
            return
        if frames == 1:
            for task_id in self._progress.task_ids:
                self._progress.remove_task(task_id)
            self._progress.add_task(one_line(source.name)[-_NAME_CHARACTERS:], total=self._total(source))
        self._progress.update(self._progress.task_ids[0], completed=frames)

    def echo(self, line: str) -> None:
        """A result to stdout; where that is the terminal, too, above the line of progress instead of through it."""
        if self._progress is not None and sys.stdout.isatty():
            self._progress.console.print(line)
        else:
            typer.echo(line)

    def _total(self, source: VideoSource) -> int | None:
        wanted = None
        if self._duration_s is not None and source.fps is not None:
            wanted = math.ceil(self._duration_s * source.fps)
        return min((n for n in (source.frame_count, wanted) if n is not None), default=None)


@contextlib.contextmanager
def frame_progress(*, quiet: bool, duration_s: float | None = None) -> Iterator[FrameProgress]:
    """A FrameProgress that shows something where stderr is a terminal."""
    with progress_line(_FramesPerSecond(), quiet=quiet) as progress:
        yield FrameProgress(progress, duration_s)


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} frames/s")
