"""`route` in Triton, forward and backward.

Everything about an item's choice happens in the registers of one program: projection, softmax, top-k. Products are
exact float32 whatever torch allows for TensorFloat-32: a rounding that changes which expert is chosen is no rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.bodies import Unsupported
from moevision.kernels.reference import PROBIT_SCALE
from moevision.kernels.triton import configs
from moevision.kernels.triton.common import MAX_EXPERTS, dot, launch, power_of_two, unit_stride

# What +inf counts as among logits, as in `reference.top_k`.
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def project(
    x_ptr, w_ptr, n, num_items, x_stride, D: tl.constexpr, E: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """(x w^T, x^2 (w^2)^T) of a block of items and all experts; the second is zero unless HAS_VARIANCE."""
    e = tl.arange(0, BLOCK_E)
    mean = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        x_mask, w_mask = (n < num_items)[:, None] & (d < D)[None, :], (e < E)[None, :] & (d < D)[:, None]
        x = tl.load(x_ptr + n[:, None] * x_stride + d[None, :], mask=x_mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + e[None, :] * D + d[:, None], mask=w_mask, other=0.0).to(tl.float32)
        mean = dot(x, w, mean, "ieee")
        if HAS_VARIANCE:
            second = dot(x * x, w * w, second, "ieee")
    return mean, second


@triton.jit
def route_kernel(
    x_ptr, w_ptr, gate_ptr, index_ptr, counts_ptr, probs_ptr, num_items, x_stride, spread,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program: a block of items against all experts; their probabilities, their K experts, the gates of those.

    On chip: the block's logits and, for each, the round in which its expert was chosen (-1: not chosen). Read: x and w;
    written: gate, index, probs; counts are added to, one integer atomic an expert.
    """
    e, row = tl.arange(0, BLOCK_E)[None, :], tl.arange(0, BLOCK_N)
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    n = first + row
    cell = (n < num_items)[:, None] & (e < E)
    logits, second = project(
        x_ptr, w_ptr, n, num_items, x_stride, D, E, HAS_VARIANCE, BLOCK_N, BLOCK_D, BLOCK_E
    )  # fmt: skip
    if HAS_VARIANCE:
        logits *= tl.rsqrt(1.0 + spread * second)
    infinity = float("inf")
    # tl.max drops a NaN, so it counts as infinite: then a row with one is NaN throughout, as in torch, and alone so.
    lifted = tl.where(logits != logits, infinity, logits)
    lifted = tl.where(e < E, lifted, -infinity)
    weight = tl.where(e < E, tl.exp(logits - tl.max(lifted, 1)[:, None]), 0.0)
    at_probs = probs_ptr + first * E + row[:, None] * E + e
    tl.store(at_probs, weight / tl.sum(weight, 1)[:, None], mask=cell)
    # What is chosen or no expert at all gets a key below every logit's: no expert is chosen twice.
    key = tl.where(lifted == logits, tl.minimum(tl.maximum(lifted, -LARGEST), LARGEST), lifted)
    key = tl.where(e < E, key, -infinity)
    place = tl.full((BLOCK_N, BLOCK_E), -1, tl.int32)
    for k in range(K):
        chosen = e == tl.argmax(key, 1, tie_break_left=True)[:, None]
        place = tl.where(chosen, k, place)
        key = tl.where(chosen, -infinity, key)
    chosen = place >= 0
    top = tl.max(tl.where(chosen, lifted, -infinity), 1)
    weight = tl.where(chosen, tl.exp(logits - top[:, None]), 0.0)
    at_slot, chosen = row[:, None] * K + place, chosen & cell
    tl.store(gate_ptr + first * K + at_slot, weight / tl.sum(weight, 1)[:, None], mask=chosen)
    tl.store(index_ptr + first * K + at_slot, tl.broadcast_to(e, (BLOCK_N, BLOCK_E)).to(tl.int64), mask=chosen)
    count = tl.sum(chosen.to(tl.int32), 0)
    e = tl.arange(0, BLOCK_E)
    tl.atomic_add(counts_ptr + e, count.to(tl.int64), mask=(e < E) & (count > 0), sem="relaxed")


@triton.jit
def route_backward_kernel(
    dgate_ptr, dprobs_ptr, x_ptr, w_ptr, gate_ptr, index_ptr, probs_ptr, dmean_ptr, dsecond_ptr, num_items,
    x_stride, dgate_stride_n, dgate_stride_k, dprobs_stride_n, dprobs_stride_e, spread,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program: for a block of items the gradients of both moments of their logits.

    On chip: these gradients and, if HAS_VARIANCE, the moments again. Read: dgate, dprobs, gate, index, probs and, if
    HAS_VARIANCE, x and w; written: dmean and, if HAS_VARIANCE, dsecond, both (N, E).
    """
    e = tl.arange(0, BLOCK_E)[None, :]
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < num_items
    cell = inside[:, None] & (e < E)
    if HAS_VARIANCE:
        mean, second = project(x_ptr, w_ptr, n, num_items, x_stride, D, E, True, BLOCK_N, BLOCK_D, BLOCK_E)
        scale = tl.rsqrt(1.0 + spread * second)
        slope = -0.5 * spread * mean * scale * scale
    probs = tl.load(probs_ptr + n[:, None] * E + e, mask=cell, other=0.0)
    at_dprobs = dprobs_ptr + n[:, None] * dprobs_stride_n + e * dprobs_stride_e
    dprobs = tl.load(at_dprobs, mask=cell, other=0.0).to(tl.float32)
    dmean = probs * (dprobs - tl.sum(probs * dprobs, 1)[:, None])
    shared = tl.zeros((BLOCK_N,), tl.float32)
    for k in range(K):
        gate = tl.load(gate_ptr + n * K + k, mask=inside, other=0.0)
        at_dgate = dgate_ptr + n * dgate_stride_n + k * dgate_stride_k
        shared += gate * tl.load(at_dgate, mask=inside, other=0.0).to(tl.float32)
    for k in range(K):
        gate = tl.load(gate_ptr + n * K + k, mask=inside, other=0.0)
        at_dgate = dgate_ptr + n * dgate_stride_n + k * dgate_stride_k
        dgate = tl.load(at_dgate, mask=inside, other=0.0).to(tl.float32)
        expert = tl.load(index_ptr + n * K + k, mask=inside, other=-1)
        dmean += tl.where(e == expert[:, None], (gate * (dgate - shared))[:, None], 0.0)
    if HAS_VARIANCE:
        dmean *= scale
        tl.store(dsecond_ptr + n[:, None] * E + e, dmean * slope, mask=cell)
    tl.store(dmean_ptr + n[:, None] * E + e, dmean, mask=cell)


@triton.jit
def moment_gradient_kernel(
    dmean_ptr, dsecond_ptr, own_ptr, other_ptr, out_ptr, num_rows, num_terms, part, z_stride_r, z_stride_t,
    own_stride, other_stride, D: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: a block of dmean @ other + 2 own * (dsecond @ other^2), summed over one part of the terms.

    Rows are items, terms experts and `own` is x for the gradient of x; the other way round, with `own` w, for w's.
    On chip: both accumulators. Read: dmean, dsecond, own, other; written: out (S, R, D), a summand for each part.
    """
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(2).to(tl.int64)
    stop = tl.minimum(split * part + part, num_terms)
    linear = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for t0 in range(split * part, stop, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        z_mask, other_mask = (r < num_rows)[:, None] & (t < stop)[None, :], (t < stop)[:, None] & (d < D)[None, :]
        at_z = r[:, None] * z_stride_r + t[None, :] * z_stride_t
        other = tl.load(other_ptr + t[:, None] * other_stride + d[None, :], mask=other_mask, other=0.0).to(tl.float32)
        linear = dot(tl.load(dmean_ptr + at_z, mask=z_mask, other=0.0), other, linear, "ieee")
        if HAS_VARIANCE:
            square = dot(tl.load(dsecond_ptr + at_z, mask=z_mask, other=0.0), other * other, square, "ieee")
    mask = (r < num_rows)[:, None] & (d < D)[None, :]
    if HAS_VARIANCE:
        own = tl.load(own_ptr + r[:, None] * own_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
        linear += 2.0 * own * square
    at_out = out_ptr + (split * num_rows + r)[:, None] * D + d[None, :]
    tl.store(at_out, linear.to(out_ptr.dtype.element_ty), mask=mask)


def route(x_ND: Tensor, w_ED: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.route`."""
    (num_items, _), num_experts = x_ND.shape, w_ED.shape[0]
    _check(num_experts)
    x_ND = unit_stride(x_ND)
    gate_NK = x_ND.new_empty((num_items, k), dtype=torch.float32)
    index_NK = x_ND.new_empty((num_items, k), dtype=torch.int64)
    counts_E = x_ND.new_zeros((num_experts,), dtype=torch.int64)
    probs_NE = x_ND.new_empty((num_items, num_experts), dtype=torch.float32)
    blocks = configs.route(power_of_two(num_experts))
    launch(
        route_kernel,
        (triton.cdiv(num_items, blocks.rows),),
        {
            "x_ptr": x_ND, "w_ptr": w_ED.contiguous(), "gate_ptr": gate_NK, "index_ptr": index_NK,
            "counts_ptr": counts_E, "probs_ptr": probs_NE, "num_items": num_items, "x_stride": x_ND.stride(0),
            "spread": PROBIT_SCALE * variance_scale,
        },
        {"K": k, **_constants(w_ED, variance_scale, blocks)},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return gate_NK, index_NK, counts_E, probs_NE


def route_backward(
    dgate_NK: Tensor, dprobs_NE: Tensor, x_ND: Tensor, w_ED: Tensor,
    gate_NK: Tensor, index_NK: Tensor, probs_NE: Tensor, variance_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `cpu.route_backward`."""
    num_items, num_experts = probs_NE.shape
    _check(num_experts)
    x_ND, w_ED = unit_stride(x_ND), w_ED.contiguous()
    dmean_NE = probs_NE.new_empty(probs_NE.shape)
    dsecond_NE = dmean_NE if variance_scale == 0.0 else torch.empty_like(dmean_NE)
    blocks = configs.route(power_of_two(num_experts))
    launch(
        route_backward_kernel,
        (triton.cdiv(num_items, blocks.rows),),
        {
            "dgate_ptr": dgate_NK, "dprobs_ptr": dprobs_NE, "x_ptr": x_ND, "w_ptr": w_ED,
            "gate_ptr": gate_NK.contiguous(), "index_ptr": index_NK.contiguous(), "probs_ptr": probs_NE.contiguous(),
            "dmean_ptr": dmean_NE, "dsecond_ptr": dsecond_NE, "num_items": num_items, "x_stride": x_ND.stride(0),
            "dgate_stride_n": dgate_NK.stride(0), "dgate_stride_k": dgate_NK.stride(1),
            "dprobs_stride_n": dprobs_NE.stride(0), "dprobs_stride_e": dprobs_NE.stride(1),
            "spread": PROBIT_SCALE * variance_scale,
        },
        {"K": gate_NK.shape[1], **_constants(w_ED, variance_scale, blocks)},
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    dx_ND = _moment_gradient(dmean_NE, dsecond_NE, x_ND, w_ED, variance_scale != 0.0)
    return dx_ND, _moment_gradient(dmean_NE.T, dsecond_NE.T, w_ED, x_ND, variance_scale != 0.0)


def _moment_gradient(dmean_RT: Tensor, dsecond_RT: Tensor, own_RD: Tensor, other_TD: Tensor, squares: bool) -> Tensor:
    """dmean @ other + 2 own * (dsecond @ other^2), like `own`.

    Many terms are summed in parts, whose number depends on sizes alone: bitwise deterministic.
    """
    (num_rows, num_terms), dim = dmean_RT.shape, own_RD.shape[1]
    blocks = configs.moment_gradient()
    cells = triton.cdiv(num_rows, blocks.rows), triton.cdiv(dim, blocks.columns)
    parts = configs.moment_parts(num_terms, cells[0] * cells[1])
    out_SRD = own_RD.new_empty((parts, num_rows, dim), dtype=own_RD.dtype if parts == 1 else torch.float32)
    launch(
        moment_gradient_kernel,
        (*cells, parts),
        {
            "dmean_ptr": dmean_RT, "dsecond_ptr": dsecond_RT, "own_ptr": own_RD, "other_ptr": other_TD,
            "out_ptr": out_SRD, "num_rows": num_rows, "num_terms": num_terms, "part": triton.cdiv(num_terms, parts),
            "z_stride_r": dmean_RT.stride(0), "z_stride_t": dmean_RT.stride(1), "own_stride": own_RD.stride(0),
            "other_stride": other_TD.stride(0),
        },
        {
            "D": dim, "HAS_VARIANCE": squares, "BLOCK_R": blocks.rows, "BLOCK_T": blocks.inner,
            "BLOCK_D": blocks.columns,
        },
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out_SRD[0] if parts == 1 else out_SRD.sum(0).to(own_RD.dtype)


def _constants(w_ED: Tensor, variance_scale: float, blocks: configs.Blocks) -> dict[str, int | bool]:
    num_experts, dim = w_ED.shape
    return {
        "D": dim, "E": num_experts, "HAS_VARIANCE": variance_scale != 0.0, "BLOCK_N": blocks.rows,
        "BLOCK_D": blocks.inner, "BLOCK_E": blocks.columns,
    }  # fmt: skip


def _check(num_experts: int) -> None:
    if num_experts > MAX_EXPERTS:
        raise Unsupported(f"the kernels route to at most {MAX_EXPERTS} experts, got {num_experts}")
