"""Writing a `Portable` to a file that is checked before it gets its name."""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from moevision.errors import MissingExtraError, MoevisionError, UsageError
from moevision.export import torch_file
from moevision.export.graph import Portable, trace
from moevision.export.runners import Runner, check_runtime, open_runner

logger = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
"""Formats and the suffix of their file; OpenVINO's weights lie in a second one, .bin."""

TOLERANCE = 1e-4
REVISION = 2
"""Of what is exported of the same weights: raised with it, so that cached files are made anew."""

_CHECKED_BY = {"onnx": "onnx", "openvino": "openvino", "pt2": "torch"}


def write_file(portable: Portable, path: Path, to: str) -> float:
    """Export, run the file on all of `portable.examples`, and give it its name if it does what the network does.

    Args:
        portable: what to export.
        path: the file, with the format's suffix; what is there is replaced.
        to: one of FORMATS.

    Returns:
        The largest error of any output of any example.

    Raises:
        UsageError: unknown format, other suffix, or a folder that is not there. MissingExtraError: what the format
        needs is not installed. MoevisionError: the file's results differ by more than TOLERANCE; it is not kept.
    """
    if FORMATS.get(to) != path.suffix:
        known = ", ".join(f"{name} (*{suffix})" for name, suffix in FORMATS.items())
        raise UsageError(f"--to {to} and {path.name} do not go together; formats are {known}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    runtime = _CHECKED_BY[to]
    check_runtime(runtime)
    # Beside the file, so that it can be moved to its name in one step.
    with tempfile.TemporaryDirectory(prefix=".moevision-export-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        written = _WRITERS[to](portable, made)
        error = worst_error(portable, open_runner(made, runtime))
        if not error <= TOLERANCE:
            raise MoevisionError(
                f"{path}: not written: its results differ from the network's by {error:.2g}, more than {TOLERANCE:g}; "
                "please report it"
            )
        for file in written:
            os.replace(file, path.with_suffix(file.suffix))
    return error


def cached_file(make: Callable[[], Portable], key: str) -> Path:
    """The ONNX file of that key in the user's cache folder, made if it is not there.

    Args:
        make: what to export; called only if the file is not there.
        key: file stem that names the weights, the version and whatever else the file depends on.
    """
    path = cache_folder() / f"{key}-{REVISION}.onnx"
    if not path.is_file():
        logger.warning("exporting the network for this runtime: done once, takes a minute or two")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path.parent}: cannot be made ({error.strerror}); set MOEVISION_CACHE") from None
        write_file(make(), path, "onnx")
    return path


def cache_folder() -> Path:
    """Where exported files are kept between runs: under MOEVISION_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    if home := os.environ.get("MOEVISION_CACHE"):
        return Path(home) / "export"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moevision" / "export"


@torch.no_grad()
def worst_error(portable: Portable, runner: Runner) -> float:
    """The largest absolute difference between what a file and the network give on the examples; NaN if either does."""
    worst = torch.zeros(())
    for example in portable.examples:
        wanted = portable.module(*example.values())
        got = runner({name: value.numpy() for name, value in example.items()})
        for name, tensor in zip(portable.outputs, wanted, strict=True):
            if got[name].shape != tuple(tensor.shape):
                raise MoevisionError(f"{name} is {got[name].shape}, the network's {tuple(tensor.shape)}; report it")
            # torch's maximum keeps NaN, Python's may not.
            worst = torch.maximum(worst, (torch.from_numpy(got[name]) - tensor).abs().max())
    return float(worst)


def _write_onnx(portable: Portable, path: Path) -> Sequence[Path]:
    for module in ("onnx", "onnxscript"):  # torch imports them
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f'the ONNX exporter needs {module}: pip install "moevision[onnx]"')
    names = list(portable.examples[0])
    program = torch.onnx.export(
        trace(portable), dynamo=True, input_names=names, output_names=list(portable.outputs), verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(portable.facts)
    program.save(str(path), external_data=False)
    return [path]


def _write_openvino(portable: Portable, path: Path) -> Sequence[Path]:
    from moevision.export import openvino_model

    source = path.with_suffix(".onnx")
    _write_onnx(portable, source)
    openvino_model.convert(source, path, portable.facts)
    return [path.with_suffix(".bin"), path]


def _write_pt2(portable: Portable, path: Path) -> Sequence[Path]:
    torch_file.save(trace(portable), path, portable)
    return [path]


_WRITERS: dict[str, Callable[[Portable, Path], Sequence[Path]]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "pt2": _write_pt2,
}
