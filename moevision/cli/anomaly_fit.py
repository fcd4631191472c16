"""`moevision anomaly-fit`: what is normal at a camera."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moevision.cli import common
from moevision.cli.detect import Fps, OnExists, overwrites
from moevision.errors import UsageError

if TYPE_CHECKING:
    from moevision.checkpoint import ModelDescriptor

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
    from moevision.api import anomaly_precision
    from moevision.checkpoint import file_sha256, find_weights
    from moevision.cli.progress import frame_progress
    from moevision.devices import pick_device
    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly.fit import fit_site

    overwrite = overwrites(on_exists)
    weights = output.with_suffix(".safetensors")
    _check_place(output, [output, weights] if fine_tune else [output], overwrite=overwrite)
    say = common.logger.debug if quiet else common.say
    if fine_tune:
        sources = _fine_tuned(sources, model, weights, steps=fine_tune, seed=seed, fps=fps, say=say)
        model = str(weights)
    descriptor, name, sha256 = None, "", ""
    if model != "none":
        path, entry = find_weights(model)
        descriptor, sha256 = _network(model, device), file_sha256(path)
        name = entry["name"] if entry else path.name
    torch_device = pick_device(device)
    with frame_progress(quiet=quiet) as progress:
        site = fit_site(
            [partial(open_source, text, fps=fps) for text in sources], descriptor, model=name, model_sha256=sha256,
            device=torch_device, dtype=anomaly_precision(torch_device, precision), say=say, seen=progress.show,
        )  # fmt: skip
    site.write(output)
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


def _network(model: str, device: str) -> ModelDescriptor:
    from moevision.api import load

    descriptor = load(model, device=device)
    if descriptor.task != "anomaly":
        raise UsageError(f"{model}: a {descriptor.task} model; choose an anomaly model from `moevision models`")
    return descriptor


def _fine_tuned(
    sources: list[str], model: str, weights: Path, *, steps: int, seed: int, fps: float, say: Callable[[str], None]
) -> list[str]:
    """Train on four fifths of the recordings and write the weights; returns those that are left to calibrate on."""
    from moevision.tasks.anomaly.train import fine_tune

    if model == "none":
        raise UsageError("--fine-tune needs a network; leave out --model none")
    _network(model, "cpu")  # other weights are refused before the footage is read
    part = weights.with_name(f".{weights.stem}.{os.getpid()}.part.safetensors")
    try:
        kept = fine_tune(sources, model, part, steps=steps, seed=seed, fps=fps, say=say)
        os.replace(part, weights)
    finally:
        part.unlink(missing_ok=True)
    return kept
