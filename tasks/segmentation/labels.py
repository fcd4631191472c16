"""From logits on a coarse grid to the class of every pixel, a band of rows at a time; and the overlay of the classes.

All K logits of a picture of 12 megapixels are half a gigabyte; a band of them is a few megabytes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.imaging.picture import quantise, to_float_tile

_BAND_ROWS = 64


class _Axis(NamedTuple):
    """Where the pixels of one axis lie on the grid: between `low_N` and `high_N`, `share_N` of the way."""

    low_N: Tensor
    high_N: Tensor
    share_N: Tensor


def label_bands(
    logits_KHW: Tensor, stride: int, seen_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The likeliest class of every pixel, the logits enlarged bilinearly; bands from top to bottom.

    A band is what lies between two rows of the grid.

    Args:
        logits_KHW: float32 on a grid that begins at the picture's corner and may go on beyond its end, K <= 256.
        stride: pixels of the seen picture between two points of the grid.
        seen_hw: of the picture that the network saw.
        size_hw: of the picture that is wanted.

    Yields:
        The first row of a band, and its ids (rows, W).
    """
    device = logits_KHW.device
    y, x = (
        _axis(wanted, seen / (wanted * stride), cells)
        for wanted, seen, cells in zip(size_hw, seen_hw, logits_KHW.shape[1:], strict=True)
    )
    x = _Axis(*(part_N.to(device) for part_N in x))
    top = 0
    for rows in y.low_N.unique_consecutive(return_counts=True)[1].tolist():
        pair_K2W = logits_KHW[:, [int(y.low_N[top]), int(y.high_N[top])]]
        wide_K2W = torch.lerp(pair_K2W[..., x.low_N], pair_K2W[..., x.high_N], x.share_N)
        yield top, _likeliest(wide_K2W, y.share_N[top : top + rows, None].to(device)).cpu().numpy()
        top += rows


def _axis(length: int, step: float, cells: int) -> _Axis:
    """As of a bilinear resize whose corners, not whose points, are aligned."""
    at_N = ((torch.arange(length, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, cells - 1)
    low_N = at_N.long()
    return _Axis(low_N, (low_N + 1).clamp_max(cells - 1), (at_N - low_N).float())


def _likeliest(wide_K2W: Tensor, share_R1: Tensor) -> Tensor:
    """(R, W) uint8. Class after class: `argmax` over the first dimension takes several times as long."""
    best_RW = torch.lerp(wide_K2W[0, 0], wide_K2W[0, 1], share_R1)
    ids_RW = torch.zeros_like(best_RW, dtype=torch.uint8)
    for number, (above_W, below_W) in enumerate(wide_K2W[1:], 1):
        logit_RW = torch.lerp(above_W, below_W, share_R1)
        ids_RW.masked_fill_(logit_RW > best_RW, number)
        torch.maximum(best_RW, logit_RW, out=best_RW)
    return ids_RW


def draw_overlay(
    pixels_HWC: np.ndarray, ids_HW: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """The classes' colours over a picture.

    Args:
        pixels_HWC: uint8, uint16 or float32, C = 1 or 3.
        ids_HW: of the same size.
        palette: a colour for each id.
        opacity: of the colours, 0 to 1.

    Returns:
        HxWx3 uint8 RGB.
    """
    colours_KC = np.array(palette, np.uint8)
    drawn_HWC = np.empty((*ids_HW.shape, 3), np.uint8)
    for top in range(0, ids_HW.shape[0], _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        below_HWC = pixels_HWC[band]
        if below_HWC.dtype != np.uint8:
            below_HWC = quantise(to_float_tile(below_HWC), np.dtype(np.uint8), 3)
        elif below_HWC.shape[2] == 1:
            below_HWC = np.repeat(below_HWC, 3, axis=2)
        drawn_HWC[band] = cv2.addWeighted(colours_KC[ids_HW[band]], opacity, below_HWC, 1 - opacity, 0)
    return drawn_HWC
