"""Grouped matrix products over rows sorted by expert, for widths above `FUSED_WIDTH` and for weight gradients, and the
sum of an item's slots.

Rows stand in the plan's order; "slot" is n * K + k, "item" is n. Nothing is padded: a tile belongs to one expert and
its last rows are masked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.triton import configs
from moevision.kernels.triton.common import activate, dot, launch, locate_tile, num_tiles, power_of_two, precision


@triton.jit
def grouped_gemm_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, gate_ptr, order_ptr, offsets_ptr, num_rows, x_stride, w_stride_m, w_stride_n,
    M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, K: tl.constexpr, GATHER: tl.constexpr, SCATTER: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: a tile of one expert's rows x a block of columns, y = gate * (act(x) @ w[expert] + b[expert]).

    On chip: the accumulator. Read: rows of x (GATHER: of their items, else in sorted order) and w; written: y, by slot
    (SCATTER) or in sorted order; rows of empty slots are written as zeros.
    """
    expert, start, stop = locate_tile(offsets_ptr, tl.program_id(0), num_rows, E, BLOCK_E, BLOCK_R)
    if expert < 0:
        return
    row = start + tl.arange(0, BLOCK_R)
    valid = row < stop
    slot = tl.load(order_ptr + row, mask=valid, other=0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    target = tl.where(valid, slot if SCATTER else row, 0).to(tl.int64)
    y_ptrs = y_ptr + target[:, None] * N + n[None, :]
    y_mask = valid[:, None] & (n[None, :] < N)
    if expert == E:
        tl.store(y_ptrs, tl.zeros((BLOCK_R, BLOCK_N), y_ptr.dtype.element_ty), mask=y_mask)
        return
    source = tl.where(valid, slot // K if GATHER else row, 0).to(tl.int64)
    w_base = w_ptr + expert.to(tl.int64) * M * N
    total = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        x = tl.load(x_ptr + source[:, None] * x_stride + m[None, :], mask=valid[:, None] & (m[None, :] < M), other=0.0)
        if ACTIVATION != "none":
            x = activate(x.to(tl.float32), ACTIVATION).to(x_ptr.dtype.element_ty)
        w_mask = (m[:, None] < M) & (n[None, :] < N)
        w = tl.load(w_base + m[:, None] * w_stride_m + n[None, :] * w_stride_n, mask=w_mask, other=0.0)
        total = dot(x, w, total, PRECISION)
    if BIASED:
        total += tl.load(b_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GATED:
        total *= tl.load(gate_ptr + slot, mask=valid, other=0.0).to(tl.float32)[:, None]
    tl.store(y_ptrs, total.to(y_ptr.dtype.element_ty), mask=y_mask)


@triton.jit
def weight_gradient_kernel(
    left_ptr, right_ptr, gate_ptr, order_ptr, offsets_ptr, dw_ptr, db_ptr, left_stride, right_stride, splits,
    M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, K: tl.constexpr, GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: a block of one expert's dw = act(left)^T (gate * right) over one of `splits` parts of its rows.

    On chip: the accumulators of dw and, in the programs of the first block of M, of db = sum of gate * right. Read:
    rows of left and right, gathered by item or in sorted order; written: dw (S, E, M, N) and db (S, E, N), zeros where
    an expert has no rows.
    """
    expert, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    m, n = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(offsets_ptr + expert), tl.load(offsets_ptr + expert + 1)
    part = ((end - first + splits - 1) // splits + BLOCK_R - 1) // BLOCK_R * BLOCK_R
    start = first + split * part
    stop = tl.minimum(start + part, end)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_N,), tl.float32)
    for row0 in range(start, stop, BLOCK_R):
        row = row0 + tl.arange(0, BLOCK_R)
        valid = row < stop
        slot = tl.load(order_ptr + row, mask=valid, other=0)
        left_row, right_row = slot // K if GATHER_LEFT else row, slot // K if GATHER_RIGHT else row
        left_mask, right_mask = (m[:, None] < M) & valid[None, :], valid[:, None] & (n[None, :] < N)
        left = tl.load(left_ptr + left_row[None, :] * left_stride + m[:, None], mask=left_mask, other=0.0)
        right = tl.load(right_ptr + right_row[:, None] * right_stride + n[None, :], mask=right_mask, other=0.0)
        if ACTIVATION != "none":
            left = activate(left.to(tl.float32), ACTIVATION).to(left_ptr.dtype.element_ty)
        wide = right.to(tl.float32)
        if GATED:
            wide *= tl.load(gate_ptr + slot, mask=valid, other=0.0).to(tl.float32)[:, None]
            right = wide.to(right_ptr.dtype.element_ty)
        db += tl.sum(wide, 0)
        dw = dot(left, right, dw, PRECISION)
    block = (split * E + expert).to(tl.int64)
    dw_mask = (m[:, None] < M) & (n[None, :] < N)
    tl.store(dw_ptr + block * M * N + m[:, None] * N + n[None, :], dw.to(dw_ptr.dtype.element_ty), mask=dw_mask)
    if tl.program_id(1) == 0:
        tl.store(db_ptr + block * N + n, db.to(db_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def sum_slots_kernel(slots_ptr, y_ptr, num_values, WIDTH: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """One program: a run of output values, y_n = sum over k of slots_nk in float32.

    On chip: the sums. Read: the K rows of each item; written: y.
    """
    value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = value < num_values
    item, column = value // WIDTH, value % WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        total += tl.load(slots_ptr + (item * K + k) * WIDTH + column, mask=valid, other=0.0).to(tl.float32)
    tl.store(y_ptr + value, total.to(y_ptr.dtype.element_ty), mask=valid)


def grouped_gemm(
    x: Tensor, w_EMN: Tensor, b_EN: Tensor | None, gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, *,
    gather: bool, scatter: bool, gated: bool, activation: str = "none",
) -> Tensor:  # fmt: skip
    """y (R, N) = gate * (act(x) @ w[expert] + b[expert]) for rows sorted by expert.

    Args:
        x: (N, M) if `gather`, else (R, M) in sorted order; its last dimension contiguous.
        w_EMN: one matrix per expert, of any two inner strides.
        gather: read x by item. scatter: write y by slot. gated: multiply by the slot's gate.
        activation: applied to x, or "none".
    """
    (num_experts, m_size, n_size), num_rows = w_EMN.shape, order_R.shape[0]
    y_RN = x.new_empty(num_rows, n_size)
    blocks = configs.grouped_gemm(n_size, x.dtype)
    grid = (num_tiles(num_rows, num_experts, blocks.rows), triton.cdiv(n_size, blocks.columns))
    launch(
        grouped_gemm_kernel,
        grid if num_rows else (0,),
        {
            "x_ptr": x, "w_ptr": w_EMN, "b_ptr": x if b_EN is None else b_EN, "y_ptr": y_RN, "gate_ptr": gate_NK,
            "order_ptr": order_R, "offsets_ptr": offsets_E1, "num_rows": num_rows, "x_stride": x.stride(0),
            "w_stride_m": w_EMN.stride(1), "w_stride_n": w_EMN.stride(2),
        },
        {
            "M": m_size, "N": n_size, "E": num_experts, "K": gate_NK.shape[1], "GATHER": gather, "SCATTER": scatter,
            "GATED": gated, "BIASED": b_EN is not None, "ACTIVATION": activation, "PRECISION": precision(x.dtype),
            "BLOCK_E": power_of_two(num_experts + 1), "BLOCK_R": blocks.rows, "BLOCK_M": blocks.inner,
            "BLOCK_N": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return y_RN


def weight_gradient(
    left: Tensor, right: Tensor, gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, *,
    gather_left: bool, gather_right: bool, gated: bool, activation: str = "none",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dw (E, M, N), db (E, N)) = per expert (act(left)^T (gate * right), the sum of gate * right) over its rows."""
    num_experts, num_rows = offsets_E1.shape[0] - 1, order_R.shape[0]
    m_size, n_size = left.shape[1], right.shape[1]
    blocks = configs.weight_gradient(m_size, n_size, left.dtype)
    cells = triton.cdiv(m_size, blocks.inner), triton.cdiv(n_size, blocks.columns)
    splits = configs.row_splits(num_rows, num_experts, cells[0] * cells[1])
    dtype = left.dtype if splits == 1 else torch.float32
    dw_SEMN = left.new_empty((splits, num_experts, m_size, n_size), dtype=dtype)
    db_SEN = left.new_empty((splits, num_experts, n_size), dtype=dtype)
    launch(
        weight_gradient_kernel,
        (num_experts * splits, *cells),
        {
            "left_ptr": left, "right_ptr": right, "gate_ptr": gate_NK, "order_ptr": order_R, "offsets_ptr": offsets_E1,
            "dw_ptr": dw_SEMN, "db_ptr": db_SEN, "left_stride": left.stride(0), "right_stride": right.stride(0),
            "splits": splits,
        },
        {
            "M": m_size, "N": n_size, "E": num_experts, "K": max(gate_NK.shape[1], 1), "GATHER_LEFT": gather_left,
            "GATHER_RIGHT": gather_right, "GATED": gated, "ACTIVATION": activation,
            "PRECISION": precision(left.dtype), "BLOCK_R": blocks.rows, "BLOCK_M": blocks.inner,
            "BLOCK_N": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    if splits == 1:
        return dw_SEMN[0], db_SEN[0]
    return dw_SEMN.sum(0).to(left.dtype), db_SEN.sum(0).to(left.dtype)


def sum_slots(slots_RO: Tensor, num_slots: int) -> Tensor:
    """(N * K, O) -> (N, O): the sum over each item's slots; `slots_RO` itself when there is one slot an item."""
    if num_slots == 1:
        return slots_RO
    num_items, width = slots_RO.shape[0] // max(num_slots, 1), slots_RO.shape[1]
    y_NO = slots_RO.new_empty(num_items, width)
    launch(
        sum_slots_kernel,
        (triton.cdiv(num_items * width, 1024),),
        {"slots_ptr": slots_RO, "y_ptr": y_NO, "num_values": num_items * width},
        {"WIDTH": width, "K": num_slots, "BLOCK": 1024},
        num_warps=4,
    )
    return y_NO
