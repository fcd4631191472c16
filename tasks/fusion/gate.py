"""The multi-modal gate: which experts a picture pair needs, from pooled features and the light in both images.

MoE-Fusion's gate (ICCV 2023) flattens whole feature maps, 16 M weights that fit one picture size. This one pools them,
and is told the light outright: how bright either image is, how much it varies, where its dark and its bright end lie.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.moe import BalanceLoss, Context, LayerRecord, NoisyTopK, Router, Routing, importance_loss, load_loss
from moevision.moe.scorers import PooledScorer

LIGHT_FEATURES = 9
_QUANTILES = (0.05, 0.95)
_HIDDEN = 16
_SAMPLE_PX = 128  # side of the grid of pixels that the light is read from


class PictureGate(nn.Module):
    """Router of whole pictures: (B, F) pooled features -> Routing with B items.

    The decision is a picture-wide statistic: tiles of one picture get the same.

    Args:
        name: its key in the Context.
        features: F.
        num_experts, k: E, and how many a picture gets.
        balance_weight: weight of the importance and load losses (Shazeer et al. 2017), each.
    """

    def __init__(self, name: str, features: int, num_experts: int, k: int, balance_weight: float) -> None:
        super().__init__()
        self.name, self.num_experts = name, num_experts
        losses = [BalanceLoss(f.__name__, f, balance_weight) for f in (importance_loss, load_loss)]
        self.router = Router(PooledScorer(features, _HIDDEN, num_experts), NoisyTopK(k), losses)

    def forward(self, features_BF: Tensor, context: Context) -> Routing:
        """Routing of B items; recorded in the context.

        The statistic `<name>.kept` says what speaks for an expert beside the pair: nothing, but in a video that the
        frame before had it.
        """
        features_BF = context.statistic(self.name, lambda: features_BF)
        kept_BE = context.statistic(f"{self.name}.kept", lambda: features_BF.new_zeros(1, self.num_experts))
        routing = self.router(features_BF, bias_NE=kept_BE)
        context.records[self.name] = LayerRecord(routing, self.router.auxiliary_losses(routing))
        return routing


@torch.no_grad()
def light_of(visible_B1HW: Tensor, infrared_B1HW: Tensor) -> Tensor:
    """(B, LIGHT_FEATURES), float32: of both mean, deviation, 5 % and 95 % quantile; visible share of the gradients."""
    parts = []
    steepness = []
    for image_B1HW in (visible_B1HW.float(), infrared_B1HW.float()):
        # A sample: sorting a whole picture would cost more than the network. As many of every picture, small ones
        # repeat theirs, so that an exported network knows their number.
        sample_BL = F.interpolate(image_B1HW, size=(_SAMPLE_PX, _SAMPLE_PX), mode="nearest").flatten(1)
        low_B, high_B = _quantiles(sample_BL)
        parts += [sample_BL.mean(1), sample_BL.std(1, unbiased=False), low_B, high_B]
        across_B1HW = image_B1HW[..., 1:] - image_B1HW[..., :-1]
        steepness.append(across_B1HW.abs().mean((1, 2, 3)).nan_to_num() + 1e-4)
    parts.append(steepness[0] / (steepness[0] + steepness[1]))
    return torch.stack(parts, dim=1)


def _quantiles(sample_BL: Tensor) -> list[Tensor]:
    """(B,) for each of _QUANTILES, interpolated as torch.quantile does, for which other programs have no code."""
    ordered_BL = torch.sort(sample_BL, dim=1).values
    found = []
    for quantile in _QUANTILES:
        place = quantile * (sample_BL.shape[1] - 1)
        below = int(place)
        found.append(torch.lerp(ordered_BL[:, below], ordered_BL[:, below + 1], place - below))
    return found
