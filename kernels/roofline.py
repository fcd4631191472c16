"""How fast an operator could be: arithmetic and memory traffic by formula, over what a device can do.

No kernel runs faster than max(flops / peak, bytes / bandwidth). Counted is the least an implementation of the named
structure must do: products (2 FLOP a multiply-accumulate), and every tensor that crosses the memory bus, once per time
it does. Elementwise work and the router's (N, E) probabilities are left out, so the bound is a bound.

"expert_ffn" keeps the hidden layer on chip and recomputes it in the backward; "expert_ffn_two_kernels" is the usual
pair of grouped products with the hidden layer in memory in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOT_BYTES = 8  # of a gate (float32) and an expert number (int32); 4 more for the gate's gradient


@dataclass(frozen=True)
class Size:
    """Of one call: N items, D width, H hidden, E experts, K slots an item."""

    items: int
    dim: int
    hidden: int
    experts: int
    slots: int

    @property
    def rows(self) -> int:
        """R = N * K, what the experts compute."""
        return self.items * self.slots

    def letters(self) -> dict[str, int]:
        """The sizes under their letters: {"N": ..., "D": ..., "H": ..., "E": ..., "K": ...}."""
        return {"N": self.items, "D": self.dim, "H": self.hidden, "E": self.experts, "K": self.slots}


class Peak(NamedTuple):
    """What a device can do: bytes per second to and from memory, FLOP per second by type ("fp32", "bf16")."""

    bytes_per_s: float
    flops_per_s: dict[str, float]


# Data sheet, dense figures. fp32 is that of the plain units: our kernels multiply in IEEE fp32 unless told otherwise.
H100_SXM = Peak(3.35e12, {"fp32": 67e12, "bf16": 989e12})


class _Cost(NamedTuple):
    """Of one pass: FLOP, elements of the tensors' type that cross the memory bus, and bytes of everything else."""

    flops: int
    elements: int
    other_bytes: int


def has_formula(operator: str) -> bool:
    """Whether the functions below know this operator."""
    return operator in _FORWARD


def flops(operator: str, size: Size, *, backward: bool = False) -> int:
    """FLOP of one forward pass, or of one backward pass alone.

    Raises:
        ValueError: no formula for this operator.
    """
    return _cost(operator, size, backward).flops


def traffic_bytes(operator: str, size: Size, *, dtype: str = "bf16", backward: bool = False) -> int:
    """Bytes to and from memory in one forward pass, or in one backward pass alone.

    Raises:
        ValueError: no formula for this operator.
    """
    cost = _cost(operator, size, backward)
    return ELEMENT_BYTES[dtype] * cost.elements + cost.other_bytes


def bound_s(
    operator: str, size: Size, *, dtype: str = "bf16", backward: bool = False, peak: Peak = H100_SXM
) -> float:  # fmt: skip
    """Seconds that one pass takes at least; `backward` is the backward pass alone.

    Raises:
        ValueError: no formula for this operator.
    """
    arithmetic_s = flops(operator, size, backward=backward) / peak.flops_per_s[dtype]
    memory_s = traffic_bytes(operator, size, dtype=dtype, backward=backward) / peak.bytes_per_s
    return max(arithmetic_s, memory_s)


def traffic_ratio(size: Size, *, dtype: str = "bf16") -> float:
    """Memory traffic of the fused `expert_ffn` forward over that of two grouped products."""
    return traffic_bytes("expert_ffn", size, dtype=dtype) / traffic_bytes("expert_ffn_two_kernels", size, dtype=dtype)


def measured_peak(device: torch.device, seconds_of: Callable[[Callable[[], object]], float]) -> Peak:
    """What this device reaches in a plain copy and in square matrix products.

    Args:
        seconds_of: times one call; the caller's clock, so that these rates and its timings compare.
    """
    is_cuda = device.type == "cuda"
    source = torch.ones((256 if is_cuda else 16) * 2**20, device=device)
    target = torch.empty_like(source)
    bytes_per_s = 2 * source.nbytes / seconds_of(lambda: target.copy_(source))
    side = 8192 if is_cuda else 1024
    rates = {}
    for name, dtype in TYPES.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * side**3 / seconds_of(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    return Peak(bytes_per_s, rates)


def _cost(operator: str, size: Size, backward: bool) -> _Cost:
    formulas = _BACKWARD if backward else _FORWARD
    if operator not in formulas:
        raise ValueError(f"there is no formula for {operator!r}; there is one for {', '.join(formulas)}")
    return formulas[operator](size)


def _route(size: Size) -> _Cost:
    """Read x and w, write gate and index."""
    projection = size.dim * size.experts
    return _Cost(2 * size.items * projection, size.items * size.dim + projection, SLOT_BYTES * size.rows)


def _route_backward(size: Size) -> _Cost:
    """Two products; read x and w, write dx and dw; read gate, index and the gate's gradient."""
    projection = size.dim * size.experts
    return _Cost(4 * size.items * projection, 2 * (size.items * size.dim + projection), (SLOT_BYTES + 4) * size.rows)


def _expert_ffn(size: Size) -> _Cost:
    """Gather x; write the slots' results, read them again to combine, write y; read both weight matrices."""
    in_rows, weights = size.rows * size.dim, 2 * size.experts * size.dim * size.hidden
    return _Cost(_ffn_flops(size, size.rows), 3 * in_rows + size.items * size.dim + weights, 0)


def _expert_ffn_backward(size: Size) -> _Cost:
    """Four products and the hidden layer again; gather x and dy; dx as y in the forward; weights, their gradients."""
    in_rows, weights = size.rows * size.dim, 2 * size.experts * size.dim * size.hidden
    return _Cost(5 * _ffn_flops(size, size.rows) // 2, 4 * in_rows + size.items * size.dim + 2 * weights, 0)


def _two_kernels(size: Size) -> _Cost:
    """As fused, and the hidden layer is written and read."""
    fused = _expert_ffn(size)
    return fused._replace(elements=fused.elements + 2 * size.rows * size.hidden)


def _two_kernels_backward(size: Size) -> _Cost:
    """dU: read dy, u, write dU. dW2: read u, dy. dW1: read x, dU. dx: read dU, then as y. Weights, their gradients."""
    in_rows, hidden_rows = size.rows * size.dim, size.rows * size.hidden
    weights = 2 * size.experts * size.dim * size.hidden
    elements = 5 * in_rows + 5 * hidden_rows + size.items * size.dim + 2 * weights
    return _Cost(2 * _ffn_flops(size, size.rows), elements, 0)


def _film_ffn(size: Size, width: int) -> _Cost:
    """Read x, both matrices, the modulations, gate and index; write y."""
    tables = 2 * size.dim * size.hidden + 2 * size.experts * width
    return _Cost(_ffn_flops(size, size.items), 2 * size.items * size.dim + tables, SLOT_BYTES * size.rows)


def _film_ffn_backward(size: Size, width: int) -> _Cost:
    """Four products and the hidden layer again; read x and dy, write dx; tables, their gradients, gates and theirs."""
    tables = 2 * size.dim * size.hidden + 2 * size.experts * width
    return _Cost(
        5 * _ffn_flops(size, size.items) // 2, 3 * size.items * size.dim + 2 * tables, (SLOT_BYTES + 4) * size.rows
    )  # fmt: skip


def _ffn_flops(size: Size, rows: int) -> int:
    return 4 * rows * size.dim * size.hidden


_FORWARD: dict[str, Callable[[Size], _Cost]] = {
    "route": _route,
    "expert_ffn": _expert_ffn,
    "expert_ffn_two_kernels": _two_kernels,
    "film_ffn_input": lambda size: _film_ffn(size, size.dim),
    "film_ffn_hidden": lambda size: _film_ffn(size, size.hidden),
}
_BACKWARD: dict[str, Callable[[Size], _Cost]] = {
    "route": _route_backward,
    "expert_ffn": _expert_ffn_backward,
    "expert_ffn_two_kernels": _two_kernels_backward,
    "film_ffn_input": lambda size: _film_ffn_backward(size, size.dim),
    "film_ffn_hidden": lambda size: _film_ffn_backward(size, size.hidden),
}
