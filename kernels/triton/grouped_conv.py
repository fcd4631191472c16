"""`grouped_conv` in Triton, forward and backward, and sums of rows by expert.

Windows are small, so one program has a whole kernel's taps of a block of a window's channels in its registers. The
gradients of kernels are summed in two stages, within windows and then over those of an expert, without atomics: bitwise
deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.triton import configs
from moevision.kernels.triton.common import dot, launch, precision


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, b_ptr, index_ptr, y_ptr, stride_n, stride_c, stride_h, stride_w, channels, height, width,
    out_height, out_width, E: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, FLIPPED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: a block of positions of a block of one window's channels, convolved with its expert's kernels.

    FLIPPED they are turned round and the window padded with zeros by all that they reach: then the gradient of y
    becomes that of x, and there is no bias. On chip: the kernels' taps, the accumulator. Read: x, w, b; written: y,
    contiguous, zeros where the window has no expert.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.program_id(2) * BLOCK_S + tl.arange(0, BLOCK_S)
    row, column = s // out_width, s % out_width
    inside = (c < channels)[:, None] & (row < out_height)[None, :]
    expert = tl.load(index_ptr + n)
    known = (expert >= 0) & (expert < E)
    of_expert = tl.where(known, expert, 0) * channels + c
    y = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for p in range(P):
        for q in tl.static_range(Q):
            h, v = row + p, column + q
            at_tap = p * Q + q
            if FLIPPED:
                h, v = h - (P - 1), v - (Q - 1)
                at_tap = P * Q - 1 - at_tap
            reached = (h >= 0) & (h < height) & (v >= 0) & (v < width)
            at_x = n * stride_n + c[:, None] * stride_c + (h * stride_h + v * stride_w)[None, :]
            x = tl.load(x_ptr + at_x, mask=inside & reached[None, :] & known, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + of_expert * (P * Q) + at_tap, mask=(c < channels) & known, other=0.0).to(tl.float32)
            y += x * w[:, None]
    if not FLIPPED:
        y += tl.load(b_ptr + of_expert, mask=(c < channels) & known, other=0.0).to(tl.float32)[:, None]
    at_y = (n * channels + c)[:, None] * (out_height * out_width) + s[None, :]
    tl.store(y_ptr + at_y, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def conv_gradient_kernel(
    dy_ptr, x_ptr, index_ptr, out_ptr, stride_n, stride_c, stride_h, stride_w, channels, out_height, out_width,
    E: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: what a block of one window's channels gives to the gradients of its expert's kernels and biases.

    On chip: one tap's products, summed over positions at last. Read: dy and x, again for every tap, from the cache;
    written: a row (C P Q + C) of float32, zeros where the window has no expert.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    expert = tl.load(index_ptr + n)
    known = (expert >= 0) & (expert < E)
    positions = out_height * out_width
    row_ptr = out_ptr + n * channels * (P * Q + 1)
    for tap in range(P * Q + 1):
        # After the kernel's taps one that sees ones in place of x: the bias.
        is_tap = tap < P * Q
        total = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
        for s0 in range(0, positions, BLOCK_S):
            s = s0 + tl.arange(0, BLOCK_S)
            mask = (c < channels)[:, None] & (s < positions)[None, :] & known
            at_dy = (n * channels + c)[:, None] * positions + s[None, :]
            dy = tl.load(dy_ptr + at_dy, mask=mask, other=0.0).to(tl.float32)
            h, v = s // out_width + tap // Q, s % out_width + tap % Q
            at_x = n * stride_n + c[:, None] * stride_c + (h * stride_h + v * stride_w)[None, :]
            x = tl.load(x_ptr + at_x, mask=mask & is_tap, other=1.0).to(tl.float32)
            total += dy * x
        at = tl.where(is_tap, c * (P * Q) + tap, channels * (P * Q) + c)
        tl.store(row_ptr + at, tl.sum(total, 1), mask=c < channels)


@triton.jit
def segment_sum_kernel(
    values_ptr, weight_ptr, index_ptr, out_ptr, num_rows, part,
    E: tl.constexpr, F: tl.constexpr, K: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program: a block of features of a part of the rows, added up for a block of experts.

    On chip: the accumulator, and by how much each row of a block counts for each expert, whose product with the rows is
    what is added. Read: rows, their K indices and, if WEIGHTED, weights; written: out (parts, E, F), all of it.
    """
    e = tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start = tl.program_id(0).to(tl.int64) * part
    stop = tl.minimum(start + part, num_rows)
    total = tl.zeros((BLOCK_E, BLOCK_F), tl.float32)
    for row0 in range(start, stop, BLOCK_R):
        row = row0 + tl.arange(0, BLOCK_R)
        valid = row < stop
        share = tl.zeros((BLOCK_E, BLOCK_R), tl.float32)
        for k in tl.static_range(K):
            expert = tl.load(index_ptr + row * K + k, mask=valid, other=-1)
            # The weight of an empty slot is not read: it may be NaN.
            known = (expert >= 0) & (expert < E)
            weight = known.to(tl.float32)
            if WEIGHTED:
                weight = tl.load(weight_ptr + row * K + k, mask=known, other=0.0).to(tl.float32)
            share += tl.where(e[:, None] == expert[None, :], weight[None, :], 0.0)
        mask = valid[:, None] & (f[None, :] < F)
        values = tl.load(values_ptr + row[:, None] * F + f[None, :], mask=mask, other=0.0)
        total = dot(share.to(values_ptr.dtype.element_ty), values, total, PRECISION)
    at = (tl.program_id(0).to(tl.int64) * E + e)[:, None] * F + f[None, :]
    tl.store(out_ptr + at, total, mask=(e[:, None] < E) & (f[None, :] < F))


def grouped_conv(x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor, index_N: Tensor) -> Tensor:
    """See `cpu.grouped_conv`."""
    num_windows, channels, height, width = x_NCHW.shape
    y_NCYX = x_NCHW.new_empty(num_windows, channels, height - w_ECPQ.shape[2] + 1, width - w_ECPQ.shape[3] + 1)
    _convolve(x_NCHW, w_ECPQ, b_EC.contiguous(), index_N, y_NCYX, flipped=False)
    return y_NCYX


def grouped_conv_backward(
    dy_NCYX: Tensor, x_NCHW: Tensor, w_ECPQ: Tensor, index_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `cpu.grouped_conv_backward`."""
    (num_experts, channels, *kernel), num_windows = w_ECPQ.shape, x_NCHW.shape[0]
    if x_NCHW.numel() == 0:
        return x_NCHW.new_zeros(x_NCHW.shape), w_ECPQ.new_zeros(w_ECPQ.shape), w_ECPQ.new_zeros(w_ECPQ.shape[:2])
    dy_NCYX, index_N = dy_NCYX.contiguous(), index_N.contiguous()
    dx_NCHW = x_NCHW.new_empty(x_NCHW.shape)
    _convolve(dy_NCYX, w_ECPQ, None, index_N, dx_NCHW, flipped=True)
    taps = kernel[0] * kernel[1]
    out_height, out_width = dy_NCYX.shape[2:]
    rows_NG = x_NCHW.new_empty((num_windows, channels * (taps + 1)), dtype=torch.float32)
    blocks = configs.grouped_conv(out_height * out_width)
    launch(
        conv_gradient_kernel,
        (num_windows, triton.cdiv(channels, blocks.rows)),
        {
            "dy_ptr": dy_NCYX, "x_ptr": x_NCHW, "index_ptr": index_N, "out_ptr": rows_NG, **_strides(x_NCHW),
            "channels": channels, "out_height": out_height, "out_width": out_width,
        },
        {"E": num_experts, "P": kernel[0], "Q": kernel[1], "BLOCK_C": blocks.rows, "BLOCK_S": blocks.columns},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    sums_EG = segment_sum(rows_NG, None, index_N.unsqueeze(1), num_experts).to(w_ECPQ.dtype)
    dw_EG, db_EC = sums_EG.split((channels * taps, channels), 1)
    # Clones, for a single expert's parts are contiguous already, and gradients may not share memory.
    dw_EG, db_EC = (t.clone(memory_format=torch.contiguous_format) for t in (dw_EG, db_EC))
    return dx_NCHW, dw_EG.view(w_ECPQ.shape), db_EC


def segment_sum(values_RF: Tensor, weight_NK: Tensor | None, index_NK: Tensor, num_experts: int) -> Tensor:
    """(E, F) float32: for each expert the sum of the rows that name it, by weight if there is one.

    Args:
        values_RF: contiguous; a row for every item, or R = N * K, one for every slot, if there are no weights.
        weight_NK, index_NK: contiguous; an index outside 0..E-1 adds nothing.
    """
    num_rows, width = values_RF.shape
    blocks = configs.segment_sum(num_experts, width, values_RF.dtype)
    cells = triton.cdiv(width, blocks.columns), triton.cdiv(num_experts, blocks.inner)
    parts = configs.segment_parts(num_rows, cells[0] * cells[1])
    out_SEF = values_RF.new_empty((parts, num_experts, width), dtype=torch.float32)
    launch(
        segment_sum_kernel,
        (parts, *cells),
        {
            "values_ptr": values_RF, "weight_ptr": values_RF if weight_NK is None else weight_NK,
            "index_ptr": index_NK, "out_ptr": out_SEF, "num_rows": num_rows, "part": triton.cdiv(num_rows, parts),
        },
        {
            "E": num_experts, "F": width, "K": 1 if weight_NK is None else index_NK.shape[1],
            "WEIGHTED": weight_NK is not None, "PRECISION": precision(values_RF.dtype), "BLOCK_E": blocks.inner,
            "BLOCK_R": blocks.rows, "BLOCK_F": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out_SEF[0] if parts == 1 else out_SEF.sum(0)


def _convolve(
    x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor | None, index_N: Tensor, y_NCYX: Tensor, *, flipped: bool
) -> None:  # fmt: skip
    """Writes all of `y_NCYX`; `x_NCHW` may have any strides."""
    (num_windows, channels, height, width), (out_height, out_width) = x_NCHW.shape, y_NCYX.shape[2:]
    w_ECPQ = w_ECPQ.contiguous()
    blocks = configs.grouped_conv(out_height * out_width)
    cells = triton.cdiv(channels, blocks.rows), triton.cdiv(out_height * out_width, blocks.columns)
    launch(
        conv_kernel,
        (num_windows, *cells),
        {
            "x_ptr": x_NCHW, "w_ptr": w_ECPQ, "b_ptr": w_ECPQ if b_EC is None else b_EC,
            "index_ptr": index_N.contiguous(), "y_ptr": y_NCYX, **_strides(x_NCHW), "channels": channels,
            "height": height, "width": width, "out_height": out_height, "out_width": out_width,
        },
        {
            "E": w_ECPQ.shape[0], "P": w_ECPQ.shape[2], "Q": w_ECPQ.shape[3], "FLIPPED": flipped,
            "BLOCK_C": blocks.rows, "BLOCK_S": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def _strides(x_NCHW: Tensor) -> dict[str, int]:
    return dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), x_NCHW.stride(), strict=True))
