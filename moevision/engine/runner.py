"""Does the jobs of a plan, one or a hundred thousand: reads ahead, runs the task, writes whole files, notes it down."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, cast

from moevision.engine.interrupts import Interruption
from moevision.engine.ledger import Ledger, stamps_of
from moevision.engine.names import shown
from moevision.engine.plan import Job
from moevision.engine.task import JSON, Task, TaskResult, VideoTask, as_json
from moevision.engine.thumbnails import Thumbnail, Thumbnails
from moevision.errors import InputError, MemoryExhaustedError, MissingExtraError, MoevisionError, WeightsError
from moevision.imaging.read import Picture, ReadLimits, read_picture
from moevision.imaging.write import write_picture

logger = logging.getLogger(__name__)

Status = Literal["done", "failed", "memory", "bug"]

_EXIT_CODES: dict[Status, int] = {"done": 0, "failed": 3, "memory": 5, "bug": 1}
_SEVERITY: tuple[Status, ...] = ("bug", "memory", "failed")
_HOPELESS_ERRNOS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PART_NAME = re.compile(r"\..*[^\d.]\d*\.(\d+)(?:\.\d+)?\.part(?:\.mp4)?", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    job: Job
    status: Status
    seconds: float
    facts: dict[str, JSON] = field(default_factory=dict)
    reason: str = ""
    details: str = ""
    """The traceback of a bug."""
    thumbnails: tuple[Thumbnail, ...] = ()
    """Where they were asked for, and the job is no video."""


@dataclass(frozen=True)
class RunOptions:
    """What shapes reading and writing, beside the task."""

    quality: int = 95
    strip_metadata: bool = False
    limits: ReadLimits = field(default_factory=ReadLimits)
    read_ahead: int = 1
    """How many pictures are decoded in the background while the task works; each costs its memory."""
    maps: Mapping[str, Callable[[Job], Path]] = field(default_factory=dict)
    """Which of a result's maps are written, and where to."""
    replaces_beside: bool = False
    """Whether maps, and what goes beside a video, may replace what is there even where the output itself is new."""
    follow: Callable[[Job, int, int | None], None] | None = None
    """Called with every frame of a video: how many are done, and how many there are as far as it is known."""
    judge: Callable[[Job, tuple[Picture, ...], Picture], Mapping[str, JSON]] | None = None
    """Called with a job's pictures and the one made of them, once that is written; what it says joins the facts."""
    thumbnails: Thumbnails | None = None
    """Makes what a report shows of every picture."""


class _Read(NamedTuple):
    pictures: tuple[Picture, ...]
    stamps: tuple[tuple[int, int], ...]


def run(
    jobs: Iterable[Job],
    task: Task,
    options: RunOptions | None = None,
    *,
    ledger: Ledger | None = None,
    interruption: Interruption | None = None,
) -> Generator[Outcome, None, None]:
    """Do `jobs` in order and yield each one's outcome as soon as it is known.

    A file that fails does not stop the others. The run ends early, without an outcome for the jobs not begun, when the
    disk is full or read-only; damaged weights, a missing extra and KeyboardInterrupt are raised.
    """
    options = options or RunOptions()
    interruption = interruption or Interruption()
    with contextlib.closing(_read_ahead(jobs, options)) as readings:
        for job, reading in readings:
            began = time.perf_counter()
            hopeless = False
            try:
                outcome = _do(job, reading, task, options, ledger, interruption, began)
            except (WeightsError, MissingExtraError):
                raise
            except Exception as error:
                outcome = _failure(job, error, time.perf_counter() - began)
                hopeless = _is_hopeless(error)
                if ledger is not None:
                    with contextlib.suppress(OSError):  # the disk may be full: the outcome is what counts
                        ledger.finish(
                            job.inputs, job.output, outcome.status, seconds=outcome.seconds, reason=outcome.reason
                        )
            yield outcome
            if hopeless:
                logger.error("stopped: nothing more can be written to %s", shown(job.output.parent))
                return


def exit_code(statuses: Iterable[Status], *, refused: bool = False) -> int:
    """The process's exit code for a run: the worst of its outcomes."""
    seen = set(statuses)
    worst: Status = next((status for status in _SEVERITY if status in seen), "done")
    return _EXIT_CODES[worst] or (_EXIT_CODES["failed"] if refused else 0)


def remove_stale_parts(folders: Iterable[Path]) -> list[Path]:
    """Delete what killed runs left in `folders`: `.{name}.{pid}.part` (videos: `.part.mp4`) of processes that are gone.

    Call it before a run writes.
    """
    removed = []
    for folder in sorted(set(folders)):
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                match = _PART_NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False) and not _is_alive(int(match[1])):
                    os.unlink(entry.path)
                    removed.append(Path(entry.path))
    return removed


def _do(
    job: Job,
    reading: Future[_Read],
    task: Task,
    options: RunOptions,
    ledger: Ledger | None,
    interruption: Interruption,
    began: float,
) -> Outcome:
    read = reading.result()
    result = None if job.is_video else task(read.pictures)
    thumbnails: tuple[Thumbnail, ...] = ()
    # A video is made and written in one, which takes long: it may be interrupted, and then is not there.
    with contextlib.nullcontext() if result is None else interruption.hold():
        if ledger is not None:
            ledger.begin(job.inputs, job.output)
        if result is None:
            facts = _make_video(job, cast("VideoTask", task), options)
        else:
            _write(job, result, options)
            facts = result.facts
        seconds = time.perf_counter() - began
        if result is not None:
            judged, thumbnails = _look(job, read.pictures, result, options)
            facts = {**facts, **judged}
        facts = {key: as_json(value) for key, value in facts.items()}
        if ledger is not None:
            ledger.finish(job.inputs, job.output, "done", stamps=read.stamps, seconds=seconds, facts=facts)
    return Outcome(job, "done", seconds, facts, thumbnails=thumbnails)


def _look(
    job: Job, pictures: tuple[Picture, ...], result: TaskResult, options: RunOptions
) -> tuple[Mapping[str, JSON], tuple[Thumbnail, ...]]:
    """What is to be said and shown of a picture that is written; whatever goes wrong here does not lose it."""
    judged: Mapping[str, JSON] = {}
    thumbnails: tuple[Thumbnail, ...] = ()
    try:
        if options.judge is not None:
            judged = options.judge(job, pictures, result.picture)
        if options.thumbnails is not None:
            thumbnails = options.thumbnails.of(pictures, result)
    except Exception as error:
        logger.warning("%s is written, but cannot be judged or shown: %s", shown(job.output), error, exc_info=True)
    return judged, thumbnails


def _write(job: Job, result: TaskResult, options: RunOptions) -> None:
    """The picture and its maps; where one cannot be written, none stays that was not there before."""
    appeared: list[Path] = []
    try:
        with _noting_new(job.output, appeared):
            write_picture(
                result.picture,
                job.output,
                quality=options.quality,
                strip_metadata=options.strip_metadata,
                on_exists="overwrite" if job.replaces else "fail",
            )
        for name, place in options.maps.items():
            path, replaces = place(job), job.replaces or options.replaces_beside
            with _noting_new(path, appeared):
                _write_map(name, result.maps[name], path, replaces=replaces)
    except BaseException:
        for path in appeared:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


@contextlib.contextmanager
def _noting_new(path: Path, appeared: list[Path]) -> Generator[None, None, None]:
    """For a block that writes `path`, whose folder is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    was_there = os.path.lexists(path)
    yield
    if not was_there:
        appeared.append(path)


def _write_map(name: str, picture: Picture, path: Path, *, replaces: bool) -> None:
    try:
        write_picture(picture, path, on_exists="overwrite" if replaces else "fail")
    except InputError as error:
        raise InputError(f"{error}, or do without the {name}") from error


def _make_video(job: Job, task: VideoTask, options: RunOptions) -> dict[str, JSON]:
    job.output.parent.mkdir(parents=True, exist_ok=True)

    def follow(frames: int, total: int | None) -> None:
        if options.follow is not None:
            options.follow(job, frames, total)

    replaces = job.replaces or options.replaces_beside
    return task.video(job.inputs[0], job.output, replaces=replaces, follow=follow)


def _read_ahead(jobs: Iterable[Job], options: RunOptions) -> Generator[tuple[Job, Future[_Read]], None, None]:
    """Jobs with their pictures being read: never more than `read_ahead` beyond the one in work."""
    depth = max(1, options.read_ahead)
    pool = ThreadPoolExecutor(depth, thread_name_prefix="read")
    waiting: deque[tuple[Job, Future[_Read]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(_read, job, options.limits)))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(job: Job, limits: ReadLimits) -> _Read:
    stamps = stamps_of(job.inputs)  # before reading: an edit while we read then counts as a change
    return _Read(() if job.is_video else tuple(read_picture(path, limits) for path in job.inputs), stamps)


def _failure(job: Job, error: Exception, seconds: float) -> Outcome:
    details = ""
    status: Status = "failed"
    if isinstance(error, MemoryExhaustedError | MemoryError):
        status, reason = "memory", str(error) or "not enough memory for this picture"
    elif isinstance(error, MoevisionError):
        reason = str(error)
    elif isinstance(error, OSError):
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    else:
        status, reason = "bug", f"{type(error).__name__}: {error}"
        details = "".join(traceback.format_exception(error))
    if len(job.inputs) == 1:  # it is named beside the reason anyway; of a pair the reason says which one
        reason = reason.removeprefix(f"{job.inputs[0]}: ")
    return Outcome(job, status, seconds, reason=shown(reason), details=details)


def _is_hopeless(error: BaseException | None) -> bool:
    """Whether every further write must fail like this one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _HOPELESS_ERRNOS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_alive(process_id: int) -> bool:
    if os.name == "nt":  # there, signal 0 is no question but a Ctrl-C
        return True
    if process_id == os.getpid():  # a container gives every run the same number, and we have written nothing yet
        return False
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
