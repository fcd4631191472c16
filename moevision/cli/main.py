"""The `moevision` command."""

from __future__ import annotations

from typing import Annotated

import typer

import moevision
from moevision.cli import (
    anomaly_fit,
    bench,
    datasets,
    demo,
    detect,
    evaluate,
    export,
    fuse,
    models,
    restore,
    segment,
    train,
    tune,
)
from moevision.cli.common import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    name="moevision",
    help="Better outdoor images: restore photographs taken in bad weather, fuse infrared and visible ones, find what "
    "does not belong in a video, label every pixel.",
    epilog="Exit codes: 0 ok, 1 bug, 2 usage, 3 some inputs failed, 4 weights missing or damaged, 5 out of memory, "
    "130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("restore")(restore.restore)
app.command("fuse")(fuse.fuse)
app.command("detect")(detect.detect)
app.command("anomaly-fit")(anomaly_fit.anomaly_fit)
app.command("segment")(segment.segment)
app.command("demo")(demo.demo)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("tune")(tune.tune)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(train.app, name="train")
app.add_typer(datasets.app, name="datasets")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moevision {moevision.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Better outdoor images: restore and fuse photographs, find what is odd in a video, label every pixel."""


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="moevision")
