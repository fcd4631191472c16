"""Weights of `quant_linear`: ternary (2 bits) and int4, packed into bytes along the input width.

w ~ (q - offset) * scale, with q unsigned, and scale and offset per output and group of input rows. Ternary weights are
BitNet b1.58's (Ma et al. 2024, section 2): one group, scale = mean |w|, values -1, 0, 1. Int4 is round-to-nearest
between a group's smallest and largest weight, both kept in range with 0.

Shape legend: D input width, H output width, G groups, P = ceil(D * bits / 8) bytes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

INT4_GROUP = 64
BITS = (2, 4)


class PackedWeight(NamedTuple):
    """What `quant_linear` needs besides x: packed_PH uint8, scale_GH and offset_GH float32, bits, rows of a group."""

    packed_PH: Tensor
    scale_GH: Tensor
    offset_GH: Tensor
    bits: int
    group: int


def quantize(weight_DH: Tensor, bits: int) -> PackedWeight:
    """Round and pack a weight matrix.

    Args:
        weight_DH: (D, H), D >= 1, finite.
        bits: 2 (ternary) or 4.

    Raises:
        ValueError: other bits, not a matrix, no rows, or weights that are not finite.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits}")
    if weight_DH.ndim != 2 or weight_DH.shape[0] < 1:
        raise ValueError(f"weight must be (D, H) with D >= 1, got {tuple(weight_DH.shape)}")
    weight_DH = weight_DH.detach().float()
    if not weight_DH.isfinite().all():
        raise ValueError("weight has values that are not finite")
    group = weight_DH.shape[0] if bits == 2 else INT4_GROUP
    grouped_GDH = _in_groups(weight_DH, group)
    if bits == 2:
        scale_GH = weight_DH.abs().mean(0, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        offset_GH = torch.ones_like(scale_GH)
        q_GDH = (grouped_GDH / scale_GH.unsqueeze(1)).round().clamp(-1, 1) + 1
    else:
        low_GH, high_GH = grouped_GDH.amin(1).clamp(max=0), grouped_GDH.amax(1).clamp(min=0)
        scale_GH = ((high_GH - low_GH) / 15).clamp(min=torch.finfo(torch.float32).tiny)
        offset_GH = (-low_GH / scale_GH).round().clamp(0, 15)
        q_GDH = ((grouped_GDH / scale_GH.unsqueeze(1)).round() + offset_GH.unsqueeze(1)).clamp(0, 15)
    q_DH = q_GDH.flatten(0, 1)[: weight_DH.shape[0]].to(torch.uint8)
    return PackedWeight(_pack(q_DH, bits), scale_GH, offset_GH, bits, group)


def dequantize(packed_PH: Tensor, scale_GH: Tensor, offset_GH: Tensor, bits: int, group: int, width: int) -> Tensor:
    """The weights (D, H) float32 that a packed matrix stands for; `width` is D."""
    row_D = torch.arange(width, device=packed_PH.device)
    in_byte = 8 // bits
    shift_D1 = (row_D % in_byte * bits).to(torch.uint8).unsqueeze(1)
    q_DH = packed_PH.index_select(0, row_D // in_byte).bitwise_right_shift(shift_D1).bitwise_and(2**bits - 1)
    group_D = row_D // group
    return (q_DH.float() - offset_GH.index_select(0, group_D)) * scale_GH.index_select(0, group_D)


def _in_groups(weight_DH: Tensor, group: int) -> Tensor:
    groups = -(-weight_DH.shape[0] // group)
    missing = groups * group - weight_DH.shape[0]
    return torch.nn.functional.pad(weight_DH, (0, 0, 0, missing)).view(groups, group, weight_DH.shape[1])


def _pack(q_DH: Tensor, bits: int) -> Tensor:
    in_byte = 8 // bits
    missing = -q_DH.shape[0] % in_byte
    q_PBH = torch.nn.functional.pad(q_DH, (0, 0, 0, missing)).view(-1, in_byte, q_DH.shape[1])
    shift_B1 = torch.arange(0, 8, bits, dtype=torch.uint8, device=q_DH.device).unsqueeze(1)
    return q_PBH.bitwise_left_shift(shift_B1).sum(1, dtype=torch.uint8)
