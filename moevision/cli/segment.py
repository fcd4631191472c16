"""`moevision segment`: the class of every pixel of pictures and videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moevision.cli import common, completion
from moevision.errors import UsageError

if TYPE_CHECKING:
    from moevision.engine.task import JSON, Task
    from moevision.tasks.segmentation.predict import SegmentationTask

_COMPUTING, _OUTPUT = "Computing", "Output"
OVERLAY_FOLDER = "overlay"
_Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Pictures, videos, folders, quoted patterns such as 'photos/**/*.jpg', or - for a list on stdin.",
        show_default=False,
    ),
]
_Restore = Annotated[
    str,
    typer.Option(
        "--restore",
        help="Restore every picture first: off, auto = what weather is detected, or a list such as rain,haze.",
        rich_help_panel=_COMPUTING,
        autocompletion=completion.weathers("off", "auto"),
    ),
]
_RestoreModel = Annotated[
    str,
    typer.Option(
        "--restore-model",
        help="What --restore works with: a name from 'moevision models' or a .safetensors file.",
        rich_help_panel=_COMPUTING,
        autocompletion=completion.restorers,
    ),
]
_Overlay = Annotated[
    bool | None,
    typer.Option(
        "--overlay/--no-overlay",
        help="Also write the classes' colours over the pictures, to overlay/*.jpg; on, but for one named file.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
_Palette = Annotated[
    bool,
    typer.Option(
        "--palette",
        help="Put the classes' colours into the pictures of ids: viewers show them, Pillow still reads ids, but OpenCV "
        "and others read the colours.",
        rich_help_panel=_OUTPUT,
    ),
]


def segment(
    inputs: _Inputs,
    output: common.Output,
    model: common.Model = "segmentation-camvid",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    runtime: common.Runtime = "torch",
    size: common.Size = None,
    experts: common.Experts = None,
    restore: _Restore = "off",
    restore_model: _RestoreModel = "restoration-small",
    overlay: _Overlay = None,
    palette: _Palette = False,
    jobs: common.Jobs = 2,
    recursive: common.Recursive = True,
    on_exists: common.OnExists = "fail",
    resume: common.Resume = False,
    report: common.ReportFile = None,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Label every pixel of pictures and videos.

    Of pictures the class ids are written (a grey PNG as large as the upright picture; areas.json names the ids), and
    overlays; of videos the overlay with its sound, and <stem>.areas.csv, a row per frame. areas.csv tells how much of
    each picture every class takes. The rest is as for 'moevision restore'.
    """
    from moevision.cli.batch import BatchOptions, run_batch
    from moevision.engine.plan import plan

    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    names_file = _names_file(output)
    with_overlay = not names_file if overlay is None else overlay
    _check_places(inputs, output, with_overlay=with_overlay)
    if not names_file and on_exists != "overwrite":
        _refuse_others_tables(output)
    options = BatchOptions(
        output=output,
        recursive=recursive,
        on_exists=on_exists,
        resume=resume,
        format="png",
        jobs=jobs,
        report=report,
        dry_run=dry_run,
        quiet=quiet,
        debug=debug,
        maps={"overlay": _overlay_place(output, names_file=names_file)} if with_overlay else {},
        map_suffix=".jpg",
    )
    asked: dict[str, Any] = {"model": model, "precision": precision, "tile_px": common.parse_tile(tile)}
    asked |= {"size_px": size, "experts": experts, "runtime": runtime}
    asked |= {"restore": _parse_restore(restore), "restore_model": restore_model}
    asked |= {"overlay": with_overlay, "palette": palette}
    settings: dict[str, JSON] = {**asked, "weights": common.fingerprint(model)}
    if restore != "off":
        settings["restoration_weights"] = common.fingerprint(restore_model)
    made: list[SegmentationTask] = []

    def make_task() -> Task:
        from moevision.api import segmentation_task

        made.append(segmentation_task(device=device, **asked))
        return made[0]

    code = run_batch("segment", inputs, options, settings, make_task, planner=partial(plan, videos=True))
    if not (dry_run or names_file):
        _write_tables(output, made, make_task)
    if names_file and made and not quiet:  # no areas.json says so
        common.say("class ids: " + ", ".join(f"{i} {name}" for i, name in enumerate(made[0].classes)))
    if code:
        raise typer.Exit(code)


def _names_file(output: Path) -> bool:
    """Whether -o names the picture of ids itself; raises UsageError for a file that cannot hold them."""
    from moevision.engine.names import IMAGE_SUFFIXES, is_video_name

    suffix = output.suffix.lower()
    if output.is_dir() or (suffix not in IMAGE_SUFFIXES and not is_video_name(output)):
        return False
    if suffix != ".png":
        raise UsageError(f"-o {output}: class ids are written as PNG, videos to a folder; name a .png file or a folder")
    return True


def _overlay_place(output: Path, *, names_file: bool) -> Path:
    return output.with_suffix(".overlay.jpg") if names_file else output / OVERLAY_FOLDER


def _check_places(inputs: Sequence[str], output: Path, *, with_overlay: bool) -> None:
    """Refuse a file where the overlays go, and overlays that the next run would find among its inputs."""
    folder = output / OVERLAY_FOLDER
    if with_overlay and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: not a folder, but overlays go there; use --no-overlay or another folder with -o")
    for text in inputs:
        searched = _searched(text)
        if searched is not None and os.path.realpath(searched) == os.path.realpath(output):
            raise UsageError(f"-o {output}: the pictures lie there; choose another output folder")


def _searched(text: str) -> Path | None:
    """The folder of which an input also means a sub-folder called as that of the overlays; None if it means none."""
    from moevision.engine.inputs import fixed_parts

    if os.path.isdir(text):
        return Path(text)
    if os.path.lexists(text) or not glob.has_magic(text):
        return None
    fixed = fixed_parts(text)
    return Path(*fixed) if fnmatch(OVERLAY_FOLDER, PurePath(text).parts[len(fixed)]) else None


def _refuse_others_tables(output: Path) -> None:
    """Tables may be replaced only where an earlier run of ours has written them."""
    from moevision.engine.ledger import LEDGER_NAME
    from moevision.tasks.segmentation.areas import MEANING_NAME, TABLE_NAME

    for path in (output / TABLE_NAME, output / MEANING_NAME):
        if os.path.lexists(path) and not (output / LEDGER_NAME).exists():
            raise UsageError(f"{path} already exists; use --on-exists overwrite or another folder")


def _parse_restore(text: str) -> str | tuple[str, ...]:
    return text if text in ("off", "auto") else common.parse_weather(text) or ()


def _write_tables(root: Path, made: Sequence[SegmentationTask], make_task: Callable[[], Task]) -> None:
    """The tables of the output folder, for whatever was done so far; an earlier run may have been killed before."""
    from moevision.engine.ledger import LEDGER_NAME
    from moevision.tasks.segmentation.areas import are_current, write_tables

    if not (root / LEDGER_NAME).exists() or (not made and are_current(root)):
        return
    if not made:
        make_task()
    write_tables(root, made[0].classes, made[0].palette)
