"""A convolution with one kernel per condition."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConditionalConv(nn.Module):
    """3x3 convolution whose kernel is a sum of kernels, one per condition, each as strong as its condition.

    Every condition has its own answer from the first step of training on, and without any the answer is 0. The sum of
    kernels is that of CondConv (Yang et al., NeurIPS 2019), with given strengths instead of learned ones. Kernels
    start at 0.

    Args:
        conditions: number of conditions W.
        channels, out_channels: of the pictures that come in and go out.
    """

    def __init__(self, conditions: int, channels: int, out_channels: int) -> None:
        super().__init__()
        # Kernels side by side: channels-last memory is for four axes only.
        self.weight = nn.Parameter(torch.zeros(conditions * out_channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(conditions, out_channels))

    def forward(self, x_BCHW: Tensor, strength_BW: Tensor) -> Tensor:
        """(B, C, H, W) and strengths (B, W), or (1, W) for all, -> (B, out_channels, H, W)."""
        return self.kernels(strength_BW)(x_BCHW)

    def kernels(self, strength_BW: Tensor) -> "Kernels":
        """The sum of kernels, for one strength per picture or one for all."""
        strength_BW = strength_BW.to(self.weight.dtype)
        weight_BOCHW = torch.einsum("bw,wochk->bochk", strength_BW, self.weight.unflatten(0, (len(self.bias), -1)))
        return Kernels(weight_BOCHW, strength_BW @ self.bias)


class Kernels(NamedTuple):
    """3x3 kernels and biases of every picture, or (B = 1) of all. Kernels of the same pictures can be added, averaged
    and set side by side before they are applied, which costs less than to do so with what they give.
    """

    weight_BOCHW: Tensor
    bias_BO: Tensor

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        groups = x_BCHW.split(len(x_BCHW) // len(self.weight_BOCHW))
        each = zip(groups, self.weight_BOCHW, self.bias_BO, strict=True)
        answers = [F.conv2d(x, w.contiguous(memory_format=torch.channels_last), b, padding=1) for x, w, b in each]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def split(self, sizes: Sequence[int]) -> tuple["Kernels", ...]:
        """Parts of so many output channels."""
        parts = zip(self.weight_BOCHW.split(sizes, dim=1), self.bias_BO.split(sizes, dim=1), strict=True)
        return tuple(Kernels(*part) for part in parts)

    def mean_of(self, neighbours: int) -> "Kernels":
        """What gives the mean of every so many neighbouring output channels."""
        return Kernels(*(t.unflatten(1, (-1, neighbours)).mean(2) for t in self))

    @staticmethod
    def side_by_side(parts: "Sequence[Kernels]") -> "Kernels":
        """What gives the output channels of one after the other."""
        return Kernels(torch.cat([p.weight_BOCHW for p in parts], 1), torch.cat([p.bias_BO for p in parts], 1))
