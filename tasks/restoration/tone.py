"""ToneBranch: how the values of the whole picture are distributed, and what that alone says about its weather.

A veil of rain or haze lifts the darkest values of a picture. Convolutions normalise each pixel and look for patterns;
they are slow to learn such a plain fact, which one quantile tells. So the branch gets quantiles, and answers with one
gain and bias per colour, weather and picture; the rest of the network adds what differs from place to place. It also
has a say in which weather it is. Of a picture in tiles, the quantiles are those of its mosaic of patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.tasks.restoration.scene import thumbnail
from moevision.tasks.restoration.tophat import WINDOWS_PX

QUANTILES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)


class ToneBranch(nn.Module):
    """Quantiles and pooled features -> one correction per picture.

    Args:
        in_channels: channels of the picture.
        features: number of pooled features that come with the statistics.
        conditions: weathers; each has its own answer, as strong as the weather.
        hidden: width of the two hidden layers.
    """

    def __init__(self, in_channels: int, features: int, conditions: int, hidden: int = 64) -> None:
        super().__init__()
        self.conditions = conditions
        statistics = len(QUANTILES) * (in_channels + 1) + len(WINDOWS_PX)
        self.enter = nn.Linear(statistics + features, hidden)
        self.middle = nn.Linear(hidden, hidden)
        # Zero at the start: an untrained branch changes nothing.
        self.weather, self.correct = nn.Linear(hidden, conditions), nn.Linear(hidden, conditions * 2 * in_channels)
        for leave in (self.weather, self.correct):
            nn.init.zeros_(leave.weight)
            nn.init.zeros_(leave.bias)

    def forward(self, statistics_BS: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Logits to add to those of the weathers, (B, W), and gain and bias per weather and channel, (B, W, 2 C)."""
        x = torch.cat([statistics_BS.to(features_BF.dtype), features_BF], dim=1)
        x = F.gelu(self.middle(F.gelu(self.enter(x))))
        return self.weather(x), self.correct(x).unflatten(1, (self.conditions, -1))


@torch.no_grad()
def tone_statistics(picture_BCHW: Tensor, hats_BCHW: Sequence[Tensor]) -> Tensor:
    """(B, S) in float32: QUANTILES of every channel and of the darkest on a thumbnail, and each top-hat's mean."""
    small_BChw = thumbnail(picture_BCHW).float()
    values_BCL = torch.cat([small_BChw, small_BChw.amin(1, keepdim=True)], dim=1).flatten(2)
    quantiles_QBC = torch.quantile(values_BCL, values_BCL.new_tensor(QUANTILES), dim=2)
    # Top-hats are a few hundredths each: scaled to the size of the others.
    sizes_BK = torch.stack([hat_BCHW.float().flatten(1).mean(1) for hat_BCHW in hats_BCHW], dim=1)
    return torch.cat([quantiles_QBC.permute(1, 2, 0).flatten(1), 10 * sizes_BK], dim=1)
