"""Dispatchers: how items reach their experts and come back."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from moevision import kernels
from moevision.moe.experts import ExpertBank
from moevision.moe.routing import Routing


@dataclass(frozen=True)
class Plan:
    """Slots sorted by expert: `order_R` (slot numbers n * K + k), `offsets_E1` (each expert's range)."""

    order_R: Tensor
    offsets_E1: Tensor


class Dispatcher(Protocol):
    """(x, routing, bank) -> sum_k weight_nk * expert_{index_nk}(x_n)."""

    def __call__(self, x_ND: Tensor, routing: Routing, bank: ExpertBank) -> Tensor: ...


class Sorted:
    """Dropless: sort the slots by expert, run each expert once on its contiguous rows, combine. The product path."""

    def __call__(self, x_ND: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        if not bank.needs_plan:
            return bank.routed(x_ND, routing, None, None)
        plan = Plan(*kernels.plan(routing.index_NK, bank.num_experts))
        return bank.routed(x_ND, routing, plan.order_R, plan.offsets_E1)


class Dense:
    """Every expert on every item, zero weight for those not chosen: the reference, and the dense-compute baseline."""

    def __call__(self, x_ND: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        return bank.dense(x_ND, routing)
