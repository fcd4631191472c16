"""Which body runs an operator: plain torch or a Triton kernel. Decided when the operator runs, so that compiled and
exported graphs stay portable.

`MOEVISION_BACKEND` is `auto` (Triton for CUDA tensors where it can run, torch for everything else), `torch`, `triton`
(Triton or an error), or `interpret` (the Triton kernels on CPU tensors in Triton's interpreter, for tests; needs
`TRITON_INTERPRET=1` before triton is first imported).
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moevision.kernels import cpu

BACKENDS = ("auto", "triton", "torch", "interpret")
TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)

# The file of `moevision.kernels.triton` that has the kernel; a function there has the name of the one in `cpu`.
_FILES = {
    "route": "route",
    "route_backward": "route",
    "plan": "plan",
    "expert_ffn": "expert_ffn",
    "expert_ffn_backward": "expert_ffn",
    "film_ffn": "film_ffn",
    "film_ffn_backward": "film_ffn",
    "grouped_conv": "grouped_conv",
    "grouped_conv_backward": "grouped_conv",
    "quant_linear": "quant_linear",
}


class Unsupported(Exception):  # noqa: N818  (an answer to the caller, no error of the user)
    """A Triton launcher's answer to sizes it has no kernel for; raised before anything is computed."""


def run(operator: str, lead: Tensor, *arguments: Any) -> Any:
    """Run `operator` on its first tensor and the rest of its arguments.

    Raises:
        RuntimeError: the backend asked for by `MOEVISION_BACKEND` is unknown or cannot run here.
    """
    with _prepared(lead.device):
        backend = _backend()
        reason = None if backend == "torch" else _obstacle(backend, lead)
        if backend in ("torch", "auto") and (backend == "torch" or reason is not None):
            if reason is not None and lead.is_cuda:
                _warn_once(f"moevision runs its torch path on {lead.device}: {reason}")
            return getattr(cpu, operator)(lead, *arguments)
        if reason is not None:
            raise RuntimeError(f"MOEVISION_BACKEND={backend}, but {operator} cannot run in Triton: {reason}")
        try:
            return _triton_body(operator)(lead, *arguments)
        except Exception as error:
            if backend != "auto" or not (isinstance(error, Unsupported) or _is_out_of_resources(error)):
                raise
            _warn_once(f"moevision runs its torch path for {operator} on {lead.device}: {error}")
            return getattr(cpu, operator)(lead, *arguments)


def _backend() -> str:
    name = os.environ.get("MOEVISION_BACKEND", "auto")
    if name not in BACKENDS:
        raise RuntimeError(f"MOEVISION_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _obstacle(backend: str, lead: Tensor) -> str | None:
    """Why Triton cannot run on this tensor, or None."""
    if backend == "interpret":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "the interpreter needs TRITON_INTERPRET=1 from the start of the process"
    elif not lead.is_cuda:
        return f"the tensors are on {lead.device}, not on a CUDA device"
    if not _triton_installed():
        return "triton is not installed"
    if lead.is_floating_point() and lead.dtype not in TRITON_TYPES:
        return f"it has no kernels for {lead.dtype}"
    if backend != "interpret" and torch.version.hip is None and _capability(lead.device.index) < MIN_CAPABILITY:
        return f"compute capability {_capability(lead.device.index)} is below {MIN_CAPABILITY}"
    return None


def _triton_body(operator: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"moevision.kernels.triton.{_FILES[operator]}"), operator)


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(device: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _is_out_of_resources(error: Exception) -> bool:
    # By name: triton is not imported here, and the class moved between its releases.
    return type(error).__name__ == "OutOfResources"


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


@contextmanager
def _prepared(device: torch.device) -> Iterator[None]:
    """Bodies choose their own types; the operators' public functions cast as autocast asks. And launches go to the
    tensors' device, which need not be the current one.
    """
    if device.type == "cuda":
        with torch.cuda.device(device), torch.autocast("cuda", enabled=False):
            yield
    elif torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield
