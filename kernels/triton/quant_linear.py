"""`quant_linear` in Triton: packed weights are unpacked in registers, on their way into the product."""

import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.triton import configs
from moevision.kernels.triton.common import dot, launch, precision, unit_stride


@triton.jit
def quant_linear_kernel(
    x_ptr, packed_ptr, scale_ptr, offset_ptr, y_ptr, num_items, x_stride,
    D: tl.constexpr, H: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program: a block of items x a block of outputs, y = x @ ((q - offset) * scale).

    On chip: a block of unpacked weights at a time, the accumulator. Read: x, the packed weights, scale and offset of
    their groups of rows; written: y.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        x_mask = (n[:, None] < num_items) & (d[None, :] < D)
        x = tl.load(x_ptr + n[:, None] * x_stride + d[None, :], mask=x_mask, other=0.0)
        inside = (d[:, None] < D) & (h[None, :] < H)
        byte = tl.load(packed_ptr + (d * BITS // 8)[:, None] * H + h[None, :], mask=inside, other=0).to(tl.int32)
        q = (byte >> (d * BITS % 8)[:, None]) & ((1 << BITS) - 1)
        if GROUP % BLOCK_D == 0 or GROUP >= D:  # all of these rows are of one group
            at_group = (d0 // GROUP) * H + h
            scale = tl.load(scale_ptr + at_group, mask=h < H, other=0.0)[None, :]
            offset = tl.load(offset_ptr + at_group, mask=h < H, other=0.0)[None, :]
        else:
            at_groups = (d // GROUP)[:, None] * H + h[None, :]
            scale = tl.load(scale_ptr + at_groups, mask=inside, other=0.0)
            offset = tl.load(offset_ptr + at_groups, mask=inside, other=0.0)
        # By way of float32: the interpreter cannot make bfloat16 of integers.
        w = (q.to(tl.float32) - offset) * scale
        # A row past the end stands for -offset * scale, which may be infinite in a half type, and 0 * inf is NaN.
        if D % BLOCK_D != 0:
            w = tl.where(d[:, None] < D, w, 0.0)
        total = dot(x, w.to(x_ptr.dtype.element_ty), total, PRECISION)
    y_mask = (n[:, None] < num_items) & (h[None, :] < H)
    tl.store(y_ptr + n[:, None] * H + h[None, :], total.to(y_ptr.dtype.element_ty), mask=y_mask)


def quant_linear(
    x_ND: Tensor, packed_PH: Tensor, scale_GH: Tensor, offset_GH: Tensor, bits: int, group: int
) -> Tensor:  # fmt: skip
    """See `reference.quant_linear`."""
    (num_items, dim), hidden = x_ND.shape, packed_PH.shape[1]
    x_ND = unit_stride(x_ND)
    y_NH = x_ND.new_empty(num_items, hidden)
    blocks = configs.quant_linear(hidden, x_ND.dtype)
    launch(
        quant_linear_kernel,
        (triton.cdiv(num_items, blocks.rows), triton.cdiv(hidden, blocks.columns)),
        {
            "x_ptr": x_ND, "packed_ptr": packed_PH.contiguous(), "scale_ptr": scale_GH.contiguous(),
            "offset_ptr": offset_GH.contiguous(), "y_ptr": y_NH, "num_items": num_items, "x_stride": x_ND.stride(0),
        },
        {
            "D": dim, "H": hidden, "BITS": bits, "GROUP": group, "PRECISION": precision(x_ND.dtype),
            "BLOCK_N": blocks.rows, "BLOCK_D": blocks.inner, "BLOCK_H": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return y_NH
