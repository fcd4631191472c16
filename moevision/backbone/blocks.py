"""Blocks of the backbone. Feature maps are (B, C, H, W) in channels-last memory: C is contiguous, a pixel is a token.

Sources: gated convolution block after NAFNet (Chen et al., ECCV 2022), transposed attention after Restormer (Zamir et
al., CVPR 2022), FFNs as MoE layers after MoFME (AAAI 2024).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone.config import BackboneConfig, MoEConfig
from moevision.backbone.rows import by_rows
from moevision.moe import (
    BalanceLoss,
    Context,
    Dense,
    ExactMomentScorer,
    ExpertBank,
    FFNExperts,
    FiLMExperts,
    LinearFiLMExperts,
    LinearScorer,
    LiteralUncertaintyScorer,
    MoELayer,
    RepairedUncertaintyScorer,
    Router,
    Sorted,
    TopK,
    switch_loss,
)
from moevision.moe.experts import DenseFFN
from moevision.moe.scorers import Scorer
from moevision.moe.selectors import Selector, SoftAll


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel; on channels-last memory it needs no copy."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape out."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class GatedConvBlock(nn.Module):
    """x + conv part, then x + pointwise part, both gated by multiplication (no activation function).

    The channel gate is an image-level statistic: it is measured from the whole picture, or taken frozen from the
    Context so that tiles of one picture agree.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name = name
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.expand1 = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.channel_gate = nn.Conv2d(channels, channels, 1)
        self.project1 = nn.Conv2d(channels, channels, 1)
        self.expand2 = nn.Conv2d(channels, 2 * channels, 1)
        self.project2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        y_BCHW = by_rows(lambda x: _gate(self.depthwise(self.expand1(self.norm1(x)))), [x_BCHW], halo=1)
        gate_BC11 = context.statistic(self.name, lambda: self.channel_gate(y_BCHW.mean((2, 3), keepdim=True)))

        def mix(y: Tensor, x: Tensor) -> Tensor:
            x = x + self.project1(y * gate_BC11)
            return x + self.project2(_gate(self.expand2(self.norm2(x))))

        return by_rows(mix, [y_BCHW, x_BCHW], out=y_BCHW)


class TransposedAttention(nn.Module):
    """Attention between channels instead of positions: linear cost, any size (Restormer, section 3.1).

    The (C/h, C/h) attention matrix summarises the whole picture, so it is an image-level statistic of the Context.
    """

    def __init__(self, name: str, channels: int, heads: int) -> None:
        super().__init__()
        self.name, self.heads = name, heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        batch, channels, height, width = x_BCHW.shape
        tokens_BLC = self.depthwise(self.qkv(x_BCHW)).permute(0, 2, 3, 1).reshape(batch, -1, 3 * channels)
        q_BLC, k_BLC, v_BLC = tokens_BLC.chunk(3, dim=2)
        attention = context.statistic(self.name, lambda: self._attention(q_BLC, k_BLC))
        v = v_BLC.view(batch, -1, self.heads, channels // self.heads)
        y = torch.einsum("blhd,bhcd->blhc", v, attention.expand(batch, -1, -1, -1))
        return self.project(y.reshape(batch, height, width, channels).permute(0, 3, 1, 2))

    def _attention(self, q_BLC: Tensor, k_BLC: Tensor) -> Tensor:
        batch, _, channels = q_BLC.shape
        shape = (batch, -1, self.heads, channels // self.heads)
        q_BLhc, k_BLhc = (t.float().view(shape) for t in (q_BLC, k_BLC))
        # Channels of unit length, divided by after the product: there are far fewer products than positions.
        q_Bhc1, k_Bh1c = (t.square().sum(1).clamp_min(1e-24).sqrt() for t in (q_BLhc, k_BLhc))
        length_Bhcc = q_Bhc1.unsqueeze(3) * k_Bh1c.unsqueeze(2)
        score_Bhcc = torch.einsum("blhc,blhd->bhcd", q_BLhc, k_BLhc) / length_Bhcc * self.temperature.float()
        return score_Bhcc.softmax(-1).to(q_BLC.dtype)


class PositionAttention(nn.Module):
    """Ordinary multi-head softmax attention between positions (ViT); quadratic in the number of positions.

    Args:
        channels: C.
        heads: number of heads; head_channels defaults to C / heads.
    """

    def __init__(self, channels: int, heads: int, head_channels: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.head_channels = heads, head_channels or channels // heads
        inner = heads * self.head_channels
        self.qkv, self.project = nn.Linear(channels, 3 * inner, bias=bias), nn.Linear(inner, channels)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        batch, length, _ = x_BLC.shape
        q, k, v = self.qkv(x_BLC).view(batch, length, 3, self.heads, self.head_channels).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(batch, length, -1))


class AttentionBlock(nn.Module):
    """x + attention(norm x), then x + MoE FFN(norm x)."""

    def __init__(self, name: str, channels: int, config: BackboneConfig) -> None:
        super().__init__()
        self.mixer = config.mixer
        self.norm1, self.norm2 = ChannelNorm(channels), nn.LayerNorm(channels, eps=1e-6)
        if config.mixer == "transposed":
            self.attention: nn.Module = TransposedAttention(f"{name}.attention", channels, config.heads)
        else:
            self.attention = PositionAttention(channels, config.heads)
        self.ffn = moe_ffn(f"{name}.ffn", channels, config.moe)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        x_BCHW = x_BCHW + self._attend(self.norm1(x_BCHW), context)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWC = self.norm2(x_BHWC)
        y_BHWC = self.ffn(y_BHWC, context) if isinstance(self.ffn, MoELayer) else self.ffn(y_BHWC)
        return (x_BHWC + y_BHWC).permute(0, 3, 1, 2)

    def _attend(self, x_BCHW: Tensor, context: Context) -> Tensor:
        if self.mixer == "transposed":
            return self.attention(x_BCHW, context)
        batch, channels, height, width = x_BCHW.shape
        y_BLC = self.attention(x_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, channels))
        return y_BLC.view(batch, height, width, channels).permute(0, 3, 1, 2)


def moe_ffn(name: str, dim: int, config: MoEConfig) -> nn.Module:
    """The feed-forward part a MoEConfig describes: a MoELayer, or a plain FFN for experts = "dense"."""
    hidden = round(config.hidden_ratio * dim)
    if config.experts == "dense":
        return DenseFFN(dim, hidden)
    selector: Selector = TopK(config.k) if config.k else SoftAll()
    losses = [BalanceLoss("switch", switch_loss, config.balance_weight)] if config.balance_weight else []
    router = Router(_scorer(dim, config), selector, losses)
    return MoELayer(name, router, _bank(dim, hidden, config), Dense() if config.dense_compute else Sorted())


def _scorer(dim: int, config: MoEConfig) -> Scorer:
    if config.scorer == "linear":
        return LinearScorer(dim, config.num_experts)
    kinds = {"exact": ExactMomentScorer, "repaired": RepairedUncertaintyScorer, "literal": LiteralUncertaintyScorer}
    return kinds[config.scorer](dim, config.num_experts, config.dropout)


def _bank(dim: int, hidden: int, config: MoEConfig) -> ExpertBank:
    if config.experts == "ffn":
        return FFNExperts(config.num_experts, dim, hidden)
    if config.experts == "film-linear":
        return LinearFiLMExperts(config.num_experts, dim, hidden)
    return FiLMExperts(config.num_experts, dim, hidden, site=config.site, fuse=config.fuse)


def _gate(x_BCHW: Tensor) -> Tensor:
    first, second = x_BCHW.chunk(2, dim=1)
    return first * second
