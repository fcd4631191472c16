"""`moevision bench`: speeds and sizes on this machine, as ratios measured in one run."""

from __future__ import annotations

import typer

from moevision.cli import common

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
