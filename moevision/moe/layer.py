"""The MoE layer: same shape in, one tensor out; losses and routing go to the Context."""

from torch import Tensor, nn

from moevision.moe.dispatch import Dispatcher, Sorted
from moevision.moe.experts import ExpertBank
from moevision.moe.routing import Context, LayerRecord, Router


class MoELayer(nn.Module):
    """y = shared(x) + sum_k weight_k * expert_{index_k}(x).

    Args:
        name: the layer's key in `Context.records`; unique in a model.
        router: decides; balance losses are taken from it.
        experts: the bank.
        dispatcher: `Sorted` (default) or `Dense` (reference).
        shared: an expert that every item passes, or None.
    """

    def __init__(
        self, name: str, router: Router, experts: ExpertBank,
        dispatcher: Dispatcher | None = None, shared: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.router, self.experts, self.shared = name, router, experts, shared
        self.dispatcher: Dispatcher = dispatcher or Sorted()

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Channels last: (..., D) -> (..., D); every position is an item. Feature maps are passed as (B, H, W, C)."""
        x_ND = x.reshape(-1, x.shape[-1])
        routing = self.router(x_ND, context=context)
        y_ND = self.dispatcher(x_ND, routing, self.experts)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        if context is not None:
            context.records[self.name] = LayerRecord(routing, self.router.auxiliary_losses(routing))
        return y_ND.reshape(x.shape)
