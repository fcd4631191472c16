"""Networks as files that other programs run: ONNX, OpenVINO, torch.export; and those files as our runtimes.

No task's network is known here: what to export, each task says as a `Portable`.
"""

from moevision.export.files import FORMATS, cached_file, write_file
from moevision.export.graph import EXAMPLE_SIDES_PX, Portable
from moevision.export.runners import RUNTIMES, Runner, check_runtime, open_runner

__all__ = [
    "EXAMPLE_SIDES_PX",
    "FORMATS",
    "RUNTIMES",
    "Portable",
    "Runner",
    "cached_file",
    "check_runtime",
    "open_runner",
    "write_file",
]
