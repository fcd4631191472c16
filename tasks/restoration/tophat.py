"""White top-hats: what is brighter than its surroundings and smaller than a window.

Streaks and flakes are small and bright, and so is much else: a top-hat (Serra 1982; picture minus its morphological
opening) offers what could be taken away, at four sizes, and the network says where and how much of it. To find that
amount is much easier than to draw every streak (measured in benchmarks/records/2026-11-22-training-study).
"""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# (height, width) in pixels. The flat one leaves what is long and thin alone unless it falls: streaks, not roofs.
WINDOWS_PX = ((1, 9), (5, 5), (9, 9), (17, 17))


@torch.no_grad()
def top_hats(x_BCHW: Tensor) -> tuple[Tensor, ...]:
    """(B, C, H, W), any H, W >= 1 -> for each of WINDOWS_PX as much, of values >= 0: constants, without gradient."""
    return tuple(top_hat(x_BCHW, window) for window in WINDOWS_PX)


def top_hat(x_BCHW: Tensor, window_px: tuple[int, int]) -> Tensor:
    """The picture less its opening, in the ordinary memory layout."""
    if x_BCHW.device.type == "cpu" and x_BCHW.dtype == torch.float32 and not torch.compiler.is_compiling():
        return _top_hat_on_cpu(x_BCHW, window_px)
    return (x_BCHW - opening(x_BCHW, window_px)).contiguous()


def opening(x_BCHW: Tensor, window_px: tuple[int, int]) -> Tensor:
    """The largest picture below this one that is made of flat windows: minimum, then maximum, over odd windows."""
    return -window_minimum(-window_minimum(x_BCHW, window_px), window_px)


def _top_hat_on_cpu(x_BCHW: Tensor, window_px: tuple[int, int]) -> Tensor:
    # The same values bit for bit, several times as fast as passes of torch. OpenCV leaves out what lies outside, too.
    x_BCHW = x_BCHW.detach().contiguous()
    hat_BCHW = torch.empty_like(x_BCHW)
    window, plane = np.ones(window_px, np.uint8), x_BCHW.shape[-2:]
    for x_HW, hat_HW in zip(x_BCHW.view(-1, *plane).numpy(), hat_BCHW.view(-1, *plane).numpy(), strict=True):
        cv2.morphologyEx(x_HW, cv2.MORPH_TOPHAT, window, dst=hat_HW)
    return hat_BCHW


def window_minimum(x_BCHW: Tensor, window_px: tuple[int, int], dilation: int = 1) -> Tensor:
    """Minimum over odd windows (height, width) around every pixel, what lies outside left out; same shape."""
    if dilation == 1 and torch.compiler.is_compiling():  # one operator an axis instead of many slices of any size
        down, across = window_px
        lowest = F.max_pool2d(-x_BCHW, (down, 1), stride=1, padding=(down // 2, 0)) if down > 1 else -x_BCHW
        return -F.max_pool2d(lowest, (1, across), stride=1, padding=(0, across // 2))
    for dim, window in zip((2, 3), window_px, strict=True):
        margin = window // 2 * dilation
        shape = [*x_BCHW.shape]
        shape[dim] = margin
        edge = x_BCHW.new_full(shape, torch.inf)
        x_BCHW = torch.cat([edge, x_BCHW, edge], dim=dim)
        # By doubling: 4 comparisons of shifted copies span 9 positions.
        span = 1
        while span < window:
            shift = min(span, window - span)
            kept = x_BCHW.shape[dim] - shift * dilation
            x_BCHW = torch.minimum(x_BCHW.narrow(dim, 0, kept), x_BCHW.narrow(dim, shift * dilation, kept))
            span += shift
    return x_BCHW
