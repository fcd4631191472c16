"""OpenVINO: its own files from ONNX ones, and both run; the only file that imports it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moevision.errors import MissingExtraError, WeightsError

_SECTION = "moevision"  # of rt_info, where OpenVINO keeps what others write into its files


def require() -> Any:
    """The module `openvino`; raises MissingExtraError where it is not installed."""
    try:
        import openvino
    except ImportError:
        raise MissingExtraError('OpenVINO is not installed: pip install "moevision[openvino,onnx]"') from None
    return openvino


def convert(source: Path, path: Path, facts: Mapping[str, str]) -> None:
    """An ONNX file as OpenVINO's .xml and .bin, weights as they are."""
    openvino = require()
    model = openvino.convert_model(str(source))
    for name, value in facts.items():
        model.set_rt_info(value, [_SECTION, name])
    openvino.save_model(model, str(path), compress_to_fp16=False)


class OpenVINORunner:
    """An .xml or .onnx file, as a `Runner`."""

    def __init__(self, path: Path, *, bf16: bool = False) -> None:
        core = require().Core()
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = core.read_model(str(path))
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise WeightsError(f"{path}: OpenVINO cannot read it ({reason}); export it again") from None
        self.path = path
        self.facts: Mapping[str, str] = _facts(model)
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Runner`."""
        results = self._compiled({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        # Copies: the next call writes into the same memory.
        return {name: np.array(results[i]) for i, name in enumerate(self._outputs)}


def _facts(model: Any) -> dict[str, str]:
    # Of an ONNX file the metadata comes under "framework", of our own in a section of ours.
    facts: dict[str, str] = {}
    for section in ("framework", _SECTION):
        if model.has_rt_info([section]):
            info = model.get_rt_info([section]).value
            facts |= {name: str(info[name].value if hasattr(info[name], "value") else info[name]) for name in info}
    return facts
