"""moevision: better outdoor images with Mixture-of-Experts models.

    import moevision
    clear = moevision.restore("foggy.jpg")
    both = moevision.fuse("thermal.png", "street.jpg")
    odd = moevision.detect("camera.mp4", site="site.json").events
    road = moevision.segment("street.jpg").areas["Road"]

Names are loaded on first use (PEP 562), so `import moevision` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moevision.api import detect, fit_site, fuse, list_models, load, restore, segment
    from moevision.errors import (
        InputError,
        MemoryExhaustedError,
        MissingExtraError,
        MoevisionError,
        UsageError,
        WeightsError,
    )

    __version__: str

_HOMES = {
    "restore": "moevision.api",
    "fuse": "moevision.api",
    "detect": "moevision.api",
    "fit_site": "moevision.api",
    "segment": "moevision.api",
    "load": "moevision.api",
    "list_models": "moevision.api",
    "MoevisionError": "moevision.errors",
    "UsageError": "moevision.errors",
    "InputError": "moevision.errors",
    "WeightsError": "moevision.errors",
    "MemoryExhaustedError": "moevision.errors",
    "MissingExtraError": "moevision.errors",
}

__all__ = [
    "InputError",
    "MemoryExhaustedError",
    "MissingExtraError",
    "MoevisionError",
    "UsageError",
    "WeightsError",
    "__version__",
    "detect",
    "fit_site",
    "fuse",
    "list_models",
    "load",
    "restore",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("moevision")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
