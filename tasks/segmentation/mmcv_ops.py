"""A stand-in for `mmcv.ops` where mmcv was installed without compiled operators (mmcv-lite).

`mmseg.models` imports `mmcv.ops` for a handful of its heads, so with mmcv-lite not even an FCNHead can be built. The
stand-in lets everything be built that needs no compiled operator; the rest raises when it is built or called.
"""

import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from moevision.errors import MissingExtraError

NAME = "mmcv.ops"


class StandIn(ModuleType):
    """Any public name is a class that raises when it is built; names that begin with an underscore do not exist."""

    point_sample: Any
    get_compiler_version: Any
    get_compiling_cuda_version: Any

    def __getattr__(self, name: str) -> type[nn.Module]:
        if name.startswith("_"):  # what pickle, inspect and doctest look for in every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _uncompiled(name)


def install_mmcv_stand_in() -> bool:
    """Put the stand-in in the place of `mmcv.ops`; returns whether it stands there now.

    Only where mmcv has no compiled operators: a real `mmcv.ops` is never replaced, nor one that fails to import for
    another reason, whose own error says more.

    Raises ModuleNotFoundError where mmcv is not installed.
    """
    import mmcv

    if NAME in sys.modules:
        return isinstance(sys.modules[NAME], StandIn)
    if importlib.util.find_spec("mmcv._ext") is not None:
        return False
    module = StandIn(NAME, __doc__)
    module.__spec__ = ModuleSpec(NAME, None)
    module.point_sample = point_sample
    # For mmcv's report of the environment, which every training run logs.
    module.get_compiler_version = module.get_compiling_cuda_version = lambda: "n/a"
    sys.modules[NAME] = mmcv.ops = module
    return True


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **options: Any) -> Tensor:
    """Bilinear samples of a map at single points; the names are mmcv's.

    Args:
        input: (B, C, H, W).
        points: (B, P, 2) or (B, h, w, 2), x and y in [0, 1] of the map.
        align_corners, options: of `grid_sample`.

    Returns:
        (B, C, P) or (B, C, h, w).
    """
    listed = points.dim() == 3
    grid_BPw2 = 2 * (points.unsqueeze(2) if listed else points) - 1
    sampled = F.grid_sample(input, grid_BPw2, align_corners=align_corners, **options)
    return sampled.squeeze(3) if listed else sampled


@cache  # isinstance() must meet the same class each time
def _uncompiled(name: str) -> type[nn.Module]:
    def refuse(self: nn.Module, *arguments: Any, **options: Any) -> None:
        raise MissingExtraError(
            f"mmcv.ops.{name} is a compiled operator that mmcv-lite lacks: pip uninstall mmcv-lite, then install "
            "mmcv==2.1.0, built for your torch"
        )

    return type(name, (nn.Module,), {"__init__": refuse, "__module__": NAME})
