"""`moevision tune`: measures the kernels' block sizes on this machine's GPU and remembers the best."""

from __future__ import annotations

import typer

from moevision.cli import common
from moevision.errors import UsageError


def tune(
    json_file: common.JsonFile = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Measure the kernels' block sizes on this machine's GPU and remember the best in the user's cache folder.

    The kernels run without it, by formula. Results are used from the next start on.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.kernels import tune as tuning

    try:
        path, results = tuning.tune(report=lambda line: None if quiet else common.say(line))
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    times = {key: {name: r[name] for name in ("formula_ms", "best_ms")} for key, r in results.items()}
    common.show_result({"file": str(path), "choices": times}, {"choices": len(times)}, json_file, quiet=quiet)
    typer.echo(str(path))
