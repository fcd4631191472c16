"""What a router decides, and the explicit channel between layers of one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moevision import kernels

if TYPE_CHECKING:
    from moevision.moe.losses import BalanceLoss
    from moevision.moe.scorers import Scorer
    from moevision.moe.selectors import Selector


@dataclass(frozen=True)
class Routing:
    """A router's decision for N items; slots are padded with -1, never ragged.

    Attributes:
        index_NK: expert of each slot (int64), -1 = empty.
        weight_NK: combine weight of each slot (float32, differentiable); the slot is ignored where the index is -1.
        counts_E: how many slots chose each expert (int64).
        probs_NE: the router's full distribution (float32, differentiable), for balance losses and reports.
        state: what a recurrent router hands to the next layer; None otherwise.
    """

    index_NK: Tensor
    weight_NK: Tensor
    counts_E: Tensor
    probs_NE: Tensor
    state: Tensor | None = None


@dataclass(frozen=True)
class LayerRecord:
    """What one MoE layer did in one forward pass: its routing and its named auxiliary losses."""

    routing: Routing
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class Window:
    """Where a tile lies in its picture, all in pixels: top-left corner of the tile, size of the whole picture."""

    top_px: int
    left_px: int
    picture_height_px: int
    picture_width_px: int


@dataclass
class Context:
    """Side inputs and outputs of ONE forward pass, the only channel between layers.

    Records are overwritten by layer name, so a layer that runs twice (activation checkpointing) counts once.

    Attributes:
        modality: which sensor each item comes from (N,), or None.
        task: task number per image (B,), or None.
        cond: conditioning vector per image (B, c), or None.
        frozen_statistics: image-level statistics by name to use; those not in it are measured. A tiler measures all of
            them once for the whole picture, so that all tiles are treated alike.
        window: where this pass lies in the picture the frozen statistics describe; None = it is the whole picture.
        statistics: the statistics this pass used, by name.
        records: routing and losses by layer name.
    """

    modality: Tensor | None = None
    task: Tensor | None = None
    cond: Tensor | None = None
    frozen_statistics: dict[str, Tensor] | None = None
    window: Window | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)

    def statistic(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        """The frozen statistic of that name if there is one, else what `measure` returns; remembered either way."""
        frozen = self.frozen_statistics or {}
        value = frozen[name] if name in frozen else measure()
        self.statistics[name] = value
        return value

    def auxiliary_loss(self) -> Tensor | float:
        """Sum of every layer's auxiliary losses (already weighted); 0.0 when no layer has any."""
        losses = [loss for record in self.records.values() for loss in record.losses.values()]
        return torch.stack(losses).sum() if losses else 0.0


class Router(nn.Module):
    """scorer -> (bias, allowed-expert mask) -> selector -> balance losses.

    A linear or exact-moment scorer with a top-k selector, without bias and mask, runs as the single `kernels.route`
    operator; every other combination goes through the scorer's logits. Both give the same Routing.

    Args:
        scorer: (N, D) -> logits (N, E).
        selector: logits -> Routing.
        losses: balance losses to record, each weighted.
    """

    def __init__(self, scorer: "Scorer", selector: "Selector", losses: Sequence["BalanceLoss"] = ()) -> None:
        super().__init__()
        self.scorer, self.selector, self.losses = scorer, selector, tuple(losses)

    def forward(
        self, x_ND: Tensor, allowed_ME: Tensor | None = None, context: Context | None = None,
        bias_NE: Tensor | None = None,
    ) -> Routing:  # fmt: skip
        """Route items.

        Args:
            x_ND: items.
            allowed_ME: (M modalities, E), bool: the experts that each `context.modality` may use.
            context: needed with `allowed_ME`.
            bias_NE: added to the logits, broadcast over items: what speaks for an expert beside the item itself.
        """
        projection = self.scorer.projection()
        k = self.selector.fused_k()
        if projection is not None and k is not None and allowed_ME is None and bias_NE is None:
            weight_ED, variance_scale = projection
            gate_NK, index_NK, counts_E, probs_NE = kernels.route(x_ND, weight_ED, k, variance_scale)
            return Routing(index_NK, gate_NK, counts_E, probs_NE)
        logits_NE = self.scorer(x_ND)
        if bias_NE is not None:
            logits_NE = logits_NE + bias_NE
        if allowed_ME is not None:
            if context is None or context.modality is None:
                raise ValueError("an allowed-expert mask needs context.modality")
            logits_NE = logits_NE.masked_fill(~allowed_ME[context.modality], -torch.inf)
        return self.selector(logits_NE)

    def auxiliary_losses(self, routing: Routing) -> dict[str, Tensor]:
        """Weighted balance losses by name, for the training loop."""
        return {loss.name: loss(routing) for loss in self.losses}
