"""`moevision evaluate TASK`: quality on a folder of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moevision.cli import common

app = typer.Typer(help="Measure a model on a folder of test data.", no_args_is_help=True)


@app.callback()
def _evaluate() -> None:
    """Measure a model on a folder of test data."""


@app.command("restoration")
def restoration(
    data: common.Data,
    json_file: common.JsonFile = None,
    model: common.Model = "restoration-small",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    weather: common.Weather = "auto",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """PSNR and SSIM on a folder with input/ and gt/ (names match by stem)."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    tile_px, told = common.parse_tile(tile), common.parse_weather(weather)
    from moevision.api import restoration_task
    from moevision.tasks.restoration.evaluate import evaluate

    task = restoration_task(model=model, device=device, precision=precision, tile_px=tile_px, weather=told)
    result = evaluate(data, task)
    common.show_result(result, result["metrics"], json_file, quiet=quiet)


@app.command("fusion")
def fusion(
    data: common.Data,
    json_file: common.JsonFile = None,
    model: common.Model = "fusion-small",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    peer: Annotated[
        list[Path] | None,
        typer.Option("--peer", help="Folder of another method's fused pictures; may be given again."),
    ] = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Fusion metrics on a folder with ir/ and vis/ (names match by stem), beside average and pixel-max."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import fusion_task
    from moevision.tasks.fusion.evaluate import evaluate

    task = fusion_task(model=model, device=device, precision=precision, tile_px=common.parse_tile(tile))
    result = evaluate(data, task, tuple(peer or ()))
    common.show_result(result, result["metrics"], json_file, quiet=quiet)


@app.command("anomaly")
def anomaly(
    data: common.Data,
    json_file: common.JsonFile = None,
    model: common.Model = "anomaly-ped2",
    site: Annotated[
        Path | None,
        typer.Option(
            "--site", help="Calibration to use; without it, the training clips kept for it.", show_default=False
        ),
    ] = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Frame AUC on a folder with train/, test/ and labels.npz, beside frame difference and MB, by two protocols."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import anomaly_precision, load
    from moevision.checkpoint import file_sha256, find_weights
    from moevision.devices import pick_device
    from moevision.errors import InputError
    from moevision.tasks.anomaly.calibration import SiteCalibration
    from moevision.tasks.anomaly.evaluate import evaluate

    calibration = None if site is None else SiteCalibration.read(site)
    if calibration is not None and file_sha256(find_weights(model)[0]) != calibration.model_sha256:
        raise InputError(f"{site}: the calibration was made with other weights than {model}; make another")
    torch_device = pick_device(device)
    result = evaluate(
        data, load(model, device=device), site=calibration,
        device=torch_device, dtype=anomaly_precision(torch_device, precision),
    )  # fmt: skip
    common.show_result(result, result["metrics"], json_file, quiet=quiet)


@app.command("segmentation")
def segmentation(
    data: common.Data,
    json_file: common.JsonFile = None,
    model: common.Model = "segmentation-camvid",
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    tile: common.Tile = "auto",
    size: common.Size = None,
    experts: common.Experts = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """IoU of every class on a folder with images/, labels/ (names match by stem) and classes.txt."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.api import segmentation_task
    from moevision.datasets.classes import ClassList
    from moevision.imaging.picture import picture_from_array
    from moevision.tasks.segmentation.evaluate import evaluate

    task = segmentation_task(
        model=model, device=device, precision=precision, tile_px=common.parse_tile(tile), size_px=size, experts=experts
    )
    result = evaluate(
        data, lambda image_HWC: task.segment(picture_from_array(image_HWC)).ids_HW,
        model=task.descriptor.name, classes=ClassList(task.classes, task.palette),
    )  # fmt: skip
    common.show_result(result, result["metrics"], json_file, quiet=quiet)
