"""A network as other programs can run it: a graph of plain torch operators, named tensors in and out, any size.

Our own operators (`moevision.kernels`) exist here only. In a graph their place is taken by forms that every runtime
knows, called "dense-equivalent": they compute the same function, but where a full feed-forward network is an expert,
every expert runs on every item and the weights of those not chosen are 0. FiLM experts share their network, so nothing
but their small mixing product grows. Results differ by rounding, and where two experts tie exactly.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from moevision.kernels import ops as _registered  # noqa: F401
from moevision.kernels import reference

EXAMPLE_SIDES_PX = ((88, 104), (61, 83), (33, 130), (160, 97))
"""(height, width) of the pictures on which files are checked, odd and even, wide and tall; the first is traced."""


@dataclass(frozen=True)
class Portable:
    """What is exported, and how to tell whether that worked.

    Attributes:
        module: takes the tensors of an example by position and returns a tuple of tensors.
        outputs: their names.
        examples: inputs by name, in order. The first is traced; a file must give on all of them what `module` gives.
        dynamic: axes of any size, by input, as (name, smallest): {"picture": {2: ("height", 16), 3: ("width", 16)}}.
            torch refuses smaller ones; ONNX does not know of it, and ours have worked down to 1.
        facts: text that travels in the file, so that it can be told what it is.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    examples: Sequence[Mapping[str, Tensor]]
    dynamic: Mapping[str, Mapping[int, tuple[str, int]]]
    facts: Mapping[str, str]


@torch.no_grad()
def trace(portable: Portable) -> torch.export.ExportedProgram:
    """The graph of `portable.module`, of torch's own operators."""
    example = portable.examples[0]
    sizes = {dim: torch.export.Dim(dim[0], min=dim[1]) for axes in portable.dynamic.values() for dim in axes.values()}
    shapes: list[Any] = [
        {axis: sizes[dim] for axis, dim in portable.dynamic.get(name, {}).items()} or None for name in example
    ]
    with _PlainOperators():
        # Relations between sizes that hold for the example but cannot be proved for all (a picture is no wider than
        # padded) would be refused, or else become assertions, some of them on how memory lies only.
        program = torch.export.export(
            portable.module, tuple(example.values()), dynamic_shapes=_by_parameter(portable.module, shapes),
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    _drop_assertions(program.graph_module)
    return program


def _drop_assertions(module: torch.fx.GraphModule) -> None:
    """In place: what holds for all sizes is told by running the file on several."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _by_parameter(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """What a parameter *names takes is one entry of torch's."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


class _PlainOperators(TorchFunctionMode):
    """While active, the kernels' operators are replaced by torch's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = _PLAIN.get(func, func)
        return plain(*args, **(kwargs or {}))


def _interpolate(x_BCHW: Tensor, size: Any = None, *arguments: Any, **options: Any) -> Tensor:
    """With antialiasing as two matrix products: OpenVINO leaves the filter out, by a hundredth of full scale."""
    if not options.get("antialias"):
        return F.interpolate(x_BCHW, size, *arguments, **options)
    down, across = (_triangles(side, out, x_BCHW) for side, out in zip(x_BCHW.shape[2:], size, strict=True))
    return down @ (x_BCHW @ across.T)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Of maps with channels last, over their second axis: runtimes keep maps plane by plane, and the transpositions
    of maps to have channels last and back took OpenVINO a third of its time.
    """
    if x.dim() != 4 or weight is None or bias is None:
        return F.layer_norm(x, shape, weight, bias, eps)
    x_BCHW = x.permute(0, 3, 1, 2)
    # A convolution has fast code where the mean over planes has none.
    mean = x_BCHW.new_full((1, x_BCHW.shape[1], 1, 1), 1 / x_BCHW.shape[1])
    centred = x_BCHW - F.conv2d(x_BCHW, mean)
    scale = (F.conv2d(centred * centred, mean) + eps).rsqrt()
    return (centred * scale * weight[:, None, None] + bias[:, None, None]).permute(0, 2, 3, 1)


def _sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """As the best of all, which keeps the order of equals where other programs run it; ONNX has no sort."""
    return torch.topk(x, x.shape[dim], dim, largest=descending)


def _triangles(side: int, out: int, like: Tensor) -> Tensor:
    """(out, side): the weight of every pixel in the mean around each of `out` centres."""
    # Distances in whole numbers of 1 / (2 out) pixels: a runtime that computes in half precision keeps them exact.
    centre_O1 = (2 * torch.arange(out, device=like.device) + 1).unsqueeze(1) * side
    distance_OS = ((2 * torch.arange(side, device=like.device) + 1) * out - centre_O1).abs()
    longer: Any = torch.sym_max(side, out)  # a whole number, which torch does not say
    weight_OS = (1 - distance_OS.to(like.dtype) / (2 * longer)).relu()
    return weight_OS / weight_OS.sum(1, keepdim=True)


def _route(x: Tensor, w: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits_NE = reference.router_logits(x, w, variance_scale)
    chosen_NK, index_NK = torch.topk(logits_NE, k)
    counts_E = _chosen(index_NK, w.shape[0]).sum((0, 1))  # read by losses only
    return chosen_NK.softmax(1), index_NK, counts_E, logits_NE.softmax(1)


def _film_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, gate: Tensor, index: Tensor,
    site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if fuse != "activations":
        y = reference.film_ffn(x, w1, b1, w2, b2, gamma, beta, gate, index, site, fuse, activation)
        return y, x.new_empty((0, w1.shape[1]))
    gate_NE = _gate(gate, index, gamma.shape[0]).to(x.dtype)
    hidden_NH = reference.film_pass(x, w1, b1, gate_NE @ gamma, gate_NE @ beta, site, activation)
    return hidden_NH @ w2 + b2, x.new_empty((0, w1.shape[1]))


def _plan(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    # Sorting serves the kernels only: the plan of a graph carries the index to `_expert_ffn` as it is.
    return index.flatten(), index.new_zeros(num_experts + 1)


def _expert_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor, order: Tensor, offsets: Tensor,
    activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    gate_NE = _gate(gate, order.view(gate.shape), w1.shape[0]).to(x.dtype)
    # One product for all experts' first layers and one for their second, which also adds them up.
    w1_DR, w2_RO = w1.permute(1, 0, 2).flatten(1), w2.flatten(0, 1)
    hidden_NEH = reference.activate(x @ w1_DR + b1.flatten(), activation).unflatten(1, (w1.shape[0], -1))
    y = (hidden_NEH * gate_NE.unsqueeze(2)).flatten(1) @ w2_RO + gate_NE @ b2
    return y, x.new_empty((0, w1.shape[2]))


def _grouped_conv(x: Tensor, w: Tensor, b: Tensor, index: Tensor) -> Tensor:
    # A sum over kernel positions: a convolution with a kernel a window has as many groups as there are windows.
    empty_N = reference.is_empty(index, w.shape[0])
    safe_N = index.masked_fill(empty_N, 0)
    w_NCPQ, b_NC = w[safe_N], b[safe_N]
    height, width = x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1
    y = b_NC[..., None, None].to(x.dtype)
    for p in range(w.shape[2]):
        for q in range(w.shape[3]):
            y = y + x[:, :, p : p + height, q : q + width] * w_NCPQ[:, :, p, q, None, None]
    return torch.where(empty_N.view(-1, 1, 1, 1), 0.0, y)


def _gate(gate_NK: Tensor, index_NK: Tensor, num_experts: int) -> Tensor:
    """`reference.dense_gate` without a scatter, for which runtimes are slow or have no code; empty slots match none."""
    return torch.where(_chosen(index_NK, num_experts), gate_NK.unsqueeze(2), 0.0).sum(1)


def _chosen(index_NK: Tensor, num_experts: int) -> Tensor:
    return index_NK.unsqueeze(2) == torch.arange(num_experts, device=index_NK.device)


_OURS = torch.ops.moevision
_PLAIN: dict[Any, Callable[..., Any]] = {
    _OURS.route.default: _route,
    _OURS.film_ffn.default: _film_ffn,
    _OURS.plan.default: _plan,
    _OURS.expert_ffn.default: _expert_ffn,
    _OURS.grouped_conv.default: _grouped_conv,
    F.interpolate: _interpolate,
    F.layer_norm: _layer_norm,
    torch.sort: _sort,
}
