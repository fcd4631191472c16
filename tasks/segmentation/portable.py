"""The segmentation network for other programs, and an exported one in the place of the torch one."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moevision.backbone.inverted import fold_norms
from moevision.export import EXAMPLE_SIDES_PX, Portable, Runner
from moevision.tasks.segmentation.model import SegmentationNet

SMALLEST_PX = 17
"""What is traced holds from here; files were seen to work below."""


class PictureLogits(nn.Module):
    """(1, 3, H, W) -> the classes' logits at stride 4 of the picture padded to a multiple of 16."""

    def __init__(self, net: SegmentationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, picture_1CHW: Tensor) -> tuple[Tensor]:
        """As `SegmentationNet.logits`."""
        return (self.net.logits(picture_1CHW)[0],)


def any_picture(net: SegmentationNet, facts: Mapping[str, str]) -> Portable:
    """Input `picture`, output `logits`; normalisations are folded into the convolutions."""
    folded = copy.deepcopy(net).eval()
    fold_norms(folded)
    generator = torch.Generator().manual_seed(0)
    examples = [{"picture": torch.rand(1, 3, *sides, generator=generator)} for sides in EXAMPLE_SIDES_PX]
    dynamic = {"picture": {2: ("height", SMALLEST_PX), 3: ("width", SMALLEST_PX)}}
    return Portable(PictureLogits(folded), ("logits",), examples, dynamic, facts)


class PortableNet:
    """Called as `SegmentationNet.logits` is; without the logits that only help learning."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def logits(self, x_BCHW: Tensor) -> tuple[Tensor, None]:
        """(1, 3, H, W) -> (1, K, h, w)."""
        return torch.from_numpy(self.runner({"picture": x_BCHW.numpy()})["logits"]), None
