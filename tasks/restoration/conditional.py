"""A convolution with one kernel per condition."""

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
        strength_BW = strength_BW.to(self.weight.dtype)
        weight_BOCHW = torch.einsum("bw,wochk->bochk", strength_BW, self.weight.unflatten(0, (len(self.bias), -1)))
        bias_BO = strength_BW @ self.bias
        groups = x_BCHW.split(len(x_BCHW) // len(weight_BOCHW))
        answers = [F.conv2d(x, w, b, padding=1) for x, w, b in zip(groups, weight_BOCHW, bias_BO, strict=True)]
        return answers[0] if len(answers) == 1 else torch.cat(answers)
