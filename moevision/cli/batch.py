"""One batch on the terminal: plan, progress, results, summary, report, exit code. Shared by all image commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import typer
from rich.progress import TimeElapsedColumn

import moevision
from moevision.cli.common import logger, one_line, say
from moevision.cli.progress import progress_line
from moevision.engine.interrupts import Interruption
from moevision.engine.ledger import Ledger, settings_hash
from moevision.engine.names import IMAGE_SUFFIXES, shown
from moevision.engine.plan import Job, OnExists, Plan, plan
from moevision.engine.report import Report, check_report_path, items_of, shows_pictures, write_report
from moevision.engine.runner import Outcome, RunOptions, exit_code, remove_stale_parts, run
from moevision.engine.task import JSON, Task
from moevision.engine.thumbnails import Thumbnails
from moevision.errors import UsageError
from moevision.imaging.video import require_av

if TYPE_CHECKING:
    from rich.progress import Progress

    from moevision.imaging.picture import Picture

Judge: TypeAlias = "Callable[[PurePath, tuple[Picture, ...], Picture], dict[str, JSON]]"
"""From an input's path under the output folder, a job's pictures and the one made of them to more facts."""
Ending = Literal["completed", "interrupted"]
_MOST_LISTED = 50
_NAME_CHARACTERS = 30


@dataclass(frozen=True)
class BatchOptions:
    """The shared options of an image command."""

    output: Path
    recursive: bool = True
    on_exists: str = "fail"
    resume: bool = False
    format: str = "same"
    quality: int = 95
    strip_metadata: bool = False
    jobs: int = 2
    report: Path | None = None
    dry_run: bool = False
    quiet: bool = False
    debug: bool = False
    maps: dict[str, Path] = field(default_factory=dict)
    """Where the task's maps go, by name: a folder, or a file name where there is one output."""
    map_suffix: str = ".png"
    """Of the maps that go to a folder."""
    judge: Judge | None = None
    judged: Sequence[str] = ()
    """Facts whose means the summary tells."""


def run_batch(
    name: str, inputs: Sequence[str], options: BatchOptions, settings: dict[str, JSON], make_task: Callable[[], Task],
    *, planner: Callable[..., Plan] = plan,
) -> int:  # fmt: skip
    """Do everything one command was asked for and return the exit code.

    `settings` are the task's own; with the options that change an output's bytes they decide what `--resume` may skip.
    `planner` is `plan`, also with `videos=True` for a VideoTask, or `plan_pairs` for a task that takes two pictures.
    """
    began, started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if options.report is not None:
        check_report_path(options.report)
    settings = {
        "task": name,
        **settings,
        "format": options.format,
        "quality": options.quality,
        "strip_metadata": options.strip_metadata,
    }
    fingerprint = settings_hash(settings)
    todo = planner(
        expand_stdin(inputs),
        options.output,
        recursive=options.recursive,
        on_exists=cast(OnExists, options.on_exists),
        format=options.format,
        resume=fingerprint if options.resume else None,
    )
    if not (todo.jobs or todo.skipped or todo.refused):
        raise UsageError(
            "nothing to do: no image found; name image files, a folder that holds some, or a quoted pattern"
        )
    maps = {kind: _map_place(kind, path, todo, options.map_suffix) for kind, path in options.maps.items()}
    overwrites = options.on_exists == "overwrite"
    if not overwrites:
        _refuse_existing(todo.jobs, maps)
    if options.dry_run:
        return _show_plan(todo)
    outcomes: list[Outcome] = []
    run_options = RunOptions(
        options.quality,
        options.strip_metadata,
        read_ahead=options.jobs,
        maps=maps,
        replaces_beside=overwrites,
        judge=None if options.judge is None else _placed(options.judge, todo.root),
        thumbnails=Thumbnails(len(todo.jobs)) if shows_pictures(options.report) else None,
    )
    ending = _work(todo, make_task, options, run_options, fingerprint, outcomes) if todo.jobs else "completed"
    code = 130 if ending == "interrupted" else exit_code((o.status for o in outcomes), refused=bool(todo.refused))
    seconds = round(time.perf_counter() - began, 3)
    command = shlex.join(["moevision", *sys.argv[1:]])
    summary = Report(
        name, shown(command), settings, moevision.__version__, started, seconds, code, items_of(todo, outcomes)
    )
    _show_summary(summary, ending, outcomes, options)
    if options.report is not None:
        write_report(options.report, summary)
    return code


def expand_stdin(inputs: Sequence[str]) -> list[str]:
    """INPUTS with `-` replaced by the lines of stdin."""
    if inputs.count("-") > 1:
        raise UsageError("- (the list on stdin) can be given only once")
    expanded: list[str] = []
    for text in inputs:
        if text == "-":
            lines = sys.stdin.buffer.read().split(b"\n")
            expanded += [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
        else:
            expanded.append(text)
    return expanded


def _map_place(kind: str, path: Path, todo: Plan, suffix: str) -> Callable[[Job], Path]:
    """Where the map of each job goes: the file itself for one job, else under a folder as the outputs under theirs."""
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        if len(todo.jobs) > 1:
            raise UsageError(f"--{kind}-map {shown(path)} names one file, but there are several outputs; name a folder")
        return lambda job: path
    if path.exists() and not path.is_dir():
        raise UsageError(f"--{kind}-map {shown(path)}: not a folder; name a folder or a .png file")
    if os.path.realpath(path) == os.path.realpath(todo.root):
        raise UsageError(f"--{kind}-map {shown(path)}: the outputs go there; name another folder")
    return lambda job: path / job.output.relative_to(todo.root).with_suffix(suffix)


def _placed(judge: Judge, root: Path) -> Callable[[Job, tuple[Picture, ...], Picture], dict[str, JSON]]:
    """An output may have another suffix or a number; its folder and the input's name tell what was restored."""

    def placed(job: Job, pictures: tuple[Picture, ...], made: Picture) -> dict[str, JSON]:
        return judge(job.output.relative_to(root).parent / job.inputs[-1].name, pictures, made)

    return placed


def _refuse_existing(jobs: Sequence[Job], maps: dict[str, Callable[[Job], Path]]) -> None:
    """A map that cannot be written is known before the output that it belongs to is."""
    for kind, place in maps.items():
        for job in jobs:
            if not (job.replaces or job.is_video) and os.path.lexists(place(job)):
                raise UsageError(
                    f"{shown(place(job))} ({kind}) already exists; use --on-exists overwrite or another folder"
                )


def _work(
    todo: Plan, make_task: Callable[[], Task], options: BatchOptions, run_options: RunOptions, fingerprint: str,
    outcomes: list[Outcome],
) -> Ending:  # fmt: skip
    """Run the jobs, appending to `outcomes`, which also holds what was done before an interruption or an error."""
    with Interruption() as interruption:
        try:
            if any(job.is_video for job in todo.jobs):
                require_av()
            task = make_task()
            _make_folder(todo.root)
            # One named file leaves no ledger beside it, unless --resume will need it.
            keeps_ledger = options.resume or not todo.names_file
            with (
                Ledger(todo.root, fingerprint) if keeps_ledger else contextlib.nullcontext() as ledger,
                # A long period, because one large picture may take minutes.
                progress_line(TimeElapsedColumn(), quiet=options.quiet, period_s=900) as progress,
            ):
                if progress is not None:
                    progress.add_task("working", total=len(todo.jobs))
                beside = {place(job).parent for place in run_options.maps.values() for job in todo.jobs}
                for stale in remove_stale_parts({todo.root, *(job.output.parent for job in todo.jobs), *beside}):
                    logger.info("removed %s, left by a run that was killed", shown(stale))
                shaped = replace(run_options, follow=_frames_shown(progress))
                results = run(todo.jobs, task, shaped, ledger=ledger, interruption=interruption)
                with contextlib.closing(results):
                    for outcome in results:
                        outcomes.append(outcome)
                        _show_outcome(outcome, progress, options)
        except KeyboardInterrupt:
            return "interrupted"
    return "completed"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {shown(folder)}: cannot create this folder: {error.strerror}") from error


def _frames_shown(progress: Progress | None) -> Callable[[Job, int, int | None], None]:
    """Shows how far a video is on a line of its own below that of the jobs, which goes with its outcome."""

    def show(job: Job, frames: int, total: int | None) -> None:
        if progress is not None:
            if len(progress.task_ids) == 1:
                progress.add_task(one_line(job.inputs[0].name)[-_NAME_CHARACTERS:], total=total)
            progress.update(progress.task_ids[1], completed=frames)

    return show


def _show_outcome(outcome: Outcome, progress: Progress | None, options: BatchOptions) -> None:
    if progress is not None:
        progress.advance(progress.task_ids[0])
        for task_id in progress.task_ids[1:]:
            progress.remove_task(task_id)
    if outcome.status == "done":
        _print_result(outcome.job.output, progress, options)
        return
    kind = "bug" if outcome.status == "bug" else "failed"
    line = f"{kind}: {_sources(outcome)}: {outcome.reason}"
    if progress is not None:  # whoever watches need not wait for the list at the end
        progress.console.print(line, style="red")
    else:
        logger.info(line)
    if outcome.details and options.debug:
        say(outcome.details)


def _print_result(path: Path, progress: Progress | None, options: BatchOptions) -> None:
    if options.quiet:
        return
    if progress is not None and sys.stdout.isatty():
        progress.console.print(shown(path))  # above the bar instead of through it
    else:
        typer.echo(os.fsencode(path))


def _sources(outcome: Outcome) -> str:
    return " + ".join(shown(path) for path in outcome.job.inputs)


def _show_plan(todo: Plan) -> int:
    for job in todo.jobs:
        verb = "replaces" if job.replaces and os.path.lexists(job.output) else "->"
        typer.echo(f"{' + '.join(shown(path) for path in job.inputs)} {verb} {shown(job.output)}")
    for skip in todo.skipped:
        say(f"skipped: {shown(skip.job.output)}: {skip.reason}")
    for refusal in todo.refused:
        say(f"failed: {shown(refusal.path)}: {refusal.reason}")
    counts = f"{len(todo.jobs)} to do, {len(todo.skipped)} skipped, {len(todo.refused)} failed"
    say(f"dry run: {counts}; nothing was touched")
    return exit_code((), refused=bool(todo.refused))


def _show_summary(report: Report, ending: Ending, outcomes: Sequence[Outcome], options: BatchOptions) -> None:
    bad = [item for item in report.items if item.status in ("failed", "memory", "bug", "refused")]
    for item in bad[:_MOST_LISTED]:
        say(f"{'bug' if item.status == 'bug' else 'failed'}: {item.input}: {item.reason}", style="red")
    if len(bad) > _MOST_LISTED:
        say(f"... and {len(bad) - _MOST_LISTED} more; --report FILE lists them all", style="red")
    if any(outcome.details for outcome in outcomes) and not options.debug:
        say("a bug is ours, not yours: run with --debug for the traceback, and please report it")
    if options.quiet:
        return
    counts = report.counts()
    wordings = {"done": "done", "skipped": "skipped", "unstarted": "not begun"}
    parts = [f"{counts[status]} {wording}" for status, wording in wordings.items() if status in counts]
    parts += [f"{len(bad)} failed"] if bad else []
    again = "; --resume goes on from here" if "unstarted" in counts else ""
    means = report.means()
    if told := [f"{key} {means[key]:g}" for key in options.judged if key in means]:
        say(f"means: {', '.join(told)}")
    say(f"{'interrupted: ' if ending == 'interrupted' else ''}{', '.join(parts)} in {report.seconds:.1f} s{again}")
