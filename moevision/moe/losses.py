"""Balance losses: functions first, one thin weighted wrapper."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moevision.moe.routing import Routing


def importance_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' summed probability (Shazeer et al. 2017, section 4)."""
    return _squared_variation(routing.probs_NE.sum(0))


def load_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' summed gate weight among chosen slots."""
    weight_NK = torch.where(routing.index_NK < 0, 0, routing.weight_NK)
    load_E = weight_NK.new_zeros(routing.probs_NE.shape[1])
    return _squared_variation(load_E.scatter_add(0, routing.index_NK.clamp(min=0).reshape(-1), weight_NK.reshape(-1)))


def switch_loss(routing: Routing) -> Tensor:
    """E * sum_e (share of slots) * (mean probability): 1 when balanced (Switch Transformer, section 2.2)."""
    num_experts = routing.probs_NE.shape[1]
    share_E = routing.counts_E.to(routing.probs_NE.dtype) / routing.counts_E.sum().clamp(min=1)
    return num_experts * (share_E * routing.probs_NE.mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """Mean squared log of the largest probability: keeps a router from saturating."""
    return routing.probs_NE.amax(1).clamp(min=1e-9).log().square().mean()


@dataclass(frozen=True)
class BalanceLoss:
    """A named, weighted balance loss."""

    name: str
    function: Callable[[Routing], Tensor]
    weight: float

    def __call__(self, routing: Routing) -> Tensor:
        return self.weight * self.function(routing)


def _squared_variation(mass_E: Tensor) -> Tensor:
    return mass_E.var(unbiased=False) / mass_E.mean().square().clamp(min=1e-10)
