"""An exported network in the place of the torch one, for `RestorationTask`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from moevision.errors import InputError, WeightsError
from moevision.export import Runner
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

    Raises:
        WeightsError: a file that knows other weathers.

    Attributes:
        whole_px: longest side of a picture that is restored whole.
    """

    whole_px = WHOLE_PX

    def __init__(
        self, whole: Runner, net: RestorationNet | None = None, tile: Callable[[], Runner] | None = None
    ) -> None:
        if whole.facts.get("moevision.weathers") != ",".join(WEATHERS):
            raise WeightsError(f"{whole.path}: knows other weathers than this moevision; export it again")
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


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
