"""`moevision datasets`: look at training data, and make paired test sets."""

from __future__ import annotations

from typing import Annotated

import typer

from moevision.cli import common, completion

app = typer.Typer(help="Look at training data, make test data.", no_args_is_help=True)


@app.callback()
def _datasets() -> None:
    """Look at training data, make test data."""


@app.command("preview")
def preview(
    data: common.Data,
    output: common.Output,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Write a sheet of clean and weathered crops per kind of weather, real photographs below where there are any."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.datasets.preview import preview_sheet

    for path in preview_sheet(data, output, seed):
        if not quiet:
            typer.echo(str(path))


@app.command("synthesize")
def synthesize(
    data: common.Data,
    output: common.Output,
    weather: Annotated[
        str,
        typer.Option(
            "--weather",
            help="rain, drops, snow, haze, mixture, clean, or some joined: haze+rain.",
            show_default=False,
            autocompletion=completion.weathers("mixture", "clean", joined_by="+"),
        ),
    ],
    seed: common.Seed = 2026,
    strength: Annotated[
        float | None, typer.Option("--strength", min=0.0, max=1.0, help="Severity; drawn per picture if not given.")
    ] = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Weather a folder of clean photographs: writes input/ and gt/ pairs for `moevision evaluate restoration`."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.datasets.synthesize import write_pairs

    for path in write_pairs(data, output, weather, seed, strength):
        if not quiet:
            typer.echo(str(path))
