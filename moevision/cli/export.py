"""`moevision export`: a model as a file that other programs run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moevision.cli import common
from moevision.errors import UsageError


def export(
    model: Annotated[str, typer.Argument(help="A name from 'moevision models' or a .safetensors file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file: .onnx, .xml (OpenVINO) or .pt2.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino or pt2.")] = "onnx",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Write a model as ONNX, OpenVINO or torch.export file, for pictures of any size.

    The file is run before it gets its name, on pictures of several sizes, and kept only if it gives what the network
    gives. Takes a minute or two.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    if not overwrite and os.path.lexists(output):
        raise UsageError(f"{output}: exists already; choose another name or --overwrite")
    from moevision.api import export_model

    error = export_model(model, output, to=to)
    if not quiet:
        common.say(f"largest difference from the network: {error:.2g}")
    typer.echo(str(output))
