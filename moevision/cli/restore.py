"""`moevision restore`: rain, raindrops, snow and haze out of photographs."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moevision.cli import common

if TYPE_CHECKING:
    from moevision.cli.batch import Judge
    from moevision.engine.task import JSON, Task
    from moevision.imaging.picture import Picture

_Strength = Annotated[
    float,
    typer.Option(
        "--strength", min=0.0, max=1.0, help="1 = all of the effect, 0 = the input.", rich_help_panel="Computing"
    ),
]
_TruthFolder = Annotated[
    Path | None,
    typer.Option(
        "--truth",
        help="Folder with the true pictures under the same names: PSNR and SSIM become columns of the report.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
_ExpertsMap = Annotated[
    Path | None,
    typer.Option(
        "--experts-map",
        help="Also write which expert came first where, a colour for each. A .png file for one picture, else a folder.",
        show_default=False,
        rich_help_panel="Output",
    ),
]


def restore(
    inputs: common.Inputs,
    output: common.Output,
    model: common.Model = "restoration-small",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    strength: _Strength = 1.0,
    weather: common.Weather = "auto",
    runtime: common.Runtime = "torch",
    experts_map: _ExpertsMap = None,
    jobs: common.Jobs = 2,
    recursive: common.Recursive = True,
    on_exists: common.OnExists = "fail",
    resume: common.Resume = False,
    output_format: common.Format = "same",
    quality: common.Quality = 95,
    strip_metadata: common.StripMetadata = False,
    report: common.ReportFile = None,
    truth: _TruthFolder = None,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Restore photographs taken in rain, raindrops, snow or haze.

    Inputs are never changed, and outputs appear whole or not at all. One bad file does not stop the others; the exit
    code then is 3. Results (the output paths) go to stdout, everything else to stderr.
    """
    from moevision.cli.batch import BatchOptions, run_batch

    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    judge, judged = _judge(truth)
    tile_px, told = common.parse_tile(tile), common.parse_weather(weather)
    options = BatchOptions(
        output=output,
        recursive=recursive,
        on_exists=on_exists,
        resume=resume,
        format=output_format,
        quality=quality,
        strip_metadata=strip_metadata,
        jobs=jobs,
        report=report,
        dry_run=dry_run,
        quiet=quiet,
        debug=debug,
        judge=judge,
        judged=judged,
        maps={} if experts_map is None else {"experts": experts_map},
    )
    asked: dict[str, Any] = {"model": model, "precision": precision, "tile_px": tile_px}
    asked |= {"strength": strength, "weather": told, "runtime": runtime}
    settings: dict[str, JSON] = {**asked, "weights": common.fingerprint(model)}

    def make_task() -> Task:
        from moevision.api import restoration_task

        return restoration_task(device=device, experts_map=experts_map is not None, **asked)

    if code := run_batch("restore", inputs, options, settings, make_task):
        raise typer.Exit(code)


def _judge(folder: Path | None) -> tuple[Judge | None, tuple[str, ...]]:
    """What compares with the true pictures in `folder`, if there is one, and the facts that it yields."""
    if folder is None:
        return None, ()
    from moevision.tasks.restoration.truth import METRICS, Truth

    truth = Truth(folder)

    def judge(name: PurePath, pictures: tuple[Picture, ...], made: Picture) -> dict[str, JSON]:
        return truth.judge(name, pictures[0], made)

    return judge, METRICS
