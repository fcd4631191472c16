"""MoEBackbone: the one network body that all four tasks share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone.blocks import AttentionBlock, GatedConvBlock
from moevision.backbone.config import BackboneConfig
from moevision.moe import Context

STRIDE = 8


class MoEBackbone(nn.Module):
    """Pixel-unshuffle stem, convolutional stages at strides 2 and 4, attention stage with MoE FFNs at stride 8.

    Args:
        config: sizes and kinds; `config.in_channels` is the task's stem input.
        name: prefix of the layers' names in the Context, for a network that holds two backbones.
    """

    def __init__(self, config: BackboneConfig, name: str = "") -> None:
        super().__init__()
        self.config = config
        c2, c4, c8 = config.stage_channels
        self.stem = nn.Conv2d(4 * config.in_channels, c2, 3, padding=1)
        self.stage2 = nn.ModuleList(GatedConvBlock(f"{name}stage2.{i}", c2) for i in range(config.conv_blocks[0]))
        self.down4 = nn.Conv2d(c2, c4, 2, stride=2)
        self.stage4 = nn.ModuleList(GatedConvBlock(f"{name}stage4.{i}", c4) for i in range(config.conv_blocks[1]))
        self.down8 = nn.Conv2d(c4, c8, 2, stride=2)
        blocks = range(config.attention_blocks)
        self.stage8 = nn.ModuleList(AttentionBlock(f"{name}stage8.{i}", c8, config) for i in blocks)

    def forward(
        self, x_BCHW: Tensor, context: Context | None = None, add8: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Features at strides 2, 4 and 8 of the picture padded (bottom, right) to a multiple of 8.

        Args:
            x_BCHW: float, any H, W >= 1.
            context: receives routing, losses and image-level statistics; a fresh one if None.
            add8: given the features that enter the attention stage, returns what to add to them.

        Returns:
            [(B, C, H'/2, W'/2), (B, 2C, H'/4, W'/4), (B, 4C, H'/8, W'/8)] with H', W' the padded size.
        """
        context = context if context is not None else Context()
        x = pad_to_stride(x_BCHW)
        features = []
        for enter, stage in ((self._stem, self.stage2), (self.down4, self.stage4), (self.down8, self.stage8)):
            x = enter(x)
            if add8 is not None and enter is self.down8:
                x = x + add8(x)
            for block in stage:
                x = block(x, context)
            features.append(x)
        return features

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        # A convolution of the unshuffled picture is one with a stride of the picture itself, several times as fast.
        weight = F.pixel_shuffle(self.stem.weight, 2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x_BCHW, weight, self.stem.bias, stride=2, padding=2)


def pad_to_stride(x_BCHW: Tensor, stride: int = STRIDE) -> Tensor:
    """Replicate the bottom and right edge up to a multiple of `stride` (reflection is undefined for tiny pictures)."""
    height, width = x_BCHW.shape[-2:]
    if height % stride == width % stride == 0 and not torch.compiler.is_compiling():
        return x_BCHW
    return F.pad(x_BCHW, (0, -width % stride, 0, -height % stride), mode="replicate")
