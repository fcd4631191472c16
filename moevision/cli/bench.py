"""`moevision bench`: speeds and sizes on this machine, as ratios measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moevision.cli import common
from moevision.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from moevision.kernels.roofline import Size

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure speed on this machine."""


@app.command("mofme")
def mofme(
    json_file: common.JsonFile = None,
    device: common.Device = "auto",
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """The shared-expert layer (E = 16) against a dense-compute MoE, a sparse MoE and a plain FFN."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.tasks.restoration.bench import bench_mofme

    result = bench_mofme(device=device, seed=seed)
    ratios = {key: value for key, value in result.items() if "_ratio" in key}
    common.show_result(result, ratios, json_file, quiet=quiet)


@app.command("kernels")
def kernels(
    quick: Annotated[bool, typer.Option("--quick", help="Two small sizes in few rounds: about a minute.")] = False,
    op: Annotated[
        list[str] | None, typer.Option("--op", help="Only this operator; may be given again.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of torch.")] = 1,
    json_file: common.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write tables to this file.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the ratios, as .png or .svg.", show_default=False)
    ] = None,
    device: common.Device = "auto",
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Each operator against a dense FFN of equal products, other ways to compute it, and other libraries' layers."""
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.imaging.write import atomic_write_text
    from moevision.kernels import bench, bench_report

    unknown = sorted(set(op or ()) - set(bench.OPS))
    if unknown:
        raise UsageError(f"--op {unknown[0]}: choose from {', '.join(bench.OPS)}")
    if plot is not None:
        _check_plot(plot)
    result = bench.bench_kernels(
        quick=quick, wanted=tuple(op or bench.OPS), threads=threads, device=_bench_device(device), seed=seed,
        build_layer=_moe_layer, say=None if quiet else common.say,
    )  # fmt: skip
    common.show_result(result, bench_report.lines(result), json_file, quiet=quiet)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(markdown, bench_report.markdown(result))
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        bench_report.plot(result, plot)


def _check_plot(path: Path) -> None:
    """Before minutes of measuring, not after."""
    from importlib.util import find_spec

    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot {path}: the name must end in .png or .svg")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("--plot needs matplotlib: pip install 'moevision[train]'")


def _bench_device(name: str) -> torch.device:
    """As everywhere, but auto skips MPS: it has no clock here."""
    from moevision.devices import pick_device

    device = pick_device(name)
    if device.type == "mps":
        if name != "auto":
            raise UsageError(f"--device {name}: kernels are measured on cpu or cuda")
        return pick_device("cpu")
    return device


def _moe_layer(size: Size) -> nn.Module:
    """Our layer as the backbone uses it, for the whole-layer comparison."""
    from moevision.moe import FFNExperts, LinearScorer, MoELayer, Router, TopK

    router = Router(LinearScorer(size.dim, size.experts), TopK(size.slots))
    return MoELayer("bench", router, FFNExperts(size.experts, size.dim, size.hidden))
