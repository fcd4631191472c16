"""FLOP formulas of the operators, for `torch.utils.flop_counter.FlopCounterMode`; importing this file registers them.

Counted is what the tuned paths execute in matrix products (2 FLOP a multiply-accumulate), from shapes alone, so that
meta tensors can be counted too. An operator whose work depends on data (`expert_ffn` skips empty slots) is counted with
all slots full. Elementwise work is not counted, as in torch's own formulas.

Shape legend as in `reference`.
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_OPS = torch.ops.moevision
_Shape = tuple[int, ...]


@register_flop_formula(_OPS.route)
def route_flops(x_shape: _Shape, w_shape: _Shape, k: int, variance_scale: float, **_: Any) -> int:
    """The projection, and once more for the second moment."""
    return (2 if variance_scale else 1) * _product(*x_shape, w_shape[0])


@register_flop_formula(_OPS.route_backward)
def route_backward_flops(
    dgate_shape: _Shape, dprobs_shape: _Shape, x_shape: _Shape, w_shape: _Shape, gate_shape: _Shape,
    index_shape: _Shape, probs_shape: _Shape, variance_scale: float, **_: Any,
) -> int:  # fmt: skip
    """Gradients of x and w; with moments both products are recomputed and differentiated too."""
    return (6 if variance_scale else 2) * _product(*x_shape, w_shape[0])


@register_flop_formula(_OPS.expert_ffn)
def expert_ffn_flops(
    x_shape: _Shape, w1_shape: _Shape, b1_shape: _Shape, w2_shape: _Shape, b2_shape: _Shape, gate_shape: _Shape,
    order_shape: _Shape, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Two products per slot and the weighted sum of its slots per item."""
    dim, hidden = w1_shape[1:]
    return 2 * _product(order_shape[0], dim, hidden) + _product(order_shape[0], dim)


@register_flop_formula(_OPS.expert_ffn_backward)
def expert_ffn_backward_flops(
    dy_shape: _Shape, x_shape: _Shape, w1_shape: _Shape, b1_shape: _Shape, w2_shape: _Shape, b2_shape: _Shape,
    gate_shape: _Shape, order_shape: _Shape, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Four products per slot: gradients of the hidden layer, of both matrices, of x. And <dy, b2> for the gate."""
    dim, hidden = w1_shape[1:]
    return 4 * _product(order_shape[0], dim, hidden) + _product(order_shape[0], dim)


@register_flop_formula(_OPS.film_ffn)
def film_ffn_flops(
    x_shape: _Shape, w1_shape: _Shape, b1_shape: _Shape, w2_shape: _Shape, b2_shape: _Shape, gamma_shape: _Shape,
    beta_shape: _Shape, gate_shape: _Shape, index_shape: _Shape, site: str, fuse: str, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """The FFN once and two small products that mix the modulations; or per slot the first map, and the second once."""
    num_items, (dim, hidden) = x_shape[0], w1_shape
    if fuse == "activations":
        return 2 * _product(num_items, dim, hidden) + 2 * _product(num_items, *gamma_shape)
    return (index_shape[1] + 1) * _product(num_items, dim, hidden)


@register_flop_formula(_OPS.film_ffn_backward)
def film_ffn_backward_flops(
    dy_shape: _Shape, x_shape: _Shape, w1_shape: _Shape, b1_shape: _Shape, w2_shape: _Shape, b2_shape: _Shape,
    gamma_shape: _Shape, beta_shape: _Shape, gate_shape: _Shape, index_shape: _Shape, u_shape: _Shape,
    site: str, fuse: str, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Four FFN products and six small ones of the mixing; with fuse = "outputs" most of them once per slot."""
    num_items, (dim, hidden) = x_shape[0], w1_shape
    ffn = _product(num_items, dim, hidden)
    if fuse == "activations":
        return 4 * ffn + 6 * _product(num_items, *gamma_shape)
    return (2 + 3 * index_shape[1]) * ffn + 2 * index_shape[1] * _product(num_items, *gamma_shape)


@register_flop_formula(_OPS.grouped_conv)
def grouped_conv_flops(x_shape: _Shape, w_shape: _Shape, *_: Any, out_shape: _Shape, **__: Any) -> int:
    """One kernel a channel and output pixel."""
    return _product(*out_shape, *w_shape[2:])


@register_flop_formula(_OPS.grouped_conv_backward)
def grouped_conv_backward_flops(dy_shape: _Shape, x_shape: _Shape, w_shape: _Shape, *_: Any, **__: Any) -> int:
    """The same for the windows' gradients and for the kernels'."""
    return 2 * _product(*dy_shape, *w_shape[2:])


@register_flop_formula(_OPS.quant_linear)
def quant_linear_flops(x_shape: _Shape, packed_shape: _Shape, *_: Any, **__: Any) -> int:
    """One product; unpacking is elementwise."""
    return _product(*x_shape, packed_shape[1])


def _product(*sizes: int) -> int:
    """2 FLOP for every multiply-accumulate of a product of these sizes."""
    flops = 2
    for size in sizes:
        flops *= size
    return flops
