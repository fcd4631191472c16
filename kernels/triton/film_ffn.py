"""`film_ffn` in Triton, forward and backward.

One program takes a block of items through the whole shared FFN; modulations are gathered by slot, mixed in registers.
The backward pass has rows, each under one modulation: one of an item, with the mixed one (`fuse="activations"`), or one
of each of its slots. Nothing is added to in memory: bitwise deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels import cpu, reference
from moevision.kernels.triton import configs
from moevision.kernels.triton.common import (
    FUSED_WIDTH,
    activate,
    activation_slope,
    dot,
    launch,
    power_of_two,
    precision,
    unit_stride,
)
from moevision.kernels.triton.grouped import sum_slots
from moevision.kernels.triton.grouped_conv import segment_sum

# So many slots are unrolled within the loop over the hidden layer, whose loads are then made ahead. More get a loop of
# their own: what they load would not fit the registers at once.
MOST_UNROLLED = tl.constexpr(2)


@triton.jit
def opaque(value: tl.constexpr, positive):
    """`value`, unknown to the compiler: a loop of so many rounds stays a loop."""
    return tl.minimum(1, positive) * value


@triton.jit
def slot_expert(index_ptr, slot, valid, E: tl.constexpr):
    """(expert, whether there is one) of each slot."""
    expert = tl.load(index_ptr + slot, mask=valid, other=-1)
    return expert, (expert >= 0) & (expert < E)


@triton.jit
def slot_gate(gate_ptr, index_ptr, slot, valid, E: tl.constexpr):
    """The gate of each slot; that of an empty slot is not read, it may be NaN, but 0."""
    _, known = slot_expert(index_ptr, slot, valid, E)
    return tl.load(gate_ptr + slot, mask=known, other=0.0).to(tl.float32)


@triton.jit
def modulation(
    gamma_ptr, beta_ptr, gate_ptr, index_ptr, slot, valid, f, E: tl.constexpr, F: tl.constexpr, GATED: tl.constexpr
):  # fmt: skip
    """(gamma, beta) of each slot's expert at features f, zeros if it has none; GATED both times the slot's gate."""
    expert, known = slot_expert(index_ptr, slot, valid, E)
    # The tables are small; offsets of 64 bits would take twice the registers.
    at, mask = expert.to(tl.int32)[:, None] * F + f[None, :], known[:, None] & (f[None, :] < F)
    gamma = tl.load(gamma_ptr + at, mask=mask, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gate = slot_gate(gate_ptr, index_ptr, slot, valid, E)[:, None]
        gamma *= gate
        beta *= gate
    return gamma, beta


@triton.jit
def mixing_gradient(
    dgamma, dbeta, gamma_ptr, beta_ptr, index_ptr, first, slots, valid, f,
    E: tl.constexpr, F: tl.constexpr, SLOTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(rows, BLOCK_K): what features f add to the gradient of each slot's gate, <dgamma, gamma_e> + <dbeta, beta_e>."""
    k = tl.arange(0, BLOCK_K)[None, :]
    dgate = tl.zeros((first.shape[0], BLOCK_K), tl.float32)
    FEW: tl.constexpr = SLOTS > 0 and SLOTS <= MOST_UNROLLED
    for j in tl.range(0, SLOTS if FEW else slots, loop_unroll_factor=SLOTS if FEW else 1):
        gamma, beta = modulation(gamma_ptr, beta_ptr, gamma_ptr, index_ptr, first + j, valid, f, E, F, False)
        dgate = tl.where(k == j, tl.sum(dgamma * gamma + dbeta * beta, 1)[:, None], dgate)
    return dgate


@triton.jit
def film_forward_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, gamma_ptr, beta_ptr, gate_ptr, index_ptr, y_ptr, u_ptr, num_items, x_stride,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, E: tl.constexpr, K: tl.constexpr, AT_INPUT: tl.constexpr,
    MIXED: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program: a block of items through the FFN, once under the mix of their modulations (MIXED) or under each.

    On chip: the FFN's input, a block of the hidden layer, the accumulator of y. Read: x, gates, indices, gamma, beta,
    weights; written: y and, if SAVE, u = the first product, before the modulation if that is not AT_INPUT.
    """
    FEW: tl.constexpr = K > 0 and K <= MOST_UNROLLED
    n = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = n < num_items
    d, o = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_O)
    x_ptrs, x_mask = x_ptr + n[:, None] * x_stride + d[None, :], valid[:, None] & (d[None, :] < D)
    y = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    slots = opaque(1 if AT_INPUT and not MIXED else K, num_items)
    for run in range(K if AT_INPUT and not MIXED else 1):
        z = tl.load(x_ptrs, mask=x_mask, other=0.0)
        if AT_INPUT:
            x = z.to(tl.float32)
            mixed = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
            for j in range(0, slots):
                gamma, beta = modulation(
                    gamma_ptr, beta_ptr, gate_ptr, index_ptr, n * K + run + j, valid, d, E, D, MIXED
                )  # fmt: skip
                mixed += gamma * x + beta
            z = mixed.to(x_ptr.dtype.element_ty)
        if AT_INPUT and not MIXED:
            gate = slot_gate(gate_ptr, index_ptr, n * K + run, valid, E)[:, None]
        for h0 in range(0, H, BLOCK_H):
            h = h0 + tl.arange(0, BLOCK_H)
            w1_mask, w2_mask = (d[:, None] < D) & (h[None, :] < H), (h[:, None] < H) & (o[None, :] < O)
            w1 = tl.load(w1_ptr + d[:, None] * H + h[None, :], mask=w1_mask, other=0.0)
            u = dot(z, w1, tl.zeros((BLOCK_R, BLOCK_H), tl.float32), PRECISION)
            u += tl.load(b1_ptr + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
            if SAVE:
                u_mask = valid[:, None] & (h[None, :] < H)
                tl.store(u_ptr + n[:, None] * H + h[None, :], u.to(u_ptr.dtype.element_ty), mask=u_mask)
            if AT_INPUT:
                hidden = activate(u, ACTIVATION)
                if not MIXED:
                    hidden *= gate
            else:
                hidden = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
                for j in tl.range(0, K if FEW else slots, loop_unroll_factor=K if FEW else 1):
                    gamma, beta = modulation(
                        gamma_ptr, beta_ptr, gate_ptr, index_ptr, n * K + j, valid, h, E, H, MIXED
                    )  # fmt: skip
                    m = gamma * u + beta
                    if MIXED:
                        hidden += m
                    else:
                        gate = slot_gate(gate_ptr, index_ptr, n * K + j, valid, E)[:, None]
                        hidden += gate * activate(m, ACTIVATION)
                if MIXED:
                    hidden = activate(hidden, ACTIVATION)
            w2 = tl.load(w2_ptr + h[:, None] * O + o[None, :], mask=w2_mask, other=0.0)
            y = dot(hidden.to(x_ptr.dtype.element_ty), w2, y, PRECISION)
    b2 = tl.load(b2_ptr + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    if not MIXED:
        total = tl.zeros((BLOCK_R,), tl.float32)
        for k in range(K):
            total += slot_gate(gate_ptr, index_ptr, n * K + k, valid, E)
        b2 = total[:, None] * b2
    y_mask = valid[:, None] & (o[None, :] < O)
    tl.store(y_ptr + n[:, None] * O + o[None, :], (y + b2).to(y_ptr.dtype.element_ty), mask=y_mask)


@triton.jit
def modulate_kernel(
    x_ptr, gamma_ptr, beta_ptr, gate_ptr, index_ptr, z_ptr, num_rows, x_stride,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: a block of features of a block of rows, z = gamma x + beta under the row's modulation.

    On chip: the sum over slots, if MIXED. Read: x by item, gates, indices, gamma, beta; written: z.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = row < num_rows
    mask = valid[:, None] & (d[None, :] < D)
    item, first = (row, row * K) if MIXED else (row // K, row)
    x = tl.load(x_ptr + item[:, None] * x_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
    z = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for j in range(K if MIXED else 1):
        gamma, beta = modulation(gamma_ptr, beta_ptr, gate_ptr, index_ptr, first + j, valid, d, E, D, MIXED)
        z += gamma * x + beta
    tl.store(z_ptr + row[:, None] * D + d[None, :], z.to(z_ptr.dtype.element_ty), mask=mask)


@triton.jit
def film_backward_kernel(
    dy_ptr, x_ptr, w1_ptr, w2_ptr, b2_ptr, gamma_ptr, beta_ptr, gate_ptr, index_ptr, u_ptr,
    dx_ptr, du_ptr, hidden_ptr, dfilm_ptr, dgate_ptr, num_rows, x_stride,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, E: tl.constexpr, K: tl.constexpr, AT_INPUT: tl.constexpr,
    MIXED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program: for a block of rows everything about them, that is dx, dgate and the factors of other gradients.

    On chip: a block of the hidden layer, the accumulator of the gradient of the FFN's input. Read: dy and x by item, u
    by row if AT_INPUT, else by item, gates, indices, gamma, beta, weights; written, by row: dx, dgate, du, the hidden
    layer times the gate, and dfilm = the gradients of gamma beside those of beta.
    """
    SLOTS: tl.constexpr = K if MIXED else 1
    FEW: tl.constexpr = SLOTS > 0 and SLOTS <= MOST_UNROLLED
    slots = opaque(SLOTS, num_rows)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid, first = row < num_rows, row * SLOTS
    item = row if MIXED else row // K
    d, o, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_K)
    d_mask, o_mask = valid[:, None] & (d[None, :] < D), valid[:, None] & (o[None, :] < O)
    dy_ptrs = dy_ptr + item[:, None] * O + o[None, :]
    dgate = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    if not MIXED:
        gate = slot_gate(gate_ptr, index_ptr, first, valid, E)[:, None]
        b2 = tl.load(b2_ptr + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
        dgate += tl.sum(tl.load(dy_ptrs, mask=o_mask, other=0.0).to(tl.float32) * b2, 1)[:, None]
    dz = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        at_h, h_mask = row[:, None] * H + h[None, :], valid[:, None] & (h[None, :] < H)
        w1_mask, w2_mask = (d[:, None] < D) & (h[None, :] < H), (h[:, None] < H) & (o[None, :] < O)
        at_u = at_h if AT_INPUT else item[:, None] * H + h[None, :]
        u = tl.load(u_ptr + at_u, mask=h_mask, other=0.0).to(tl.float32)
        m = u
        if not AT_INPUT:
            gamma = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
            m = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
            for j in tl.range(0, SLOTS if FEW else slots, loop_unroll_factor=SLOTS if FEW else 1):
                gamma_j, beta_j = modulation(
                    gamma_ptr, beta_ptr, gate_ptr, index_ptr, first + j, valid, h, E, H, MIXED
                )  # fmt: skip
                gamma += gamma_j
                m += gamma_j * u + beta_j
        w2 = tl.load(w2_ptr + h[:, None] * O + o[None, :], mask=w2_mask, other=0.0)
        # Read again every time, from the cache: kept, exact float32 products would have it all in registers.
        dy = tl.load(dy_ptrs, mask=o_mask, other=0.0)
        dhidden = dot(dy, tl.trans(w2), tl.zeros((BLOCK_R, BLOCK_H), tl.float32), PRECISION)
        hidden, du = activate(m, ACTIVATION), dhidden * activation_slope(m, ACTIVATION)
        if not MIXED:
            dgate += tl.sum(dhidden * hidden, 1)[:, None]
            hidden *= gate
            du *= gate
        tl.store(hidden_ptr + at_h, hidden.to(hidden_ptr.dtype.element_ty), mask=h_mask)
        if not AT_INPUT:
            at_film = dfilm_ptr + row[:, None] * (2 * H) + h[None, :]
            tl.store(at_film, (du * u).to(dfilm_ptr.dtype.element_ty), mask=h_mask)
            tl.store(at_film + H, du.to(dfilm_ptr.dtype.element_ty), mask=h_mask)
            if MIXED:
                dgate += mixing_gradient(
                    du * u, du, gamma_ptr, beta_ptr, index_ptr, first, slots, valid, h, E, H, SLOTS, BLOCK_K
                )  # fmt: skip
            du *= gamma
        du = du.to(du_ptr.dtype.element_ty)
        tl.store(du_ptr + at_h, du, mask=h_mask)
        w1 = tl.load(w1_ptr + d[:, None] * H + h[None, :], mask=w1_mask, other=0.0)
        dz = dot(du, tl.trans(w1), dz, PRECISION)
    if AT_INPUT:
        x = tl.load(x_ptr + item[:, None] * x_stride + d[None, :], mask=d_mask, other=0.0).to(tl.float32)
        at_film = dfilm_ptr + row[:, None] * (2 * D) + d[None, :]
        tl.store(at_film, (dz * x).to(dfilm_ptr.dtype.element_ty), mask=d_mask)
        tl.store(at_film + D, dz.to(dfilm_ptr.dtype.element_ty), mask=d_mask)
        if MIXED:
            dgate += mixing_gradient(
                dz * x, dz, gamma_ptr, beta_ptr, index_ptr, first, slots, valid, d, E, D, SLOTS, BLOCK_K
            )  # fmt: skip
        gamma = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
        for j in range(0, slots):
            gamma_j, _ = modulation(gamma_ptr, beta_ptr, gate_ptr, index_ptr, first + j, valid, d, E, D, MIXED)
            gamma += gamma_j
        dz *= gamma
    tl.store(dx_ptr + row[:, None] * D + d[None, :], dz.to(dx_ptr.dtype.element_ty), mask=d_mask)
    slot, slot_mask = first[:, None] + k[None, :], valid[:, None] & (k[None, :] < SLOTS)
    _, known = slot_expert(index_ptr, slot, slot_mask, E)
    tl.store(dgate_ptr + slot, tl.where(known, dgate, 0.0).to(dgate_ptr.dtype.element_ty), mask=slot_mask)


def film_ffn(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `cpu.film_ffn`."""
    weights, film = (w1_DH, b1_H, w2_HO, b2_O), (gamma_EF, beta_EF, gate_NK, index_NK)
    if not _is_fused(w1_DH, w2_HO):
        return cpu.film_ffn(x_ND, *weights, *film, site, fuse, activation, save)
    (num_items, dim), (hidden, width), save = x_ND.shape, w2_HO.shape, save and fuse == "activations"
    x_ND, (w1_DH, b1_H, w2_HO, b2_O) = unit_stride(x_ND), (t.contiguous() for t in weights)
    y_NO, u_NH = x_ND.new_empty(num_items, width), x_ND.new_empty(num_items if save else 0, hidden)
    blocks = configs.film_ffn(site, fuse, max(dim, width), x_ND.dtype)
    launch(
        film_forward_kernel,
        (triton.cdiv(num_items, blocks.rows),),
        {
            "x_ptr": x_ND, "w1_ptr": w1_DH, "b1_ptr": b1_H, "w2_ptr": w2_HO, "b2_ptr": b2_O, **_pointers(*film),
            "y_ptr": y_NO, "u_ptr": u_NH, "num_items": num_items, "x_stride": x_ND.stride(0),
        },
        {"SAVE": save, **_constants(w1_DH, w2_HO, gamma_EF, index_NK, site, fuse, activation, blocks)},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return y_NO, u_NH


def film_ffn_backward(
    dy_NO: Tensor, x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor,
    gamma_EF: Tensor, beta_EF: Tensor, gate_NK: Tensor, index_NK: Tensor, u_NH: Tensor,
    site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `cpu.film_ffn_backward`. R rows, `runs` an item."""
    weights, film = (w1_DH, b1_H, w2_HO, b2_O), (gamma_EF, beta_EF, gate_NK, index_NK)
    if not _is_fused(w1_DH, w2_HO):
        return cpu.film_ffn_backward(dy_NO, x_ND, *weights, *film, u_NH, site, fuse, activation)
    runs = 1 if fuse == "activations" else index_NK.shape[1]
    if x_ND.shape[0] * runs == 0:
        dx, dw1, db1, dw2, db2, dgamma, dbeta, dgate = (
            t.new_zeros(t.shape) for t in (x_ND, *weights, gamma_EF, beta_EF, gate_NK)
        )
        return dx, dw1, db1, dw2, db2, dgamma, dbeta, dgate
    dy_NO, x_ND = dy_NO.contiguous(), unit_stride(x_ND)
    z = _modulated(x_ND, *film, runs, fuse) if site == "input" else x_ND
    u = u_NH if u_NH.shape[0] else torch.addmm(b1_H, z, w1_DH)
    dx_RD, dfilm_RG, du_RH, hidden_RH, dgate_NK = _row_gradients(
        dy_NO, x_ND, w1_DH, w2_HO, b2_O, *film, u, runs, site, fuse, activation
    )
    # The products that are left are ordinary ones, of what the kernel wrote. Without mixing the gates are within that.
    dw1_DH = z.T @ (du_RH if site == "input" else sum_slots(du_RH, runs))
    dw2_HO = sum_slots(hidden_RH, runs).T @ dy_NO
    if fuse == "activations":
        db2_O = dy_NO.sum(0)
        dfilm_EG = segment_sum(dfilm_RG, gate_NK.contiguous(), index_NK.contiguous(), gamma_EF.shape[0])
    else:
        total_N = gate_NK.masked_fill(reference.is_empty(index_NK, gamma_EF.shape[0]), 0).sum(1)
        db2_O = total_N.to(dy_NO.dtype) @ dy_NO
        dfilm_EG = segment_sum(dfilm_RG, None, index_NK.contiguous(), gamma_EF.shape[0])
    # Cloned, for a single expert's halves are contiguous as they are, and gradients may not share memory.
    dgamma_EF, dbeta_EF = (
        half.clone(memory_format=torch.contiguous_format) for half in dfilm_EG.to(x_ND.dtype).chunk(2, 1)
    )
    return sum_slots(dx_RD, runs), dw1_DH, du_RH.sum(0), dw2_HO, db2_O, dgamma_EF, dbeta_EF, dgate_NK


def _modulated(
    x_ND: Tensor, gamma_ED: Tensor, beta_ED: Tensor, gate_NK: Tensor, index_NK: Tensor, runs: int, fuse: str
) -> Tensor:
    """(R, D): the FFN's input in each of its runs."""
    num_rows, dim = x_ND.shape[0] * runs, x_ND.shape[1]
    z_RD, block = x_ND.new_empty(num_rows, dim), min(power_of_two(dim), 64)
    launch(
        modulate_kernel,
        (triton.cdiv(num_rows, 32), triton.cdiv(dim, block)),
        {
            "x_ptr": x_ND, **_pointers(gamma_ED, beta_ED, gate_NK, index_NK), "z_ptr": z_RD, "num_rows": num_rows,
            "x_stride": x_ND.stride(0),
        },
        {
            "D": dim, "E": gamma_ED.shape[0], "K": index_NK.shape[1], "MIXED": fuse == "activations", "BLOCK_R": 32,
            "BLOCK_D": block,
        },
        num_warps=4,
    )  # fmt: skip
    return z_RD


def _row_gradients(
    dy_NO: Tensor, x_ND: Tensor, w1_DH: Tensor, w2_HO: Tensor, b2_O: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, u: Tensor, runs: int, site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (R, D), gradients of gamma beside those of beta (R, 2 F), du (R, H), the hidden layer (R, H), dgate (N, K)."""
    (num_items, dim), (hidden, width), num_slots = x_ND.shape, w2_HO.shape, index_NK.shape[1]
    num_rows, mixed = num_items * runs, fuse == "activations"
    dx_RD, du_RH, hidden_RH = (x_ND.new_empty(num_rows, size) for size in (dim, hidden, hidden))
    dfilm_RG, dgate_NK = x_ND.new_empty(num_rows, 2 * gamma_EF.shape[1]), gate_NK.new_empty(gate_NK.shape)
    blocks = configs.film_ffn_backward(site, fuse, max(dim, width), x_ND.dtype)
    launch(
        film_backward_kernel,
        (triton.cdiv(num_rows, blocks.rows),),
        {
            "dy_ptr": dy_NO, "x_ptr": x_ND, "w1_ptr": w1_DH.contiguous(), "w2_ptr": w2_HO.contiguous(),
            "b2_ptr": b2_O.contiguous(), **_pointers(gamma_EF, beta_EF, gate_NK, index_NK), "u_ptr": u,
            "dx_ptr": dx_RD, "du_ptr": du_RH, "hidden_ptr": hidden_RH, "dfilm_ptr": dfilm_RG, "dgate_ptr": dgate_NK,
            "num_rows": num_rows, "x_stride": x_ND.stride(0),
        },
        {
            "BLOCK_K": power_of_two(num_slots, 1) if mixed else 1,
            **_constants(w1_DH, w2_HO, gamma_EF, index_NK, site, fuse, activation, blocks),
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return dx_RD, dfilm_RG, du_RH, hidden_RH, dgate_NK


def _is_fused(w1_DH: Tensor, w2_HO: Tensor) -> bool:
    """Whether there are kernels of this size. Wider ones would gain little: the FFN is shared, so the torch body's
    products are ordinary dense ones, and it never waits for the device either.
    """
    (dim, hidden), width = w1_DH.shape, w2_HO.shape[1]
    return max(dim, width) <= FUSED_WIDTH and min(dim, hidden, width) > 0


def _pointers(gamma_EF: Tensor, beta_EF: Tensor, gate_NK: Tensor, index_NK: Tensor) -> dict[str, Tensor]:
    named = {"gamma_ptr": gamma_EF, "beta_ptr": beta_EF, "gate_ptr": gate_NK, "index_ptr": index_NK}
    return {name: t.contiguous() for name, t in named.items()}


def _constants(
    w1_DH: Tensor, w2_HO: Tensor, gamma_EF: Tensor, index_NK: Tensor, site: str, fuse: str, activation: str,
    blocks: configs.Blocks,
) -> dict[str, int | str | bool]:  # fmt: skip
    (dim, hidden), width = w1_DH.shape, w2_HO.shape[1]
    return {
        "D": dim, "H": hidden, "O": width, "E": gamma_EF.shape[0], "K": index_NK.shape[1],
        "AT_INPUT": site == "input", "MIXED": fuse == "activations", "ACTIVATION": activation,
        "PRECISION": precision(w1_DH.dtype), "BLOCK_R": blocks.rows, "BLOCK_D": power_of_two(dim),
        "BLOCK_H": blocks.inner, "BLOCK_O": power_of_two(width),
    }  # fmt: skip
