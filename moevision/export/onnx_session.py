"""ONNX files run by ONNX Runtime; the only file that imports it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moevision.errors import MissingExtraError, WeightsError


class OnnxRunner:
    """An ONNX file, as a `Runner`."""

    def __init__(self, path: Path) -> None:
        onnxruntime = require()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # it warns of constants it could not fold
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes share no base but this
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{path}: ONNX Runtime cannot read it ({reason}); export it again") from None
        self.path = path
        self.facts: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Runner`."""
        contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        return dict(zip(self._outputs, self._session.run(None, contiguous), strict=True))


def require() -> Any:
    """The module `onnxruntime`; raises MissingExtraError where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError('ONNX Runtime is not installed: pip install "moevision[onnx]"') from None
    return onnxruntime
