"""`moevision train TASK`: train a model from a folder of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moevision.cli import common, completion

app = typer.Typer(help="Train a model.", no_args_is_help=True)


@app.callback()
def _train() -> None:
    """Train a model."""


_Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for checkpoints, weights and the log.", show_default=False)
]
_Preset = Annotated[str, typer.Option("--preset", help="Size and recipe of the model.")]
_Steps = Annotated[int, typer.Option("--steps", min=1, help="Length of the run.")]
_LearningRate = Annotated[float, typer.Option("--learning-rate", min=0.0, help="Peak of the schedule.")]
_ResumeRun = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]


@app.command("restoration")
def restoration(
    data: common.Data,
    out: _Out,
    preset: _Preset = "small",
    seed: common.Seed = 0,
    steps: _Steps = 60_000,
    learning_rate: _LearningRate = 3e-4,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from", help="Weights to begin with; parts they lack start anew.", autocompletion=completion.models
        ),
    ] = None,
    resume: _ResumeRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Train a restoration model on clean pictures; the weather is made as it trains."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.tasks.restoration.train import train

    say = common.logger.debug if quiet else common.say
    weights = train(
        data, out, preset=preset, seed=seed, steps=steps, resume=resume,
        learning_rate=learning_rate, start_from=start_from, say=say,
    )  # fmt: skip
    if not quiet:
        typer.echo(str(weights))


@app.command("fusion")
def fusion(
    data: common.Data,
    out: _Out,
    preset: _Preset = "small",
    seed: common.Seed = 0,
    steps: _Steps = 4000,
    learning_rate: _LearningRate = 6e-4,
    balance_modalities: Annotated[
        bool, typer.Option("--balance-modalities", help="Slow down the encoder that runs ahead (AGM).")
    ] = False,
    resume: _ResumeRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Train a fusion model on a folder with ir/ and vis/, aligned pairs of equal names; no labels."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.tasks.fusion.train import train

    say = common.logger.debug if quiet else common.say
    weights = train(
        data, out, preset=preset, seed=seed, steps=steps, resume=resume,
        learning_rate=learning_rate, balance_modalities=balance_modalities, say=say,
    )  # fmt: skip
    if not quiet:
        typer.echo(str(weights))


@app.command("anomaly")
def anomaly(
    data: common.Data,
    out: _Out,
    preset: _Preset = "small",
    seed: common.Seed = 0,
    steps: _Steps = 4000,
    learning_rate: _LearningRate = 2e-3,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="Weights whose frozen appearance encoder is taken over.",
            autocompletion=completion.models,
        ),
    ] = "anomaly-ped2",
    resume: _ResumeRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Train the anomaly network on a folder with train/, videos of normal footage; no labels."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.tasks.anomaly.train import train

    say = common.logger.debug if quiet else common.say
    weights = train(
        data, out, preset=preset, seed=seed, steps=steps, resume=resume,
        learning_rate=learning_rate, encoder=encoder, say=say,
    )  # fmt: skip
    if not quiet:
        typer.echo(str(weights))


@app.command("segmentation")
def segmentation(
    data: common.Data,
    out: _Out,
    preset: _Preset = "small",
    seed: common.Seed = 0,
    steps: _Steps = 3000,
    learning_rate: _LearningRate = 1e-3,
    start_from: Annotated[
        str,
        typer.Option(
            "--start-from",
            help="Weights to begin with, a name from 'moevision models' or a .safetensors file; parts that do not fit "
            "start anew. none = all of it.",
            autocompletion=completion.models_or_none,
        ),
    ] = "segmentation-camvid",
    weather: Annotated[
        bool, typer.Option("--weather", help="Let half of the pictures be seen through synthetic bad weather.")
    ] = False,
    validation_share: Annotated[
        float,
        typer.Option(
            "--validation-share",
            min=0.0,
            max=0.5,
            help="Of the pictures, the last by name: not learned from. 0 = learn from all, once all else is settled.",
        ),
    ] = 0.1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare the pictures.")] = 1,
    resume: _ResumeRun = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Train a segmentation model on a folder with images/, labels/ (names match by stem) and classes.txt."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.tasks.segmentation.train import train

    say = common.logger.debug if quiet else common.say
    weights = train(
        data, out, preset=preset, seed=seed, steps=steps, resume=resume, learning_rate=learning_rate,
        start_from=None if start_from == "none" else start_from, weather=weather, validation_share=validation_share,
        workers=workers, say=say,
    )  # fmt: skip
    if not quiet:
        typer.echo(str(weights))
