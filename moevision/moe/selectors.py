"""Selectors: logits to Routing."""

import torch
from torch import Tensor, nn

from moevision.kernels import reference
from moevision.moe.routing import Routing


class Selector(nn.Module):
    """Base: forward(logits_NE) -> Routing."""

    def fused_k(self) -> int | None:
        """k if `kernels.route` can make this selection, else None."""
        return None

    def forward(self, logits_NE: Tensor) -> Routing:
        """(N, E) -> Routing."""
        raise TypeError(f"{type(self).__name__} does not define forward")


class TopK(Selector):
    """The k best experts with softmax weights over them (they sum to 1); ties go to the lowest expert.

    Experts whose logit is -inf (not allowed) leave their slot empty.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def fused_k(self) -> int | None:
        """Fusable as is."""
        return self.k

    def forward(self, logits_NE: Tensor) -> Routing:
        """(N, E) -> Routing with K = k slots."""
        index_NK = reference.top_k(logits_NE.detach(), self.k)
        chosen_NK = logits_NE.gather(1, index_NK)
        index_NK = index_NK.masked_fill(chosen_NK == -torch.inf, -1)
        weight_NK = chosen_NK.softmax(1).masked_fill(index_NK < 0, 0.0)
        counts_E = torch.bincount(index_NK[index_NK >= 0], minlength=logits_NE.shape[1])
        return Routing(index_NK, weight_NK, counts_E, logits_NE.softmax(1))


class NoisyTopK(TopK):
    """TopK of logits to which noise is added in training, so that experts near the choice get a try.

    The noise has a fixed deviation (V-MoE, NeurIPS 2021, section 2.3) instead of Shazeer's learned one: a picture-level
    router sees too few items a step to learn it. In evaluation there is none.

    Args:
        k: experts chosen.
        noise: standard deviation; None = 1 / E.
    """

    def __init__(self, k: int, noise: float | None = None) -> None:
        super().__init__(k)
        self.noise = noise

    def fused_k(self) -> int | None:
        """Not while it adds noise."""
        return None if self.training else self.k

    def forward(self, logits_NE: Tensor) -> Routing:
        """(N, E) -> Routing with K = k slots."""
        if self.training:
            noise = 1 / logits_NE.shape[1] if self.noise is None else self.noise
            logits_NE = logits_NE + noise * torch.randn_like(logits_NE)
        return super().forward(logits_NE)


class SoftAll(Selector):
    """Every expert, weighted by its probability: dense mixing."""

    def forward(self, logits_NE: Tensor) -> Routing:
        """(N, E) -> Routing with K = E slots."""
        num_items, num_experts = logits_NE.shape
        probs_NE = logits_NE.softmax(1)
        index_NE = torch.arange(num_experts, device=logits_NE.device).expand(num_items, num_experts).contiguous()
        counts_E = torch.full((num_experts,), num_items, device=logits_NE.device)
        return Routing(index_NE, probs_NE, counts_E, probs_NE)
