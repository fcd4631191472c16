"""Operator definitions: schema, fake tensors, gradients. No arithmetic here.

Opaque `custom_op`s rather than traced Triton operators: they trace, compile and export on machines without a GPU.
Shape legend: N items, D width, H hidden, E experts, K slots an item, R = N * K slots, F = D or H.
"""

from typing import Any

import torch
from torch import Tensor

from moevision.kernels import cpu, reference

SITES = ("input", "hidden")
FUSES = ("activations", "outputs")
ACTIVATIONS = ("gelu", "silu")


@torch.library.custom_op("moevision::route", mutates_args=())
def _route(x: Tensor, w: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cpu.route(x, w, k, variance_scale)


@_route.register_fake
def _(x: Tensor, w: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate = x.new_empty((x.shape[0], k), dtype=dtype)
    counts = x.new_empty((w.shape[0],), dtype=torch.int64)
    return gate, torch.empty_like(gate, dtype=torch.int64), counts, x.new_empty((x.shape[0], w.shape[0]), dtype=dtype)


@torch.library.custom_op("moevision::route_backward", mutates_args=())
def _route_backward(
    dgate: Tensor,
    dprobs: Tensor,
    x: Tensor,
    w: Tensor,
    gate: Tensor,
    index: Tensor,
    probs: Tensor,
    variance_scale: float,
) -> tuple[Tensor, Tensor]:
    return cpu.route_backward(dgate, dprobs, x, w, gate, index, probs, variance_scale)


@_route_backward.register_fake
def _(
    dgate: Tensor,
    dprobs: Tensor,
    x: Tensor,
    w: Tensor,
    gate: Tensor,
    index: Tensor,
    probs: Tensor,
    variance_scale: float,
) -> tuple[Tensor, Tensor]:
    return _like(x), _like(w)


def _route_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, _, ctx.variance_scale = inputs
    gate, index, counts, probs = output
    ctx.save_for_backward(x, w, gate, index, probs)
    ctx.mark_non_differentiable(index, counts)


def _route_grad(ctx: Any, dgate: Tensor, dindex: Any, dcounts: Any, dprobs: Tensor) -> tuple[Any, ...]:
    x, w, gate, index, probs = ctx.saved_tensors
    return (*_route_backward(dgate, dprobs, x, w, gate, index, probs, ctx.variance_scale), None, None)


_route.register_autograd(_route_grad, setup_context=_route_save)


def route(x_ND: Tensor, w_ED: Tensor, k: int, variance_scale: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project, softmax and pick k experts per item.

    Args:
        x_ND: items; any float type, computed in at least float32.
        w_ED: router weights.
        k: experts per item, 1 <= k <= E.
        variance_scale: p / (1 - p) of the router's dropout rate p, 0 for a plain linear router; see
            `reference.router_logits`.

    Returns:
        gate (N, K) float32 that sums to 1 over K, index (N, K) int64 without repeats (ties go to the lowest expert),
        counts (E,) int64, probs (N, E) float32. gate and probs are differentiable.

    Raises:
        ValueError: if k is outside 1..E or the widths differ.
    """
    if not 1 <= k <= w_ED.shape[0]:
        raise ValueError(f"k must be between 1 and the {w_ED.shape[0]} experts, got {k}")
    if x_ND.ndim != 2 or x_ND.shape[1] != w_ED.shape[1]:
        raise ValueError(f"x must be (N, {w_ED.shape[1]}), got {tuple(x_ND.shape)}")
    return _route(x_ND, w_ED, k, variance_scale)


@torch.library.custom_op("moevision::plan", mutates_args=())
def _plan(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return reference.plan(index, num_experts)


@_plan.register_fake
def _(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    num_slots = index.shape[0] * index.shape[1]
    return index.new_empty((num_slots,), dtype=torch.int64), index.new_empty((num_experts + 1,), dtype=torch.int64)


def plan(index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sort slots by expert.

    Args:
        index_NK: expert of each slot, -1 = empty.
        num_experts: E.

    Returns:
        order (R,): slot numbers n * K + k in stable expert order, empty slots last; offsets (E + 1,): expert e owns
        `order[offsets[e]:offsets[e + 1]]`.
    """
    return _plan(index_NK, num_experts)


@torch.library.custom_op("moevision::expert_ffn", mutates_args=())
def _expert_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return cpu.expert_ffn(x, w1, b1, w2, b2, gate, order, offsets, activation, save)


@_expert_ffn.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty((x.shape[0], w2.shape[2])), x.new_empty((order.shape[0] if save else 0, w1.shape[2]))


@torch.library.custom_op("moevision::expert_ffn_backward", mutates_args=())
def _expert_ffn_backward(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    u: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return cpu.expert_ffn_backward(dy, x, w1, b1, w2, b2, gate, order, offsets, u, activation)


@_expert_ffn_backward.register_fake
def _(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    u: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x), _like(w1), _like(b1), _like(w2), _like(b2), _like(gate)


def _expert_ffn_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, save = inputs
    u = output[1]
    if not save and any(t.requires_grad for t in tensors):
        raise RuntimeError("expert_ffn was called with save=False but a gradient is required")
    ctx.save_for_backward(*tensors, u)
    ctx.mark_non_differentiable(u)
    ctx.set_materialize_grads(False)


def _expert_ffn_grad(ctx: Any, dy: Tensor | None, du: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 10
    x, w1, b1, w2, b2, gate, order, offsets, u = ctx.saved_tensors
    dx, dw1, db1, dw2, db2, dgate = _expert_ffn_backward(dy, x, w1, b1, w2, b2, gate, order, offsets, u, ctx.activation)
    return dx, dw1, db1, dw2, db2, dgate, None, None, None, None


_expert_ffn.register_autograd(_expert_ffn_grad, setup_context=_expert_ffn_save)


def expert_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, activation: str = "gelu",
) -> Tensor:  # fmt: skip
    """y_n = sum over slots k of gate_nk * FFN_{expert of slot}(x_n); `order`, `offsets` from `plan`.

    Empty slots (past `offsets[E]`) contribute nothing. Differentiable in everything but the plan. Returns (N, D).
    """
    _check_activation(activation)
    tensors = (x_ND, w1_EDH, b1_EH, w2_EHD, b2_ED, gate_NK)
    return _expert_ffn(*tensors, order_R, offsets_E1, activation, _needs_grad(tensors))[0]


@torch.library.custom_op("moevision::film_ffn", mutates_args=())
def _film_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor, index: Tensor,
    site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return cpu.film_ffn(x, w1, b1, w2, b2, gamma, beta, gate, index, site, fuse, activation, save)


@_film_ffn.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor, index: Tensor,
    site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    saved_rows = x.shape[0] if save and fuse == "activations" else 0
    return x.new_empty((x.shape[0], w2.shape[1])), x.new_empty((saved_rows, w1.shape[1]))


@torch.library.custom_op("moevision::film_ffn_backward", mutates_args=())
def _film_ffn_backward(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor,
    index: Tensor, u: Tensor, site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return cpu.film_ffn_backward(dy, x, w1, b1, w2, b2, gamma, beta, gate, index, u, site, fuse, activation)


@_film_ffn_backward.register_fake
def _(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor,
    index: Tensor, u: Tensor, site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        _like(x), _like(w1), _like(b1), _like(w2), _like(b2), _like(gamma), _like(beta), _like(gate),
    )  # fmt: skip


def _film_ffn_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.site, ctx.fuse, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _film_ffn_grad(ctx: Any, dy: Tensor | None, du: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 13
    grads = _film_ffn_backward(dy, *ctx.saved_tensors, ctx.site, ctx.fuse, ctx.activation)
    return (*grads, None, None, None, None, None)


_film_ffn.register_autograd(_film_ffn_grad, setup_context=_film_ffn_save)


def film_ffn(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HD: Tensor, b2_D: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, *, site: str = "input", fuse: str = "activations", activation: str = "gelu",
) -> Tensor:  # fmt: skip
    """One shared FFN under a mixture of FiLM experts (MoFME, AAAI 2024); see `reference.film_ffn`.

    Args:
        gamma_EF, beta_EF: scale and shift of each expert; F = D when `site` is "input", H when it is "hidden".
        gate_NK, index_NK: from `route`; an index of -1 is an empty slot.
        fuse: "activations" mixes modulations and runs the FFN once, "outputs" runs it once per slot.

    Returns:
        (N, D), differentiable in everything but the index.

    Raises:
        ValueError: unknown site, fuse or activation, or gamma of the wrong width.
    """
    _check_activation(activation)
    if site not in SITES or fuse not in FUSES:
        raise ValueError(f"site must be one of {SITES} and fuse one of {FUSES}, got {site!r} and {fuse!r}")
    width = w1_DH.shape[0 if site == "input" else 1]
    if gamma_EF.shape[1] != width or beta_EF.shape != gamma_EF.shape:
        raise ValueError(f"gamma and beta must be (E, {width}) for site={site!r}, got {tuple(gamma_EF.shape)}")
    tensors = (x_ND, w1_DH, b1_H, w2_HD, b2_D, gamma_EF, beta_EF, gate_NK)
    return _film_ffn(*tensors, index_NK, site, fuse, activation, _needs_grad(tensors))[0]


def _like(t: Tensor) -> Tensor:
    # Not empty_like: a gradient is contiguous whatever the strides of its input.
    return t.new_empty(t.shape)


def _needs_grad(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
