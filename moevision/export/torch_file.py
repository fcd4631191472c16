"""torch.export archives (.pt2): run by torch alone, without this package."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from moevision.errors import WeightsError
from moevision.export.graph import Portable

_EXTRA = "moevision.json"


def save(program: torch.export.ExportedProgram, path: Path, portable: Portable) -> None:
    """Write the archive, with facts and names beside the graph, which knows its tensors by position."""
    told = {"facts": dict(portable.facts), "inputs": list(portable.examples[0]), "outputs": list(portable.outputs)}
    torch.export.save(program, path, extra_files={_EXTRA: json.dumps(told)})


class TorchRunner:
    """A .pt2 file, as a `Runner`."""

    def __init__(self, path: Path) -> None:
        extra = {_EXTRA: ""}
        try:
            self._module = torch.export.load(path, extra_files=extra).module()
            told = json.loads(extra[_EXTRA])
        except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0][:120]
            raise WeightsError(f"{path}: torch cannot read it ({reason}); export it again") from None
        self.path = path
        self.facts: Mapping[str, str] = told["facts"]
        self._inputs, self._outputs = told["inputs"], told["outputs"]

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Runner`."""
        results = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs))
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}
