"""MoEBackbone: the one network body that all four tasks share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone.blocks import AttentionBlock, GatedConvBlock
from moevision.backbone.config import BackboneConfig
from moevision.backbone.inverted import PYRAMID_CHANNELS, InvertedPyramid
from moevision.moe import Context

STRIDE = 8


class MoEBackbone(nn.Module):
    """Stem, convolutional stages, and an attention stage with MoE FFNs at the coarsest stride.

    Gated convolutions go down to stride 8 behind a pixel-unshuffle stem: for pictures in, pictures out. The inverted
    residual pyramid goes down to stride 16 and can begin with ImageNet weights: for what things are.

    Args:
        config: sizes and kinds; `config.in_channels` is the task's stem input.
        name: prefix of the layers' names in the Context, for a network that holds two backbones.
    """

    def __init__(self, config: BackboneConfig, name: str = "") -> None:
        super().__init__()
        self.config = config
        blocks = range(config.attention_blocks)
        if config.conv == "inverted":
            c16 = config.stage_channels[-1]
            self.pyramid = InvertedPyramid(config.in_channels)
            self.enter16 = nn.Conv2d(PYRAMID_CHANNELS[-1], c16, 1)
            # Attention knows no places; a depthwise convolution tells it (CPVT, Chu et al. 2023), at any size.
            self.place16 = nn.Conv2d(c16, c16, 3, padding=1, groups=c16)
            self.stage16 = nn.ModuleList(AttentionBlock(f"{name}stage16.{i}", c16, config) for i in blocks)
            return
        c2, c4, c8 = config.stage_channels
        self.stem = nn.Conv2d(4 * config.in_channels, c2, 3, padding=1)
        self.stage2 = nn.ModuleList(GatedConvBlock(f"{name}stage2.{i}", c2) for i in range(config.conv_blocks[0]))
        self.down4 = nn.Conv2d(c2, c4, 2, stride=2)
        self.stage4 = nn.ModuleList(GatedConvBlock(f"{name}stage4.{i}", c4) for i in range(config.conv_blocks[1]))
        self.down8 = nn.Conv2d(c4, c8, 2, stride=2)
        self.stage8 = nn.ModuleList(AttentionBlock(f"{name}stage8.{i}", c8, config) for i in blocks)

    def forward(
        self, x_BCHW: Tensor, context: Context | None = None, add8: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Features at `config.strides` of the picture padded (bottom, right) to a multiple of the coarsest.

        Args:
            x_BCHW: float, any H, W >= 1.
            context: receives routing, losses and image-level statistics; a fresh one if None.
            add8: given the features that enter the attention stage at stride 8, returns what to add to them; for
                gated convolutions only.

        Returns:
            (B, C, H'/s, W'/s) for each stride s, C of `config.stage_channels`, H', W' the padded size.

        Raises ValueError for `add8` with inverted blocks.
        """
        context = context if context is not None else Context()
        if self.config.conv == "inverted":
            if add8 is not None:
                raise ValueError("the inverted pyramid has no attention stage at stride 8 for add8 to add to")
            return self._inverted(x_BCHW, context)
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

    def _inverted(self, x_BCHW: Tensor, context: Context) -> list[Tensor]:
        features = self.pyramid(pad_to_stride(x_BCHW, self.config.strides[-1]))
        x = self.enter16(features[-1])
        x = x + self.place16(x)
        for block in self.stage16:
            x = block(x, context)
        return [*features[:-1], x]

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        # A convolution of the unshuffled picture is one with a stride of the picture itself, several times as fast.
        weight = F.pixel_shuffle(self.stem.weight, 2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x_BCHW, weight, self.stem.bias, stride=2, padding=2)


def pad_to_stride(x_BCHW: Tensor, stride: int = STRIDE) -> Tensor:
    """Replicate the bottom and right edge up to a multiple of `stride` (reflection is undefined for tiny pictures)."""
    height, width = x_BCHW.shape[-2:]
    if height % stride == width % stride == 0 and not torch.compiler.is_compiling():
        return x_BCHW
    # Not -width % stride: with this, an exporter of any size sees that what comes out is a multiple.
    down, across = ((side + stride - 1) // stride * stride - side for side in (height, width))
    return F.pad(x_BCHW, (0, across, 0, down), mode="replicate")
