"""`moevision anomaly-fit`: what is normal at a camera."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated

import typer

from moevision.cli import common, completion
from moevision.cli.detect import Fps, OnExists, overwrites
from moevision.errors import UsageError

_Recordings = Annotated[
    list[str],
    typer.Argument(help="What one camera recorded: video files or folders of pictures.", show_default=False),
]


def anomaly_fit(
    sources: _Recordings,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The calibration to write, a .json file.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A name from 'moevision models', a .safetensors file, or none: then only what moves, and how fast, "
            "counts.",
            autocompletion=completion.models_or_none,
        ),
    ] = "anomaly-ped2",
    fine_tune: Annotated[
        int,
        typer.Option(
            "--fine-tune",
            min=0,
            help="Steps to train the network for this camera first, on four fifths of the recordings; 0 = not at all. "
            "It is written beside the calibration.",
        ),
    ] = 0,
    fps: Fps = 25.0,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    seed: common.Seed = 0,
    on_exists: OnExists = "fail",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Learn what is normal at one camera from its recordings of ordinary days: for 'moevision detect --site'.

    An hour of footage is good, minutes are a start: the threshold's interval tells. Nothing unusual may be in it.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import fit_site
    from moevision.cli.progress import frame_progress

    overwrite = overwrites(on_exists)
    weights = output.with_suffix(".safetensors")
    _check_place(output, [output, weights] if fine_tune else [output], overwrite=overwrite)
    say = common.logger.debug if quiet else common.say
    if fine_tune:
        sources = _fine_tuned(sources, model, weights, steps=fine_tune, seed=seed, fps=fps, say=say)
        model = str(weights)
    with frame_progress(quiet=quiet) as progress:
        site = fit_site(
            sources, output, model=model, device=device, precision=precision, fps=fps, say=say, seen=progress.show
        )
    if not quiet:
        typer.echo(str(output))
        threshold = site.threshold_for_rate(6)
        common.say(
            f"{60 * site.hours:.1f} minutes of normal footage at {site.fps:g} frames a second; threshold for 6 false "
            f"alarms an hour {threshold.value:.2f} (95 % interval {threshold.low:.2f} to {threshold.high:.2f})"
        )


def _check_place(output: Path, files: Collection[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, a calibration that cannot be written there."""
    if output.suffix.lower() != ".json":
        raise UsageError(f"-o {output}: name a .json file")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder; make it first")
    for path in files:
        if path.is_dir():
            raise UsageError(f"{path}: a folder has that name; choose another")
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists already; choose another name for -o or --on-exists overwrite")


def _fine_tuned(
    sources: list[str], model: str, weights: Path, *, steps: int, seed: int, fps: float, say: Callable[[str], None]
) -> list[str]:
    """Train on four fifths of the recordings and write the weights; returns those that are left to calibrate on."""
    from moevision.checkpoint import check_task, read_task
    from moevision.tasks.anomaly.train import fine_tune

    if model == "none":
        raise UsageError("--fine-tune needs a network; leave out --model none")
    check_task(model, read_task(model), "anomaly")  # before the footage is read
    part = weights.with_name(f".{weights.stem}.{os.getpid()}.part.safetensors")
    try:
        kept = fine_tune(sources, model, part, steps=steps, seed=seed, fps=fps, say=say)
        os.replace(part, weights)
    finally:
        part.unlink(missing_ok=True)
    return kept
