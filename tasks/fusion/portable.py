"""The fusion network for other programs: whole pairs in and out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moevision.export import EXAMPLE_SIDES_PX, Portable
from moevision.moe import Context
from moevision.tasks.fusion.model import FusionNet

SMALLEST_PX = 17
"""What is traced holds from here."""


class WholePair(nn.Module):
    """Brightness of both, (1, 1, H, W) each in [0, 1] -> the fused picture in [0, 1], and the visible weight."""

    def __init__(self, net: FusionNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, visible_11HW: Tensor, infrared_11HW: Tensor) -> tuple[Tensor, Tensor]:
        """As `FusionNet.forward`."""
        fusion = self.net(visible_11HW, infrared_11HW, Context())
        return fusion.fused_B1HW.clamp(0, 1), fusion.weight_B1HW


def whole_pair(net: FusionNet, facts: Mapping[str, str]) -> Portable:
    """Inputs `visible` and `infrared`; outputs `fused` and `weight`."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number, sides in enumerate(EXAMPLE_SIDES_PX):
        # Two scenes of different light, so that gates have something to choose by.
        visible, infrared = torch.rand(2, 1, 1, *sides, generator=generator)
        examples.append({"visible": visible * (0.2 + 0.2 * number), "infrared": infrared})
    axes = {2: ("height", SMALLEST_PX), 3: ("width", SMALLEST_PX)}
    dynamic = {"visible": axes, "infrared": axes}
    return Portable(WholePair(net).eval(), ("fused", "weight"), examples, dynamic, facts)
