"""Operator definitions: schema, fake tensors, gradients. No arithmetic here; `bodies` picks what runs.

Opaque `custom_op`s rather than traced Triton operators: they trace, compile and export on machines without a GPU.
Shape legend: N items, D width, H hidden, O output width, E experts, K slots an item, R = N * K slots, F = D or H.
"""

from typing import Any

import torch
from torch import Tensor

from moevision.kernels import bodies, checks

SITES = ("input", "hidden")
FUSES = ("activations", "outputs")
ACTIVATIONS = ("gelu", "silu")


@torch.library.custom_op("moevision::route", mutates_args=())
def _route(x: Tensor, w: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return bodies.run("route", x, w, k, variance_scale)


@_route.register_fake
def _(x: Tensor, w: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate = x.new_empty((x.shape[0], k), dtype=dtype)
    counts = x.new_empty((w.shape[0],), dtype=torch.int64)
    return gate, torch.empty_like(gate, dtype=torch.int64), counts, x.new_empty((x.shape[0], w.shape[0]), dtype=dtype)


@torch.library.custom_op("moevision::route_backward", mutates_args=())
def _route_backward(
    dgate: Tensor, dprobs: Tensor, x: Tensor, w: Tensor, gate: Tensor, index: Tensor, probs: Tensor,
    variance_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return bodies.run("route_backward", dgate, dprobs, x, w, gate, index, probs, variance_scale)


@_route_backward.register_fake
def _(
    dgate: Tensor, dprobs: Tensor, x: Tensor, w: Tensor, gate: Tensor, index: Tensor, probs: Tensor,
    variance_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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
        x_ND: items; any float type, computed in at least float32, under autocast too.
        w_ED: router weights, of any float type.
        k: experts per item, 1 <= k <= E.
        variance_scale: p / (1 - p) of the router's dropout rate p, 0 for a plain linear router; see
            `reference.router_logits`.

    Returns:
        gate (N, K) float32 that sums to 1 over K, index (N, K) int64 without repeats (ties go to the lowest expert),
        counts (E,) int64, probs (N, E) float32. gate and probs are differentiable.

    Raises:
        ValueError: k outside 1..E, other shapes, another device. TypeError: not a float type.
    """
    sizes = checks.shapes(x=(x_ND, "ND"), w=(w_ED, "ED"))
    if not 1 <= k <= sizes["E"]:
        raise ValueError(f"k must be between 1 and the {sizes['E']} experts, got {k}")
    for name, tensor in (("x", x_ND), ("w", w_ED)):
        if tensor.dtype not in checks.FLOATS:
            raise TypeError(f"{name} must be of a float type, got {tensor.dtype}")
    checks.same_device(x_ND, w=w_ED)
    return _route(x_ND, w_ED, k, variance_scale)


@torch.library.custom_op("moevision::plan", mutates_args=())
def _plan(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return bodies.run("plan", index, num_experts)


@_plan.register_fake
def _(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    num_slots = index.shape[0] * index.shape[1]
    return index.new_empty((num_slots,)), index.new_empty((num_experts + 1,))


def plan(index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sort slots by expert.

    Args:
        index_NK: expert of each slot; an index outside 0..E-1, such as -1, is an empty slot.
        num_experts: E >= 1.

    Returns:
        order (R,) int64: slot numbers n * K + k in stable expert order, empty slots last; offsets (E + 1,) int64:
        expert e owns `order[offsets[e]:offsets[e + 1]]`.

    Raises:
        ValueError: not (N, K), or E < 1. TypeError: not an integer tensor.
    """
    checks.shapes(index=(index_NK, "NK"))
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    return _plan(checks.index("index", index_NK), num_experts)


@torch.library.custom_op("moevision::expert_ffn", mutates_args=())
def _expert_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return bodies.run("expert_ffn", x, w1, b1, w2, b2, gate, order, offsets, activation, save)


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
    return bodies.run("expert_ffn_backward", dy, x, w1, b1, w2, b2, gate, order, offsets, u, activation)


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
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, activation: str = "gelu",
) -> Tensor:  # fmt: skip
    """y_n = sum over slots k of gate_nk * FFN_{expert of slot}(x_n); `order`, `offsets` from `plan`.

    Empty slots (past `offsets[E]`) contribute nothing, whatever their gate. Differentiable in everything but the plan.
    Under autocast x and the weights are cast as for a linear layer. Returns (N, O).

    Raises:
        ValueError: unknown activation, or shapes or devices that do not fit together.
        TypeError: x, weights and biases of different types, or a plan that is not of integers.
    """
    checks.choice("activation", activation, ACTIVATIONS)
    tensors = _autocast(x_ND, w1_EDH, b1_EH, w2_EHO, b2_EO)
    x, w1, b1, w2, b2 = tensors
    sizes = checks.shapes(
        x=(x, "ND"), w1=(w1, "EDH"), b1=(b1, "EH"), w2=(w2, "EHO"), b2=(b2, "EO"), gate=(gate_NK, "NK")
    )
    checks.floats(x, w1=w1, b1=b1, w2=w2, b2=b2)
    checks.same_device(x, gate=gate_NK, order=order_R, offsets=offsets_E1)
    if order_R.shape != (sizes["N"] * sizes["K"],) or offsets_E1.shape != (sizes["E"] + 1,):
        raise ValueError(
            f"order must be (N * K,) and offsets (E + 1,) with {sizes}, "
            f"got {tuple(order_R.shape)} and {tuple(offsets_E1.shape)}"
        )
    order, offsets = checks.index("order", order_R), checks.index("offsets", offsets_E1)
    return _expert_ffn(*tensors, gate_NK, order, offsets, activation, _needs_grad((*tensors, gate_NK)))[0]


@torch.library.custom_op("moevision::film_ffn", mutates_args=())
def _film_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor, index: Tensor,
    site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return bodies.run("film_ffn", x, w1, b1, w2, b2, gamma, beta, gate, index, site, fuse, activation, save)


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
    return bodies.run(
        "film_ffn_backward", dy, x, w1, b1, w2, b2, gamma, beta, gate, index, u, site, fuse, activation
    )  # fmt: skip


@_film_ffn_backward.register_fake
def _(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor,
    index: Tensor, u: Tensor, site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x), _like(w1), _like(b1), _like(w2), _like(b2), _like(gamma), _like(beta), _like(gate)


def _film_ffn_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.site, ctx.fuse, ctx.activation, save = inputs
    if not save and any(t.requires_grad for t in tensors):
        raise RuntimeError("film_ffn was called with save=False but a gradient is required")
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
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, *, site: str = "input", fuse: str = "activations", activation: str = "gelu",
) -> Tensor:  # fmt: skip
    """One shared FFN under a mixture of FiLM experts (MoFME, AAAI 2024); see `reference.film_ffn`.

    Args:
        gamma_EF, beta_EF: scale and shift of each expert; F = D when `site` is "input", H when it is "hidden".
        gate_NK, index_NK: from `route`; an index outside 0..E-1, such as -1, is an empty slot.
        fuse: "activations" mixes modulations and runs the FFN once, "outputs" runs it once per slot.

    Returns:
        (N, O), differentiable in everything but the index. Under autocast x, the weights and the modulations are cast
        as for a linear layer.

    Raises:
        ValueError: unknown site, fuse or activation, or shapes or devices that do not fit together.
        TypeError: x, weights and modulations of different types, or an index that is not of integers.
    """
    checks.choice("activation", activation, ACTIVATIONS)
    checks.choice("site", site, SITES)
    checks.choice("fuse", fuse, FUSES)
    tensors = _autocast(x_ND, w1_DH, b1_H, w2_HO, b2_O, gamma_EF, beta_EF)
    x, w1, b1, w2, b2, gamma, beta = tensors
    at = "ED" if site == "input" else "EH"
    checks.shapes(
        x=(x, "ND"), w1=(w1, "DH"), b1=(b1, "H"), w2=(w2, "HO"), b2=(b2, "O"), gamma=(gamma, at), beta=(beta, at),
        gate=(gate_NK, "NK"), index=(index_NK, "NK"),
    )  # fmt: skip
    checks.floats(x, w1=w1, b1=b1, w2=w2, b2=b2, gamma=gamma, beta=beta)
    checks.same_device(x, gate=gate_NK, index=index_NK)
    index = checks.index("index", index_NK)
    return _film_ffn(*tensors, gate_NK, index, site, fuse, activation, _needs_grad((*tensors, gate_NK)))[0]


@torch.library.custom_op("moevision::grouped_conv", mutates_args=())
def _grouped_conv(x: Tensor, w: Tensor, b: Tensor, index: Tensor) -> Tensor:
    return bodies.run("grouped_conv", x, w, b, index)


@_grouped_conv.register_fake
def _(x: Tensor, w: Tensor, b: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1))


@torch.library.custom_op("moevision::grouped_conv_backward", mutates_args=())
def _grouped_conv_backward(dy: Tensor, x: Tensor, w: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return bodies.run("grouped_conv_backward", dy, x, w, index)


@_grouped_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, w: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _like(w), w.new_empty(w.shape[:2])


def _grouped_conv_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, index = inputs
    ctx.save_for_backward(x, w, index)


def _grouped_conv_grad(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return (*_grouped_conv_backward(dy, *ctx.saved_tensors), None)


_grouped_conv.register_autograd(_grouped_conv_grad, setup_context=_grouped_conv_save)


def grouped_conv(x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor, index_N: Tensor) -> Tensor:
    """Depthwise convolution of every window by its own expert's kernels; a pointwise part is an `expert_ffn`.

    Args:
        x_NCHW: N routed windows with their margins; nothing is padded here.
        w_ECPQ: one P x Q kernel per expert and channel (cross-correlation, as torch's convolutions).
        b_EC: biases.
        index_N: expert of each window; an index outside 0..E-1, such as -1, is an empty window and gives zeros.

    Returns:
        (N, C, H - P + 1, W - Q + 1), differentiable in x, w and b. Under autocast all three are cast.

    Raises:
        ValueError: shapes or devices that do not fit together, or a window smaller than the kernel.
        TypeError: x, w and b of different types, or an index that is not of integers.
    """
    x, w, b = _autocast(x_NCHW, w_ECPQ, b_EC)
    sizes = checks.shapes(x=(x, "NCHW"), w=(w, "ECPQ"), b=(b, "EC"), index=(index_N, "N"))
    if sizes["H"] < sizes["P"] or sizes["W"] < sizes["Q"]:
        raise ValueError(f"x must have windows of at least {w.shape[2]} x {w.shape[3]}, got {tuple(x.shape)}")
    checks.floats(x, w=w, b=b)
    checks.same_device(x, index=index_N)
    return _grouped_conv(x, w, b, checks.index("index", index_N))


@torch.library.custom_op("moevision::quant_linear", mutates_args=())
def _quant_linear(x: Tensor, packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int) -> Tensor:
    return bodies.run("quant_linear", x, packed, scale, offset, bits, group)


@_quant_linear.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[1]))


def quant_linear(
    x_ND: Tensor, packed_PH: Tensor, scale_GH: Tensor, offset_GH: Tensor, bits: int, group: int
) -> Tensor:  # fmt: skip
    """x @ ((q - offset) * scale) with ternary or int4 weights from `quantization.quantize`; inference only.

    Args:
        x_ND: items; under autocast cast as for a linear layer.
        packed_PH: uint8, P = ceil(D * bits / 8).
        scale_GH, offset_GH: float32, one row for every `group` rows of the weight matrix.

    Returns:
        (N, H) in x's type.

    Raises:
        ValueError: bits not 2 or 4, or shapes or devices that do not fit together. TypeError: other types.
        RuntimeError: a gradient is required; packed weights have none.
    """
    (x,) = _autocast(x_ND)
    checks.shapes(x=(x, "ND"), packed=(packed_PH, "PH"), scale=(scale_GH, "GH"), offset=(offset_GH, "GH"))
    if bits not in (2, 4) or group < 1:
        raise ValueError(f"bits must be 2 or 4 and group at least 1, got {bits} and {group}")
    wanted = -(-x.shape[1] * bits // 8), -(-x.shape[1] // group)
    if (packed_PH.shape[0], scale_GH.shape[0]) != wanted:
        raise ValueError(
            f"packed and scale must have {wanted[0]} and {wanted[1]} rows for x {tuple(x.shape)}, bits {bits} and "
            f"group {group}, got {packed_PH.shape[0]} and {scale_GH.shape[0]}"
        )
    if x.dtype not in checks.FLOATS or packed_PH.dtype != torch.uint8:
        raise TypeError(f"x must be of a float type and packed uint8, got {x.dtype} and {packed_PH.dtype}")
    if (scale_GH.dtype, offset_GH.dtype) != (torch.float32, torch.float32):
        raise TypeError(f"scale and offset must be float32, got {scale_GH.dtype} and {offset_GH.dtype}")
    checks.same_device(x, packed=packed_PH, scale=scale_GH, offset=offset_GH)
    if _needs_grad((x, scale_GH, offset_GH)):
        raise RuntimeError("quant_linear is for inference only: call it under torch.no_grad() or detach x")
    return _quant_linear(x, packed_PH, scale_GH, offset_GH, bits, group)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the type autocast asks for, as torch does for a linear layer; float64 stays, as there."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _like(t: Tensor) -> Tensor:
    # Not empty_like: a gradient is contiguous whatever the strides of its input.
    return t.new_empty(t.shape)


def _needs_grad(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
