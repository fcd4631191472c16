"""An exported network in the place of the torch one, for `RestorationTask`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError, UsageError, WeightsError
from moevision.export import Portable, Runner, cached_file, check_runtime, open_runner
from moevision.moe import Context
from moevision.tasks.restoration.model import Restoration, RestorationNet
from moevision.tasks.restoration.portable import picture_inputs, tile_inputs
from moevision.tasks.restoration.scene import SceneBranch
from moevision.tasks.restoration.weathers import WEATHERS

WHOLE_PX = 2048
"""Larger pictures are measured by torch, then restored in tiles, which bounds memory."""
_PROBABILITY = "probability"


class PortableNet:
    """Called as a RestorationNet is.

    Args:
        whole: a file that takes whole pictures.
        net: the network it was made from, which measures what is too large to be restored whole.
        tile: opens the file that takes tiles, when first needed.

    Without `net` and `tile` only whole pictures can be restored.

    Attributes:
        whole_px: longest side of a picture that is restored whole.
    """

    whole_px = WHOLE_PX

    def __init__(
        self, whole: Runner, net: RestorationNet | None = None, tile: Callable[[], Runner] | None = None
    ) -> None:
        self.whole, self.net = whole, net
        self._open_tile = tile
        self._tile: Runner | None = None

    @property
    def scene(self) -> SceneBranch | None:
        """For `RestorationTask`, which measures it of the whole picture."""
        return self._net().scene

    def judge(self, context: Context) -> tuple[Tensor, Tensor]:
        """Weather logits as of `RestorationNet.judge`; the tone correction only of what torch measured."""
        if _PROBABILITY in context.statistics:
            return context.statistics[_PROBABILITY].logit(), torch.empty(0)
        return self._net().judge(context)

    def __call__(self, x_BCHW: Tensor, context: Context, weather_BW: Tensor | None = None) -> Restoration:
        """A picture, a tile of a measured picture, or a mosaic to be measured, as the context says."""
        if context.window is not None and context.frozen_statistics is not None:
            results = self._tiles()(_arrays(tile_inputs(x_BCHW, weather_BW, context.window, context.frozen_statistics)))
            return Restoration(torch.from_numpy(results["restored"]), torch.empty(0), torch.empty(0))
        if context.frozen_statistics is not None:
            return self._net()(x_BCHW, context, weather_BW)
        results = self.whole(_arrays(picture_inputs(x_BCHW, weather_BW)))
        probability_BW = torch.from_numpy(results[_PROBABILITY])
        context.statistics[_PROBABILITY] = probability_BW
        return Restoration(torch.from_numpy(results["restored"]), probability_BW.logit(), torch.empty(0))

    def _net(self) -> RestorationNet:
        if self.net is None:
            raise InputError(
                f"larger than {WHOLE_PX} px, which an exported file alone cannot restore; "
                "name the weights instead: --model restoration-small --runtime onnx"
            )
        return self.net

    def _tiles(self) -> Runner:
        if self._tile is None:
            assert self._open_tile is not None  # comes with the network
            self._tile = self._open_tile()
        return self._tile


def from_file(path: Path, runtime: str, *, bf16: bool) -> tuple[PortableNet, ModelDescriptor]:
    """An exported file alone, and what it says of itself.

    Raises UsageError for a file of another task or form, WeightsError where it does not say enough of itself, and all
    that `open_runner` raises.
    """
    runner = open_runner(path, runtime, bf16=bf16)
    task, form = (runner.facts.get(f"moevision.{fact}") for fact in ("task", "form"))
    if (task, form) != ("restoration", "picture"):
        raise UsageError(f"{path}: made for a {form} and the task {task}; `restore` needs one for a whole picture")
    if runner.facts.get("moevision.weathers") != ",".join(WEATHERS):
        raise WeightsError(f"{path}: knows other weathers than this moevision; export it again")
    try:
        name, config = runner.facts["moevision.model"], json.loads(runner.facts["moevision.config"])
    except (KeyError, ValueError):
        raise WeightsError(f"{path}: does not say what it was made of; export it again") from None
    return PortableNet(runner), ModelDescriptor(name, "restoration", nn.Identity(), config, {})


def from_cache(
    descriptor: ModelDescriptor, portable: Callable[[str], Portable], key: str, runtime: str, *, bf16: bool
) -> PortableNet:
    """The network of a descriptor, exported when first needed.

    Args:
        descriptor: its model stays with torch, for what only torch does.
        portable: of the form "picture" or "tile", to make the file that is not there.
        key: names weights and version.
        runtime, bf16: see `open_runner`.
    """
    check_runtime(runtime, bf16=bf16)

    def opened(form: str) -> Runner:
        return open_runner(cached_file(lambda: portable(form), f"{key}-{form}"), runtime, bf16=bf16)

    return PortableNet(opened("picture"), cast("RestorationNet", descriptor.model), lambda: opened("tile"))


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
