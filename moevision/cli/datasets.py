"""`moevision datasets`: look at the data a model is trained on."""

from __future__ import annotations

import typer

from moevision.cli import common

app = typer.Typer(help="Look at training data.", no_args_is_help=True)


@app.callback()
def _datasets() -> None:
    """Look at training data."""


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
