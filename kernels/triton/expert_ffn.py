"""`expert_ffn` in Triton, forward and backward.

Up to `FUSED_WIDTH` one program takes a tile of one expert's rows through the whole FFN: the hidden layer never leaves
the chip (in training its pre-activation is also written, for the backward pass). Above, two grouped products. Rows are
written by slot and an item's slots summed in a fixed order: no atomics, bitwise deterministic.
"""

import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.bodies import Unsupported
from moevision.kernels.triton import configs
from moevision.kernels.triton.common import (
    FUSED_WIDTH,
    MAX_EXPERTS,
    activate,
    activation_slope,
    dot,
    launch,
    locate_tile,
    num_tiles,
    power_of_two,
    precision,
    unit_stride,
)
from moevision.kernels.triton.grouped import grouped_gemm, sum_slots, weight_gradient


@triton.jit
def fused_forward_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, gate_ptr, order_ptr, offsets_ptr, y_ptr, u_ptr, num_rows, x_stride,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, E: tl.constexpr, K: tl.constexpr, SAVE: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program: a tile of one expert's rows through the whole FFN, y_slot = gate * (act(x w1 + b1) w2 + b2).

    On chip: the tile of x, a block of the hidden layer at a time, the accumulator of y. Read: rows of x by item, the
    expert's weights; written: y by slot (zeros for empty slots) and, if SAVE, the pre-activation u in sorted order.
    """
    expert, start, stop = locate_tile(offsets_ptr, tl.program_id(0), num_rows, E, BLOCK_E, BLOCK_R)
    if expert < 0:
        return
    row = start + tl.arange(0, BLOCK_R)
    valid = row < stop
    slot = tl.load(order_ptr + row, mask=valid, other=0)
    o = tl.arange(0, BLOCK_O)
    y_ptrs, y_mask = y_ptr + slot[:, None] * O + o[None, :], valid[:, None] & (o[None, :] < O)
    if expert == E:
        tl.store(y_ptrs, tl.zeros((BLOCK_R, BLOCK_O), y_ptr.dtype.element_ty), mask=y_mask)
        return
    d = tl.arange(0, BLOCK_D)
    x_mask = valid[:, None] & (d[None, :] < D)
    x = tl.load(x_ptr + (slot // K)[:, None] * x_stride + d[None, :], mask=x_mask, other=0.0)
    w1_base, w2_base = w1_ptr + expert.to(tl.int64) * D * H, w2_ptr + expert.to(tl.int64) * H * O
    y = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        w1_mask, w2_mask = (d[:, None] < D) & (h[None, :] < H), (h[:, None] < H) & (o[None, :] < O)
        w1 = tl.load(w1_base + d[:, None] * H + h[None, :], mask=w1_mask, other=0.0)
        u = dot(x, w1, tl.zeros((BLOCK_R, BLOCK_H), tl.float32), PRECISION)
        u += tl.load(b1_ptr + expert * H + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
        if SAVE:
            u_mask = valid[:, None] & (h[None, :] < H)
            tl.store(u_ptr + row.to(tl.int64)[:, None] * H + h[None, :], u.to(u_ptr.dtype.element_ty), mask=u_mask)
        hidden = activate(u, ACTIVATION).to(x_ptr.dtype.element_ty)
        w2 = tl.load(w2_base + h[:, None] * O + o[None, :], mask=w2_mask, other=0.0)
        y = dot(hidden, w2, y, PRECISION)
    y += tl.load(b2_ptr + expert * O + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    y *= tl.load(gate_ptr + slot, mask=valid, other=0.0).to(tl.float32)[:, None]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=y_mask)


@triton.jit
def rows_backward_kernel(
    dy_ptr, w1_ptr, w2_ptr, b2_ptr, gate_ptr, order_ptr, offsets_ptr, u_ptr, du_ptr, dgate_ptr, dx_ptr, num_rows,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, E: tl.constexpr, K: tl.constexpr, FUSED: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program: for a tile of one expert's rows du = gate * (dy w2^T) * act'(u), dgate = <dy w2^T, act(u)> +
    <dy, b2> and, if FUSED, dx_slot = du w1^T.

    On chip: FUSED the whole tile of dy and the accumulator of dx, else a block of dy at a time; a block of the hidden
    layer. Read: rows of dy by item, u in sorted order, weights; written: du in sorted order, dgate and dx by slot
    (zeros for empty slots).
    """
    expert, start, stop = locate_tile(offsets_ptr, tl.program_id(0), num_rows, E, BLOCK_E, BLOCK_R)
    if expert < 0:
        return
    row = start + tl.arange(0, BLOCK_R)
    valid = row < stop
    slot = tl.load(order_ptr + row, mask=valid, other=0)
    d, o = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_O)
    dx_ptrs, dx_mask = dx_ptr + slot[:, None] * D + d[None, :], valid[:, None] & (d[None, :] < D)
    if expert == E:
        tl.store(dgate_ptr + slot, tl.zeros((BLOCK_R,), dgate_ptr.dtype.element_ty), mask=valid)
        if FUSED:
            tl.store(dx_ptrs, tl.zeros((BLOCK_R, BLOCK_D), dx_ptr.dtype.element_ty), mask=dx_mask)
        return
    gate = tl.load(gate_ptr + slot, mask=valid, other=0.0).to(tl.float32)
    w1_base, w2_base = w1_ptr + expert.to(tl.int64) * D * H, w2_ptr + expert.to(tl.int64) * H * O
    dy_ptrs = dy_ptr + (slot // K)[:, None] * O + o[None, :]
    dgate = tl.zeros((BLOCK_R,), tl.float32)
    dx = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        dhidden = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
        for o0 in range(0, O, BLOCK_O):
            dy = tl.load(dy_ptrs + o0, mask=valid[:, None] & (o0 + o[None, :] < O), other=0.0)
            w2_ptrs = w2_base + h[None, :] * O + o0 + o[:, None]
            w2 = tl.load(w2_ptrs, mask=(h[None, :] < H) & (o0 + o[:, None] < O), other=0.0)
            dhidden = dot(dy, w2, dhidden, PRECISION)
        at_u, u_mask = row.to(tl.int64)[:, None] * H + h[None, :], valid[:, None] & (h[None, :] < H)
        u = tl.load(u_ptr + at_u, mask=u_mask, other=0.0).to(tl.float32)
        dgate += tl.sum(dhidden * activate(u, ACTIVATION), 1)
        du = (gate[:, None] * dhidden * activation_slope(u, ACTIVATION)).to(du_ptr.dtype.element_ty)
        tl.store(du_ptr + at_u, du, mask=u_mask)
        if FUSED:
            w1_ptrs = w1_base + d[None, :] * H + h[:, None]
            w1 = tl.load(w1_ptrs, mask=(h[:, None] < H) & (d[None, :] < D), other=0.0)
            dx = dot(du, w1, dx, PRECISION)
    for o0 in range(0, O, BLOCK_O):
        dy = tl.load(dy_ptrs + o0, mask=valid[:, None] & (o0 + o[None, :] < O), other=0.0).to(tl.float32)
        b2 = tl.load(b2_ptr + expert * O + o0 + o, mask=o0 + o < O, other=0.0).to(tl.float32)
        dgate += tl.sum(dy * b2[None, :], 1)
    tl.store(dgate_ptr + slot, dgate.to(dgate_ptr.dtype.element_ty), mask=valid)
    if FUSED:
        tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=dx_mask)


def expert_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `cpu.expert_ffn`."""
    (num_experts, dim, hidden), width = w1_EDH.shape, w2_EHO.shape[2]
    num_rows, num_slots = order_R.shape[0], gate_NK.shape[1]
    _check(num_experts)
    if num_rows == 0 or width == 0:
        return x_ND.new_zeros(x_ND.shape[0], width), x_ND.new_empty((num_rows if save else 0, hidden))
    x_ND, gate_NK = unit_stride(x_ND), gate_NK.contiguous()
    w1_EDH, b1_EH, w2_EHO, b2_EO = (t.contiguous() for t in (w1_EDH, b1_EH, w2_EHO, b2_EO))
    plan = gate_NK, order_R, offsets_E1
    if max(dim, width) > FUSED_WIDTH:
        u_RH = grouped_gemm(x_ND, w1_EDH, b1_EH, *plan, gather=True, scatter=False, gated=False)
        y_RO = grouped_gemm(
            u_RH, w2_EHO, b2_EO, *plan, gather=False, scatter=True, gated=True, activation=activation
        )  # fmt: skip
        return sum_slots(y_RO, num_slots), u_RH if save else u_RH.new_empty((0, hidden))
    y_RO, u_RH = x_ND.new_empty(num_rows, width), x_ND.new_empty((num_rows if save else 0, hidden))
    blocks = configs.expert_ffn(max(dim, width), x_ND.dtype, triton.next_power_of_2(triton.cdiv(num_rows, num_experts)))
    launch(
        fused_forward_kernel,
        (num_tiles(num_rows, num_experts, blocks.rows),),
        {
            "x_ptr": x_ND, "w1_ptr": w1_EDH, "b1_ptr": b1_EH, "w2_ptr": w2_EHO, "b2_ptr": b2_EO, "gate_ptr": gate_NK,
            "order_ptr": order_R, "offsets_ptr": offsets_E1, "y_ptr": y_RO, "u_ptr": u_RH, "num_rows": num_rows,
            "x_stride": x_ND.stride(0),
        },
        {"SAVE": save, **_constants(w1_EDH, width, num_slots, activation, blocks)},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return sum_slots(y_RO, num_slots), u_RH


def expert_ffn_backward(
    dy_NO: Tensor, x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, u_RH: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `cpu.expert_ffn_backward`."""
    (num_experts, dim, _), width = w1_EDH.shape, w2_EHO.shape[2]
    num_rows, num_slots = order_R.shape[0], gate_NK.shape[1]
    _check(num_experts)
    if num_rows == 0:
        shaped = (x_ND, w1_EDH, b1_EH, w2_EHO, b2_EO, gate_NK)
        dx, dw1, db1, dw2, db2, dgate = (t.new_zeros(t.shape) for t in shaped)
        return dx, dw1, db1, dw2, db2, dgate
    dy_NO, x_ND, gate_NK = dy_NO.contiguous(), unit_stride(x_ND), gate_NK.contiguous()
    w1_EDH, w2_EHO, b2_EO = w1_EDH.contiguous(), w2_EHO.contiguous(), b2_EO.contiguous()
    plan = gate_NK, order_R, offsets_E1
    fused = max(dim, width) <= FUSED_WIDTH
    du_RH, dgate_NK = u_RH.new_empty(u_RH.shape), gate_NK.new_empty(gate_NK.shape)
    dx_RD = x_ND.new_empty((num_rows if fused else 0, dim))
    blocks = configs.expert_ffn_backward(max(dim, width), x_ND.dtype)
    launch(
        rows_backward_kernel,
        (num_tiles(num_rows, num_experts, blocks.rows),),
        {
            "dy_ptr": dy_NO, "w1_ptr": w1_EDH, "w2_ptr": w2_EHO, "b2_ptr": b2_EO, "gate_ptr": gate_NK,
            "order_ptr": order_R, "offsets_ptr": offsets_E1, "u_ptr": u_RH, "du_ptr": du_RH, "dgate_ptr": dgate_NK,
            "dx_ptr": dx_RD, "num_rows": num_rows,
        },
        {"FUSED": fused, **_constants(w1_EDH, width, num_slots, activation, blocks)},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    if not fused:
        dx_RD = grouped_gemm(du_RH, w1_EDH.mT, None, *plan, gather=False, scatter=True, gated=False)
    dw1_EDH, db1_EH = weight_gradient(x_ND, du_RH, *plan, gather_left=True, gather_right=False, gated=False)
    dw2_EHO, db2_EO = weight_gradient(
        u_RH, dy_NO, *plan, gather_left=False, gather_right=True, gated=True, activation=activation
    )
    return sum_slots(dx_RD, num_slots), dw1_EDH, db1_EH, dw2_EHO, db2_EO, dgate_NK


def _constants(
    w1_EDH: Tensor, width: int, num_slots: int, activation: str, blocks: configs.Blocks
) -> dict[str, int | str]:  # fmt: skip
    num_experts, dim, hidden = w1_EDH.shape
    return {
        "D": dim, "H": hidden, "O": width, "E": num_experts, "K": num_slots, "ACTIVATION": activation,
        "PRECISION": precision(w1_EDH.dtype), "BLOCK_E": power_of_two(num_experts + 1), "BLOCK_R": blocks.rows,
        "BLOCK_D": min(power_of_two(dim), FUSED_WIDTH), "BLOCK_H": blocks.inner,
        "BLOCK_O": min(power_of_two(width), blocks.columns),
    }  # fmt: skip


def _check(num_experts: int) -> None:
    if num_experts > MAX_EXPERTS:
        raise Unsupported(f"the kernels route to at most {MAX_EXPERTS} experts, got {num_experts}")
