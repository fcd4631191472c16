"""Inverted residual stages of EfficientNet-Lite0 (Tan and Le, ICML 2019): a light convolutional pyramid with ImageNet
weights under Apache-2.0, for tasks whose training pictures are too few to learn edges and textures from.

Normalisation layers are parts of their own while a network learns; `fold_norms` works them into the convolutions.
"""

from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InvertedStage(NamedTuple):
    """Blocks of one kind; `stride` is the first one's."""

    expansion: int
    channels: int
    kernel: int
    stride: int
    blocks: int


STEM = 32
LITE0 = (
    InvertedStage(1, 16, 3, 1, 1),
    InvertedStage(6, 24, 3, 2, 2),
    InvertedStage(6, 40, 5, 2, 2),
    InvertedStage(6, 80, 3, 2, 3),
    InvertedStage(6, 112, 5, 1, 3),
)
PYRAMID_STRIDES, PYRAMID_CHANNELS = (2, 4, 8, 16), (16, 24, 40, 112)


class SameConv(nn.Conv2d):
    """Padded as the weights were trained: where the stride is 2, one more to the right and below."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int = 1, bias: bool = True) -> None:
        padding = 0 if stride > 1 else kernel // 2
        super().__init__(channels, out, kernel, stride, padding=padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / stride, W / stride)."""
        if self.stride[0] > 1:
            both = self.kernel_size[0] - self.stride[0]
            before = both // 2
            x = F.pad(x, (before, both - before, before, both - before))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; around it a residual where the shapes allow.

    Args:
        channels, out: C of what comes in and goes out.
        expansion, kernel, stride: of the block.
        normed: with batch normalisation after every convolution; without, the convolutions have biases.
    """

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int, normed: bool) -> None:
        super().__init__()
        wide, bias = channels * expansion, not normed
        self.expand = nn.Conv2d(channels, wide, 1, bias=bias) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide, bias=bias)
        self.project = nn.Conv2d(wide, out, 1, bias=bias)
        self.expand_norm = norm(wide) if normed and expansion > 1 else nn.Identity()
        self.depthwise_norm = norm(wide) if normed else nn.Identity()
        self.project_norm = norm(out) if normed else nn.Identity()
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand_norm(self.expand(x)), inplace=True)
        y = self.project_norm(self.project(F.relu6(self.depthwise_norm(self.depthwise(y)), inplace=True)))
        return x + y if self.residual else y


class InvertedPyramid(nn.Module):
    """The stem and the stages of LITE0, up to stride 16.

    Args:
        in_channels: of the picture, 3 for the published weights.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_norm = SameConv(in_channels, STEM, 3, 2, bias=False), norm(STEM)
        channels = STEM
        stages = []
        for stage in LITE0:
            blocks = nn.Sequential()
            for number in range(stage.blocks):
                stride = 1 if number else stage.stride
                blocks.append(InvertedResidual(channels, stage.channels, stage.expansion, stage.kernel, stride, True))
                channels = stage.channels
            stages.append(blocks)
        self.stages = nn.ModuleList(stages)
        self._frozen = 0

    def freeze(self, stages: int) -> None:
        """Keep the stem and so many stages as they are, normalisation included; 0 lets all learn."""
        self._frozen = stages
        for part in (self.stem, self.stem_norm, *self.stages):
            part.requires_grad_(True)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, self.stem_norm, *self.stages[: self._frozen]] if self._frozen else []

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [0, 1], H and W multiples of 16 -> features at PYRAMID_STRIDES with PYRAMID_CHANNELS."""
        x = F.relu6(self.stem_norm(self.stem((255 * x_BCHW - 127) / 128)), inplace=True)
        features: list[Tensor] = []
        for stage, blocks in zip(LITE0, self.stages, strict=True):
            if stage.stride == 1 and features:  # goes on at the same stride
                features.pop()
            x = blocks(x)
            features.append(x)
        return features


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as in the published weights; statistics follow faster than there, for runs are shorter."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def fold_norms(module: nn.Module) -> nn.Module:
    """Work every batch normalisation `NAME_norm` into the convolution `NAME` beside it, in place; evaluation only."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                before = cast("nn.Conv2d", part.get_submodule(name.removesuffix("_norm")))
                setattr(part, name.removesuffix("_norm"), torch.nn.utils.fuse_conv_bn_eval(before, child))
                setattr(part, name, nn.Identity())
    return module
