"""`moevision detect` and `moevision anomaly-fit`: what does not belong in a video, and what is normal at a camera."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moevision.cli import common
from moevision.errors import InputError, MoevisionError, UsageError

if TYPE_CHECKING:
    from moevision.imaging.sources import VideoSource
    from moevision.tasks.anomaly.predict import Detection, Scored

_COMPUTING = "Computing"
_Sources = Annotated[
    list[str],
    typer.Argument(
        help="Video files, folders of pictures, camera:0, or addresses such as rtsp://...", show_default=False
    ),
]
_Site = Annotated[
    Path | None,
    typer.Option(
        "--site",
        help="What is normal there, from 'moevision anomaly-fit'; without it, the camera of the shipped model.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A name from 'moevision models' or a .safetensors file; the calibration knows its own.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_FalseAlarms = Annotated[
    float,
    typer.Option(
        "--false-alarms-per-hour", help="What the threshold is to give on normal footage.", rich_help_panel=_COMPUTING
    ),
]
_PValue = Annotated[
    float | None,
    typer.Option(
        "--p-value",
        help="Share of normal frames above the threshold, instead of a rate of alarms.",
        show_default=False,
        rich_help_panel=_COMPUTING,
    ),
]
_Outputs = Annotated[
    str, typer.Option("--outputs", help="Of scores,events,heat,plot those to write.", rich_help_panel="Output")
]
_Fps = Annotated[
    float, typer.Option("--fps", min=0.01, help="Frames a second of a folder of pictures.", rich_help_panel=_COMPUTING)
]
_Duration = Annotated[
    float | None,
    typer.Option(
        "--duration", min=0.0, help="Stop after so many seconds.", show_default=False, rich_help_panel=_COMPUTING
    ),
]


def detect(
    sources: _Sources,
    output: common.Output,
    site: _Site = None,
    model: _OwnModel = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    false_alarms_per_hour: _FalseAlarms = 6.0,
    p_value: _PValue = None,
    outputs: _Outputs = "scores,events,heat,plot",
    fps: _Fps = 25.0,
    duration: _Duration = None,
    on_exists: common.OnExists = "fail",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Find what does not belong in a surveillance video, from files or live.

    Writes scores.csv, events.json, heat.mp4 and scores.png to the output folder; of several sources each to a folder of
    its own. Events are printed as they end. A source that cannot be read does not stop the others; the exit code then
    is 3.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import anomaly_detector
    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly.outputs import DetectionWriter
    from moevision.tasks.anomaly.predict import detect as run

    wanted: Any = tuple(name.strip() for name in outputs.split(",") if name.strip())
    folders = _folders(sources, output, on_exists)
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
            with open_source(text, fps=fps) as source, _stop_at_interrupt(source) as interrupted:
                with DetectionWriter.for_source(folder, source, detector.site, threshold, wanted) as writer:
                    found = run(
                        source, detector, threshold, writer, keep_scores=False, duration_s=duration,
                        say=None if quiet else _say_event(source.name),
                    )  # fmt: skip
                _summarise(source, found, writer.frames, quiet=quiet)
            if interrupted:
                raise typer.Exit(130)
        except InputError as error:
            failed += 1
            common.say(f"failed: {common.one_line(str(error))}", style="red")
    if failed:
        raise typer.Exit(3)


def anomaly_fit(
    sources: _Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibration, a .json file.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", help="A name from 'moevision models', a .safetensors file, or none.")
    ] = "anomaly-ped2",
    fine_tune: Annotated[
        int,
        typer.Option(
            "--fine-tune",
            min=0,
            help="Steps to train the network on four fifths of the footage first; it is written beside the output.",
        ),
    ] = 0,
    fps: _Fps = 25.0,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    seed: common.Seed = 0,
    on_exists: common.OnExists = "fail",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Learn what is normal at one camera from its footage of ordinary days; an hour is good, minutes are a start."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import load
    from moevision.checkpoint import file_sha256, find_weights
    from moevision.devices import pick_device, pick_precision
    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly.fit import fit_site

    if output.exists() and on_exists != "overwrite":
        raise UsageError(f"{output}: exists already; choose another name or --on-exists overwrite")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder; make it first")
    say = common.logger.debug if quiet else common.say
    if fine_tune:
        model, sources = _fine_tuned(sources, model, output, fine_tune, seed, fps)
    descriptor, name, sha256 = None, "", ""
    if model != "none":
        path, entry = find_weights(model)
        descriptor, sha256 = load(model, device=device), file_sha256(path)
        name = entry["name"] if entry else path.name
    torch_device = pick_device(device)
    site = fit_site(
        [partial(open_source, text, fps=fps) for text in sources], descriptor, model=name,
        model_sha256=sha256, device=torch_device, dtype=pick_precision(torch_device, precision), say=say,
    )  # fmt: skip
    site.write(output)
    if not quiet:
        typer.echo(str(output))
        threshold = site.threshold_for_rate(6)
        common.say(
            f"{60 * site.hours:.1f} minutes of normal footage at {site.fps:g} frames a second; threshold for 6 false "
            f"alarms an hour {threshold.value:.2f} (95 % interval {threshold.low:.2f} to {threshold.high:.2f})"
        )


def _folders(sources: list[str], output: Path, on_exists: str) -> list[Path]:
    """One output folder a source, refused before any work where it is taken."""
    if len(sources) == 1:
        folders = [output]
    else:
        from moevision.imaging.sources import shown_address

        stems = [Path(shown_address(text).rstrip("/")).stem.replace(":", "-") or "source" for text in sources]
        folders = [output / stem for stem in stems]
        if doubled := sorted({stem for stem in stems if stems.count(stem) > 1}):
            raise UsageError(f"-o {output}: several sources are called {doubled[0]}; give them folders of their own")
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"-o {folder}: not a folder; name a folder")
        taken = [name for name in ("scores.csv", "events.json", "heat.mp4", "scores.png") if (folder / name).exists()]
        if taken and on_exists != "overwrite":
            raise UsageError(f"{folder / taken[0]}: exists already; choose another folder or --on-exists overwrite")
    return folders


@contextlib.contextmanager
def _stop_at_interrupt(source: VideoSource) -> Iterator[list[int]]:
    """While it lasts, an interrupt ends the source, so that what was found is written; the list then is not empty."""
    interrupted: list[int] = []

    def stop(number: int, _: object) -> None:
        if interrupted:  # the second time at once
            raise KeyboardInterrupt
        interrupted.append(number)
        source.close()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _say_event(name: str) -> Any:
    from moevision.tasks.anomaly.outputs import time_text

    def say(scored: Scored) -> None:
        if (event := scored.ended) is not None:
            where = ""
            if event.boxes:
                left, top, right, bottom, _ = event.boxes[0]
                where = f", at {left},{top} to {right},{bottom}"
            typer.echo(
                f"{name}: {time_text(event.start_s)} to {time_text(event.end_s)}, score {event.peak_score:.2f}{where}"
            )

    return say


def _summarise(source: VideoSource, found: Detection, frames: int, *, quiet: bool) -> None:
    if quiet:
        return
    parts = [f"{frames} frames", f"{len(found.events)} events"]
    counts = {"dropped": source.dropped, "reconnects": source.reconnects, "disturbed": found.disturbed}
    common.say(f"{source.name}: " + ", ".join(parts + [f"{n} {what}" for what, n in counts.items() if n]))


def _fine_tuned(
    sources: list[str], model: str, output: Path, steps: int, seed: int, fps: float
) -> tuple[str, list[str]]:
    """Weights trained on four fifths of the clips, and the clips that are left to calibrate on."""
    from moevision.tasks.anomaly.train import fine_tune

    if model == "none":
        raise UsageError("--fine-tune needs a network; leave out --model none")
    weights = output.with_suffix(".safetensors")
    if weights.exists():
        raise UsageError(f"{weights}: exists already; move it away or choose another name for -o")
    try:
        kept = fine_tune(sources, model, weights, steps=steps, seed=seed, fps=fps, say=common.say)
    except MoevisionError:
        weights.unlink(missing_ok=True)
        raise
    return str(weights), kept
