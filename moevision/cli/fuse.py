"""`moevision fuse`: one picture from an infrared and a visible one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moevision.cli import common, completion
from moevision.errors import UsageError

if TYPE_CHECKING:
    from moevision.engine.task import JSON, Task

_COMPUTING = "Computing"
_Infrared = Annotated[str, typer.Argument(help="Infrared picture, or a folder of them.", show_default=False)]
_Visible = Annotated[
    str, typer.Argument(help="Visible picture, or a folder; names match without suffix.", show_default=False)
]
_Register = Annotated[
    str,
    typer.Option(
        "--register",
        help="Bring the infrared picture onto the visible one: none, ecc, or a JSON file with a 3x3 homography.",
        rich_help_panel=_COMPUTING,
        autocompletion=completion.one_of("none", "ecc"),
    ),
]
_ThermalRange = Annotated[
    str,
    typer.Option(
        "--thermal-range",
        help="Of 16-bit and float infrared: auto, full, or LOW,HIGH in its own units.",
        rich_help_panel=_COMPUTING,
        autocompletion=completion.one_of("auto", "full"),
    ),
]
_WeightsMap = Annotated[
    Path | None,
    typer.Option(
        "--weights-map",
        help="Also write who contributed where: white = visible. A .png file for one pair, else a folder.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
_Video = Annotated[
    bool,
    typer.Option(
        "--video",
        help="The two inputs are video files; -o names the fused video. Needs the extra 'video'.",
        rich_help_panel=_COMPUTING,
    ),
]


def fuse(
    infrared: _Infrared,
    visible: _Visible,
    output: common.Output,
    model: common.Model = "fusion-small",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    register: _Register = "none",
    thermal_range: _ThermalRange = "auto",
    weights_map: _WeightsMap = None,
    video: _Video = False,
    jobs: common.Jobs = 2,
    recursive: common.Recursive = True,
    on_exists: common.OnExists = "fail",
    resume: common.Resume = False,
    output_format: common.Format = "same",
    quality: common.Quality = 95,
    strip_metadata: common.StripMetadata = False,
    report: common.ReportFile = None,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Fuse infrared and visible pictures of the same view; the result looks like the visible one.

    Outputs are called as their visible picture. A picture without a partner is listed and left out; the exit code then
    is 3.
    """
    from moevision.cli.batch import BatchOptions, run_batch
    from moevision.engine.plan import plan_pairs

    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    asked: dict[str, Any] = {"model": model, "precision": precision, "tile_px": common.parse_tile(tile)}
    asked |= {"register": register, "thermal_range": thermal_range}
    if video:
        unfit = {
            "--weights-map": weights_map is not None, "--report": report is not None, "--resume": resume,
            "--dry-run": dry_run, "--format": output_format != "same", "--strip-metadata": strip_metadata,
        }  # fmt: skip
        if named := [option for option, given in unfit.items() if given]:
            raise UsageError(f"--video and {', '.join(named)} do not go together; leave one out")
        _fuse_videos(Path(infrared), Path(visible), output, {**asked, "device": device}, on_exists, quiet=quiet)
        return
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
        maps={} if weights_map is None else {"weights": weights_map},
    )
    settings: dict[str, JSON] = {**asked, "weights": common.fingerprint(model)}

    def make_task() -> Task:
        from moevision.api import fusion_task

        return fusion_task(device=device, **asked)

    if code := run_batch("fuse", [infrared, visible], options, settings, make_task, planner=plan_pairs):
        raise typer.Exit(code)


def _fuse_videos(
    infrared: Path, visible: Path, output: Path, asked: dict[str, Any], on_exists: str, *, quiet: bool
) -> None:
    """One pair of videos, with a line of progress where stderr is a terminal."""
    from moevision.api import fusion_task
    from moevision.tasks.fusion.video import fuse_video

    if output.exists() and on_exists != "overwrite":
        raise UsageError(f"{output}: exists already; choose another name or --on-exists overwrite")
    if any(output.exists() and path.exists() and output.samefile(path) for path in (infrared, visible)):
        raise UsageError(f"{output} would overwrite an input; choose another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    console = common.stderr_console()

    def say(frames: int, weight: float) -> None:
        if console.is_terminal and not quiet:
            console.print(f"frame {frames}, visible weight {weight:.2f}", end="\r")

    facts = fuse_video(fusion_task(**asked), infrared, visible, output, say=say)
    if not quiet:
        typer.echo(str(output))
        common.say(
            f"{facts['frames']} frames, {facts['dropped']} dropped, {facts['cuts']} cuts, "
            f"mean visible weight {facts['visible_weight']}"
        )
