"""Exported files as functions of named arrays, whichever program runs them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from moevision.errors import UsageError, WeightsError

RUNTIMES = ("torch", "onnx", "openvino")

_READS = {"torch": (".pt2",), "onnx": (".onnx",), "openvino": (".onnx", ".xml")}


class Runner(Protocol):
    """An opened file.

    Attributes:
        path: where it lies.
        facts: what it says of itself, see `Portable.facts`.
    """

    path: Path
    facts: Mapping[str, str]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; all inputs are needed."""
        ...


def check_runtime(runtime: str, *, bf16: bool = False) -> None:
    """Raise what `open_runner` would raise of any file: before minutes are spent on making one."""
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: choose one of {', '.join(RUNTIMES)}")
    if bf16 and runtime != "openvino":
        raise UsageError(f"--runtime {runtime} computes an exported file in fp32; use --precision fp32 or auto")
    if runtime == "onnx":
        from moevision.export import onnx_session

        onnx_session.require()
    elif runtime == "openvino":
        from moevision.export import openvino_model

        openvino_model.require()


def open_runner(path: Path, runtime: str, *, bf16: bool = False) -> Runner:
    """Open an exported file on the CPU, with as many threads as torch uses.

    Args:
        path: a file from `write_file`.
        runtime: one of RUNTIMES.
        bf16: compute in bfloat16 where the runtime can (OpenVINO).

    Raises:
        UsageError: an unknown runtime, or one that does not read this kind of file. MissingExtraError: it is not
        installed. WeightsError: the file is missing, damaged or not ours.
    """
    check_runtime(runtime, bf16=bf16)
    if path.suffix not in _READS[runtime]:
        raise UsageError(f"{path}: --runtime {runtime} reads {' and '.join(_READS[runtime])} files")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; make it with `moevision export`")
    runner = _open(path, runtime, bf16)
    if "moevision.task" not in runner.facts:
        raise WeightsError(f"{path}: not a file from `moevision export`")
    return runner


def _open(path: Path, runtime: str, bf16: bool) -> Runner:
    if runtime == "onnx":
        from moevision.export.onnx_session import OnnxRunner

        return OnnxRunner(path)
    if runtime == "openvino":
        from moevision.export.openvino_model import OpenVINORunner

        return OpenVINORunner(path, bf16=bf16)
    from moevision.export.torch_file import TorchRunner

    return TorchRunner(path)
