"""What `moevision bench kernels` measures: operators, sizes, passes, types, and the variants of each.

A case is one operator at one size, pass and type. Its variants get the same numbers: drawn once per size and routing,
and only rounded to the type. "dense" is always there: one FFN without experts on N * K rows, which lie in memory as one
contiguous tensor; every ratio is to it, also that of `route` and `plan` (their share of an FFN's time).

To add an operator: a builder below, its line in BUILDERS, its cases in `list_cases`.

Shape legend as in `ops`: N items, D width, H hidden, E experts, K slots an item, R = N * K, F = D or H.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moevision.kernels import bench_layers, ops, reference
from moevision.kernels import bench_variants as others
from moevision.kernels.quantization import dequantize, quantize
from moevision.kernels.roofline import TYPES, Size

SIZES = (
    Size(4096, 64, 256, 4, 1),
    Size(4096, 64, 256, 16, 2),
    Size(16384, 48, 96, 8, 2),
    Size(16384, 96, 384, 8, 1),
    Size(16384, 96, 384, 16, 2),
    Size(16384, 96, 384, 64, 2),
    Size(65536, 32, 64, 8, 2),
    Size(65536, 64, 256, 16, 2),
)
SKEWED_SIZE = Size(16384, 96, 384, 16, 2)
LAYER_SIZE = Size(4096, 64, 256, 8, 2)
QUICK_SIZES = SIZES[:2]
PASSES = ("forward", "forward_backward")
WINDOW_PX = 8
"""Side of the windows that `grouped_conv` is measured on."""
SKEW = 6.0
"""Added to the logits, from +SKEW for the first expert to -SKEW for the last: 9 of 16 get nothing."""

Run = Callable[[], tuple[Tensor | None, ...]]
LayerBuilder = Callable[[Size], nn.Module]


@dataclass(frozen=True)
class Case:
    """One line of the result. `passes` is one of PASSES, `dtype` a key of TYPES."""

    op: str
    size: Size
    passes: str
    dtype: str
    routing: str = "uniform"
    options: dict[str, str] = field(default_factory=dict)

    def title(self) -> str:
        """For people: `expert_ffn forward fp32 N4096 D64 H256 E16 K2`, and what is not as usual."""
        letters = " ".join(f"{letter}{size}" for letter, size in self.size.letters().items())
        unusual = ([self.routing] if self.routing != "uniform" else []) + [
            f"{name}={value}" for name, value in self.options.items()
        ]
        return " ".join([self.op, self.passes, self.dtype, letters, *unusual])


class Variant(NamedTuple):
    """One way to compute: `outputs()` gives what is differentiable, in all `leaves`."""

    outputs: Callable[[], tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...]

    def runner(self, passes: str) -> "Run":
        """What is timed: the outputs without a graph, or the gradients of all leaves ("forward_backward").

        The upstream gradients are drawn here, in memory of their own, as a layer that follows would hand them over.
        """
        with torch.no_grad():
            first = self.outputs()
        if passes == "forward":
            return torch.no_grad()(self.outputs)
        generator = torch.Generator().manual_seed(0)
        upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in first]
        return lambda: torch.autograd.grad(self.outputs(), self.leaves, upstream, allow_unused=True)


Variants = dict[str, Variant | str]
"""By name; a text says why a variant cannot run."""


@dataclass(frozen=True)
class Inputs:
    """All tensors of an expert FFN case, ready to be differentiated."""

    x_ND: Tensor
    w1_EDH: Tensor
    b1_EH: Tensor
    w2_EHD: Tensor
    b2_ED: Tensor
    gate_NK: Tensor
    index_NK: Tensor

    def differentiable(self) -> tuple[Tensor, ...]:
        """Everything but the index."""
        return self.x_ND, self.w1_EDH, self.b1_EH, self.w2_EHD, self.b2_ED, self.gate_NK


def list_cases(*, quick: bool, wanted: tuple[str, ...]) -> Iterator[Case]:
    """Every case of the operators in `wanted`."""
    sizes = QUICK_SIZES if quick else SIZES
    for op in wanted:
        for passes in PASSES:
            for dtype in TYPES:
                if op == "plan":
                    if (passes, dtype) == ("forward", "fp32"):  # it sorts integers
                        yield from (Case(op, size, passes, dtype) for size in sizes)
                elif op == "quant_linear":
                    if (passes, dtype) == ("forward", "fp32"):  # weights for inference; bf16 differs in x alone
                        yield from (Case(op, z, passes, dtype, options={"bits": b}) for b in ("2", "4") for z in sizes)
                elif op == "layer":
                    yield Case(op, LAYER_SIZE, passes, dtype)
                elif op == "film_ffn":
                    several = [size for size in sizes if size.slots > 1]  # one modulation is not a mixture
                    for site in ops.SITES:
                        yield from (Case(op, size, passes, dtype, options={"site": site}) for size in several)
                else:
                    yield from (Case(op, size, passes, dtype) for size in sizes)
                    if op == "expert_ffn" and not quick:
                        yield Case(op, SKEWED_SIZE, passes, dtype, "skewed")


def build(case: Case, *, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    """The variants of a case with their inputs, "dense" first and "ours" second.

    A bf16 case has "ours_fp32" beside them, so that both types are timed side by side.
    """
    variants = {"dense": _dense(case, device, seed)} | BUILDERS[case.op](case, device, seed, build_layer)
    if case.dtype == "bf16":
        fp32 = Case(case.op, case.size, case.passes, "fp32", case.routing, case.options)
        variants["ours_fp32"] = BUILDERS[case.op](fp32, device, seed, build_layer)["ours"]
    return variants


def draw_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """The same numbers for every type and pass; gates are float32, as `route` gives them."""
    size, generator = case.size, torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    x_ND = draw(size.items, size.dim, scale=1.0)
    w1_EDH = draw(size.experts, size.dim, size.hidden, scale=size.dim**-0.5)
    w2_EHD = draw(size.experts, size.hidden, size.dim, scale=size.hidden**-0.5)
    b1_EH, b2_ED = draw(size.experts, size.hidden, scale=0.1), draw(size.experts, size.dim, scale=0.1)
    logits_NE = draw(size.items, size.experts, scale=1.0)
    if case.routing == "skewed":
        logits_NE += torch.linspace(SKEW, -SKEW, size.experts)
    value_NK, index_NK = logits_NE.topk(size.slots, dim=1)
    x, w1, b1, w2, b2 = (_leaf(t, device, TYPES[case.dtype]) for t in (x_ND, w1_EDH, b1_EH, w2_EHD, b2_ED))
    return Inputs(x, w1, b1, w2, b2, _leaf(value_NK.softmax(1), device, torch.float32), index_NK.to(device))


def _dense(case: Case, device: torch.device, seed: int) -> Variant:
    inputs = draw_inputs(case, device, seed)
    x_RD = _leaf(inputs.x_ND.repeat(case.size.slots, 1), device, inputs.x_ND.dtype)
    first = (inputs.w1_EDH[0], inputs.b1_EH[0], inputs.w2_EHD[0], inputs.b2_ED[0])
    leaves = (x_RD, *(_leaf(t.clone(), device, t.dtype) for t in first))
    return Variant(lambda: (others.dense_ffn(*leaves),), leaves)


def _expert_ffn(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    inputs = draw_inputs(case, device, seed)
    ways: dict[str, Callable[..., Tensor]] = {
        "ours": others.sorted_ffn,
        "loop": others.looped_ffn,
        "grouped_mm": others.grouped_mm_ffn,
        "pad_bmm": others.padded_ffn,
    }
    return _same_call(ways, inputs.differentiable(), inputs.index_NK)


def _film_ffn(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    inputs, site = draw_inputs(case, device, seed), case.options["site"]
    width = case.size.dim if site == "input" else case.size.hidden
    generator, dtype = torch.Generator().manual_seed(seed + 1), inputs.x_ND.dtype
    film = [torch.randn(case.size.experts, width, generator=generator) * 0.1 for _ in range(2)]
    shared = (inputs.w1_EDH[0], inputs.b1_EH[0], inputs.w2_EHD[0], inputs.b2_ED[0])
    weights = [_leaf(t.clone(), device, dtype) for t in (*shared, 1 + film[0], film[1])]
    leaves = (inputs.x_ND, *weights, inputs.gate_NK)
    ways: dict[str, Callable[..., Tensor]] = {
        "ours": partial(ops.film_ffn, site=site, fuse="activations"),
        "eager": partial(others.eager_film, site=site),
    }
    return _same_call(ways, leaves, inputs.index_NK)


def _route(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    size, x_ND = case.size, draw_inputs(case, device, seed).x_ND
    w_ED = torch.randn(size.experts, size.dim, generator=torch.Generator().manual_seed(seed + 1)) * size.dim**-0.5
    leaves = (x_ND, _leaf(w_ED, device, x_ND.dtype))
    return {
        "ours": Variant(lambda: ops.route(*leaves, size.slots)[::3], leaves),
        "eager": Variant(lambda: others.eager_route(*leaves, size.slots)[::3], leaves),
    }


def _plan(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    index_NK = draw_inputs(case, device, seed).index_NK
    return {
        "ours": Variant(lambda: ops.plan(index_NK, case.size.experts), ()),
        "eager": Variant(lambda: reference.plan(index_NK, case.size.experts), ()),
    }


def _grouped_conv(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    """Every window of WINDOW_PX x WINDOW_PX items through the depthwise kernels of each of its K experts."""
    size, inputs = case.size, draw_inputs(case, device, seed)
    windows, side = max(1, size.items // WINDOW_PX**2), WINDOW_PX + 2
    generator, dtype = torch.Generator().manual_seed(seed + 1), inputs.x_ND.dtype
    shapes = (windows * size.slots, size.dim, side, side), (size.experts, size.dim, 3, 3), (size.experts, size.dim)
    leaves = tuple(_leaf(torch.randn(shape, generator=generator) / 3, device, dtype) for shape in shapes)
    index_N = inputs.index_NK[:windows].reshape(-1)
    ways: dict[str, Callable[..., Tensor]] = {"ours": ops.grouped_conv, "loop": others.looped_conv}
    return _same_call(ways, leaves, index_N)


def _quant_linear(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    inputs, bits = draw_inputs(case, device, seed), int(case.options["bits"])
    x_ND, weight_DH = inputs.x_ND.detach(), inputs.w1_EDH[0].detach()
    packed = quantize(weight_DH.float(), bits)
    rounded_DH = dequantize(*packed, weight_DH.shape[0]).to(x_ND.dtype)
    return {
        "ours": Variant(lambda: (ops.quant_linear(x_ND, *packed),), ()),
        "product": Variant(lambda: (x_ND @ rounded_DH,), ()),
        "unpack_and_product": Variant(lambda: (reference.quant_linear(x_ND, *packed),), ()),
    }


def _layer(case: Case, device: torch.device, seed: int, build_layer: LayerBuilder | None) -> Variants:
    x_1ND = draw_inputs(case, device, seed).x_ND.detach().unsqueeze(0)
    builders = {"ours": build_layer or bench_layers.not_given} | bench_layers.PEERS
    variants: Variants = {}
    for name, builder in builders.items():
        torch.manual_seed(seed)
        try:
            layer = builder(case.size).train(case.passes == "forward_backward").to(device, x_1ND.dtype)
        except ModuleNotFoundError as error:
            variants[name] = f"not installed: {error.name}"
            continue
        except (ImportError, bench_layers.UnavailableError) as error:  # ImportError: a release without such a layer
            variants[name] = str(error)
            continue
        leaves = (x_1ND.clone().requires_grad_(), *layer.parameters())
        variants[name] = Variant(_layer_outputs(layer, leaves[0]), leaves)
    return variants


def _same_call(ways: dict[str, Callable[..., Tensor]], leaves: tuple[Tensor, ...], index_NK: Tensor) -> Variants:
    def variant(way: Callable[..., Tensor]) -> Variant:
        return Variant(lambda: (way(*leaves, index_NK),), leaves)

    return {name: variant(way) for name, way in ways.items()}


def _layer_outputs(layer: nn.Module, x_1ND: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    def outputs() -> tuple[Tensor, ...]:
        y = layer(x_1ND)
        return (y if isinstance(y, Tensor) else y[0],)  # peers return their balance losses too

    return outputs


def _leaf(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(device, dtype).contiguous().requires_grad_()


Builder = Callable[[Case, torch.device, int, LayerBuilder | None], Variants]
BUILDERS: dict[str, Builder] = {
    "expert_ffn": _expert_ffn,
    "film_ffn": _film_ffn,
    "route": _route,
    "plan": _plan,
    "grouped_conv": _grouped_conv,
    "quant_linear": _quant_linear,
    "layer": _layer,
}
