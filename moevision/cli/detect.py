"""`moevision detect`: what does not belong in a video."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moevision.cli import common
from moevision.errors import InputError, UsageError

if TYPE_CHECKING:
    from moevision.cli.progress import FrameProgress
    from moevision.imaging.sources import VideoSource
    from moevision.tasks.anomaly.predict import Detection, Scored

_COMPUTING, _OUTPUT = "Computing", "Output"
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_Sources = Annotated[
    list[str],
    typer.Argument(
        help="Video files, folders of pictures, camera:0, or addresses such as rtsp://...", show_default=False
    ),
]
_Folder = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder for what is found; made if it is missing.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
_Site = Annotated[
    Path | None,
    typer.Option(
        "--site",
        help="What is normal there, a file of 'moevision anomaly-fit'; without it, what is normal at the camera that "
        "the model was trained on.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A name from 'moevision models' or a .safetensors file; only needed if the calibration's own does not lie "
        "beside it.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_FalseAlarms = Annotated[
    float,
    typer.Option(
        "--false-alarms-per-hour",
        help="Sets the threshold: how many alarms normal footage may give.",
        rich_help_panel=_COMPUTING,
    ),
]
_PValue = Annotated[
    float | None,
    typer.Option(
        "--p-value",
        help="Sets the threshold by the share of normal frames above it instead, such as 0.001.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_Outputs = Annotated[str, typer.Option("--outputs", help="What to write, a list.", rich_help_panel=_OUTPUT)]
OnExists = Annotated[
    str, typer.Option("--on-exists", help="If an output exists: fail or overwrite.", rich_help_panel=_OUTPUT)
]
Fps = Annotated[
    float,
    typer.Option("--fps", min=0.01, help="Frames a second of folders of pictures.", rich_help_panel=_COMPUTING),
]
_Duration = Annotated[
    float | None,
    typer.Option(
        "--duration",
        min=0.001,
        help="Stop after so many seconds of every source.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]


def detect(
    sources: _Sources,
    output: _Folder,
    site: _Site = None,
    model: _OwnModel = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    false_alarms_per_hour: _FalseAlarms = 6.0,
    p_value: _PValue = None,
    outputs: _Outputs = "scores,events,heat,plot",
    fps: Fps = 25.0,
    duration: _Duration = None,
    on_exists: OnExists = "fail",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Find what does not belong in a surveillance video, from files or live.

    Writes scores.csv, events.json, heat.mp4 and scores.png (the plot) to the output folder; of several sources each to
    a folder of its own in there. Events are printed as they end. A source that cannot be read does not stop the others;
    the exit code then is 3. Of one that breaks off, or at Ctrl-C, what was found until then is written.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import anomaly_detector
    from moevision.cli.progress import frame_progress
    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly.outputs import FILE_NAMES, DetectionWriter, parse_outputs
    from moevision.tasks.anomaly.predict import detect as run

    wanted = parse_outputs(outputs)
    overwrite = overwrites(on_exists)
    # To overwrite takes away what an earlier run wrote and this one does not.
    touched = FILE_NAMES.values() if overwrite else [FILE_NAMES[name] for name in wanted]
    folders = _folders(sources, output, touched, overwrite=overwrite)
    detector, threshold = anomaly_detector(
        model=model, site=site, device=device, precision=precision, false_alarms_per_hour=false_alarms_per_hour,
        p_value=p_value,
    )  # fmt: skip
    if not quiet:
        common.say(
            f"threshold {threshold.value:.2f} (95 % interval {threshold.low:.2f} to {threshold.high:.2f}) for "
            f"{threshold.asked}, from {60 * detector.site.hours:.1f} minutes of normal footage"
        )
    failed = 0
    for text, folder in zip(sources, folders, strict=True):
        try:
            with (
                open_source(text, fps=fps) as source,
                _stop_at_interrupt(source) as interrupted,
                frame_progress(quiet=quiet, duration_s=duration) as progress,
            ):
                if source.is_live and duration is None and text != sources[-1]:
                    raise UsageError(f"{source.name}: is live, what is named after it would wait; name it alone")
                with DetectionWriter.for_source(
                    folder, source, detector.site, threshold, wanted, clear=overwrite
                ) as writer:
                    found = run(
                        source, detector, threshold, writer, keep_scores=False, duration_s=duration,
                        say=None if quiet else _follow(source, progress),
                    )  # fmt: skip
            failed += _summarise(source, found, writer.frames, quiet=quiet)
            if interrupted:
                if not quiet:
                    common.say("interrupted; what was found until then is written")
                raise typer.Exit(130)
        except InputError as error:
            failed += 1
            common.say(f"failed: {common.one_line(str(error))}", style="red")
    if failed:
        raise typer.Exit(3)


def overwrites(on_exists: str) -> bool:
    """Whether the option says so. UsageError: it is neither fail nor overwrite."""
    if on_exists not in ("fail", "overwrite"):
        raise UsageError(f"--on-exists {on_exists}: use fail or overwrite")
    return on_exists == "overwrite"


def _folders(sources: list[str], output: Path, names: Collection[str], *, overwrite: bool) -> list[Path]:
    """One output folder a source, refused before any work where it is taken or where it would change a source."""
    from moevision.imaging.sources import local_name

    folders = [output]
    if len(sources) > 1:
        called = [_called(text) for text in sources]
        folders = [output / name for name in called]
        folded = [name.casefold() for name in called]  # some file systems do not tell A from a
        if doubled := sorted({name for name in folded if folded.count(name) > 1}):
            raise UsageError(f"-o {output}: several sources are called {doubled[0]}; detect them one by one")
    inputs = {os.path.realpath(local_name(text)) for text in sources}
    for folder in (output, *folders):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"-o {folder}: not a folder; name a folder")
        if inputs & {os.path.realpath(path) for path in (folder, *(folder / name for name in names))}:
            raise UsageError(f"-o {folder}: a source would be changed; name another folder")
        taken = [name for name in names if folder in folders and (folder / name).exists()]
        if taken and not overwrite:
            raise UsageError(f"{folder / taken[0]}: exists already; choose another folder or --on-exists overwrite")
    return folders


def _called(text: str) -> str:
    """What the folder of one source of several is called: the file's stem, the folder's name, the address."""
    from moevision.imaging.sources import shown_address

    if "://" in text or text.startswith("camera:"):
        address = shown_address(text) if "://" in text else text
        name = re.sub(r"[^\w.]+", "-", address.removeprefix("file://"))[-100:]
    else:
        path = Path(os.path.abspath(text))
        name = path.name if path.is_dir() else path.stem
    return name.strip("-.") or "source"


@contextlib.contextmanager
def _stop_at_interrupt(source: VideoSource) -> Iterator[list[int]]:
    """While it lasts, a signal to stop ends the source, so that what was found is written; it is noted in the list."""
    interrupted: list[int] = []

    def stop(number: int, _: object) -> None:
        if interrupted:  # the second time at once
            raise KeyboardInterrupt
        interrupted.append(number)
        source.close()

    # Who started us with a signal ignored, as nohup does, means it.
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield interrupted
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _follow(source: VideoSource, progress: FrameProgress) -> Callable[[Scored], None]:
    """Shows how far the source is, and prints events as they end."""
    from moevision.tasks.anomaly.outputs import time_text

    shown = common.one_line(source.name)

    def follow(scored: Scored) -> None:
        progress.show(source, scored.score.number + 1)
        if (event := scored.ended) is not None:
            where = ""
            if event.boxes:
                left, top, right, bottom, _ = event.boxes[0]
                where = f", at {left},{top} to {right},{bottom}"
            progress.echo(
                f"{shown}: {time_text(event.start_s)} to {time_text(event.end_s)}, score {event.peak_score:.2f}{where}"
            )

    return follow


def _summarise(source: VideoSource, found: Detection, frames: int, *, quiet: bool) -> bool:
    """Say what was found; returns whether the source broke off."""
    shown = common.one_line(source.name)
    if not quiet:
        parts = [_counted(frames, "frame"), _counted(len(found.events), "event")]
        counts = {"dropped": source.dropped, "reconnects": source.reconnects, "disturbed": found.disturbed}
        line = ", ".join(parts + [f"{n} {what}" for what, n in counts.items() if n])
        common.say(f"{shown}: {line}")
    if found.broken_off is not None:
        note = common.one_line(found.broken_off)
        common.say(f"failed: {shown}: broke off {note} (the outputs reach until there)", style="red")
    return found.broken_off is not None


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
