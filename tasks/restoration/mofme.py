"""MoFME at the size of its paper (AAAI 2024, arXiv 2312.16610), with every published variant behind a switch.

A shallow convolutional head, a two-block ViT whose FFNs are the mixture of experts, a linear patch expansion and a
convolutional tail. There is no skip from head to tail, so `RestorationNet` restores better; this network is here to
check the paper's claims about size and speed, and to compare its variants.

What follows the public code because the text leaves it open: the sizes, attention without query-key-value bias and
with an inner width of 512, a router that reads the residual stream before normalisation, the sigmoid at the end. What
deliberately differs: any picture size, modulations that start near the identity, and one normalisation per FFN instead
of one per expert. An expert's own scale and shift before its first linear map can be folded into that map, so a
conventional MoE loses nothing; in the FiLM variants the public code never uses them. `released_extra_parameters` counts
them.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone.backbone import pad_to_stride
from moevision.backbone.blocks import PositionAttention, moe_ffn
from moevision.backbone.config import ExpertKind, MoEConfig, ScorerKind
from moevision.moe import Context, ExpertBank, MoELayer, Routing

HEAD_CHANNELS = 32
TAIL_CHANNELS = (128, 64)


@dataclass(frozen=True)
class MoFMEConfig:
    """Sizes and variants; the defaults are the form of the paper's text.

    Attributes:
        experts: "film" (a constant scale and shift per expert, the text), "film-linear" (both linear in the token, the
            released code), "ffn" (conventional MoE), "dense" (one FFN).
        num_experts, k: E and how many a token uses; k = 0 mixes all.
        dense_compute: run every expert on every token and weight the rest by zero, as the released baseline does.
        stem: "star" puts GELU(A x) * (C x) before the experts, as the released code does; "none" is the text.
        fuse: "activations" (the text: mix, then one FFN) or "outputs" (one FFN per chosen expert, then mix).
        scorer: "linear", or the uncertainty-aware router: "exact", "repaired", "literal".
        router_dropout: the dropout rate whose moments the uncertainty-aware scorers use.
        dim, depth, heads, head_channels, hidden_ratio, patch_px: of the ViT.
        image_px: side of the pictures the position embedding is made for; it is resampled for others.
        position: "added", or "unused" as in the released code, which owns the embedding but does not add it.
        dropout: on the output of both branches of a block, in training.
        balance_weight: of the load-balance loss; the paper has none.
    """

    experts: ExpertKind = "film"
    num_experts: int = 16
    k: int = 4
    dense_compute: bool = False
    stem: Literal["none", "star"] = "none"
    fuse: Literal["activations", "outputs"] = "activations"
    scorer: ScorerKind = "exact"
    router_dropout: float = 0.1
    dim: int = 384
    depth: int = 2
    heads: int = 8
    head_channels: int = 64
    hidden_ratio: float = 4.0
    patch_px: int = 8
    image_px: int = 240
    position: Literal["added", "unused"] = "added"
    dropout: float = 0.1
    balance_weight: float = 0.0

    @property
    def moe(self) -> MoEConfig:
        """The feed-forward part of a block."""
        return MoEConfig(
            experts=self.experts, num_experts=self.num_experts, k=self.k, hidden_ratio=self.hidden_ratio,
            scorer=self.scorer, dropout=self.router_dropout, fuse=self.fuse, dense_compute=self.dense_compute,
            balance_weight=self.balance_weight,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "MoFMEConfig":
        """Inverse of `to_dict`. Raises TypeError for unknown fields."""
        return MoFMEConfig(**fields)


class MoFMENet(nn.Module):
    """Degraded picture in, restored picture out.

    Args:
        config: sizes and variants.
    """

    def __init__(self, config: MoFMEConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch_px, (wide, narrow) = config.dim, config.patch_px, TAIL_CHANNELS
        self.head = nn.Sequential(_conv(3, HEAD_CHANNELS), ResBlock(HEAD_CHANNELS), ResBlock(HEAD_CHANNELS))
        self.embed = nn.Conv2d(HEAD_CHANNELS, dim, patch_px, stride=patch_px)
        self.embed_norm = nn.LayerNorm(dim)
        side = config.image_px // patch_px
        self.position = nn.Parameter(0.02 * torch.randn(1, dim, side, side))
        self.blocks = nn.ModuleList(MoFMEBlock(f"block{i}.ffn", config) for i in range(config.depth))
        self.expand = nn.Linear(dim, patch_px * patch_px * wide)
        self.tail = nn.Sequential(ResBlock(wide), _conv(wide, narrow), ResBlock(narrow), _conv(narrow, 3))

    def forward(self, x_BCHW: Tensor, context: Context | None = None) -> Tensor:
        """Restore.

        Args:
            x_BCHW: RGB in [0, 1], any H, W >= 1.
            context: receives routing and losses; a fresh one if None.

        Returns:
            (B, 3, H, W) in (0, 1).
        """
        context = context if context is not None else Context()
        height, width = x_BCHW.shape[-2:]
        x = self.embed(self.head(pad_to_stride(2 * x_BCHW - 1, self.config.patch_px)))
        rows, columns = x.shape[-2:]
        x_BLD = self.embed_norm(x.permute(0, 2, 3, 1).flatten(1, 2)) + self._position(rows, columns)
        for block in self.blocks:
            x_BLD = block(x_BLD, context)
        pixels_BCHW = self._expand(x_BLD, rows, columns)
        return torch.sigmoid(self.tail(pixels_BCHW))[..., :height, :width]

    def _position(self, rows: int, columns: int) -> Tensor | float:
        if self.config.position == "unused":
            return 0.0
        grid_1DHW: Tensor = self.position
        if grid_1DHW.shape[-2:] != (rows, columns):
            grid_1DHW = F.interpolate(grid_1DHW, (rows, columns), mode="bicubic", align_corners=False)
        return grid_1DHW.flatten(2).transpose(1, 2)

    def _expand(self, x_BLD: Tensor, rows: int, columns: int) -> Tensor:
        """(B, L, D) -> (B, 128, H, W) in channels-last memory, so the one copy is the one the layout needs anyway."""
        patch_px, channels = self.config.patch_px, TAIL_CHANNELS[0]
        x = self.expand(x_BLD).view(-1, rows, columns, patch_px, patch_px, channels).transpose(2, 3)
        return x.reshape(-1, rows * patch_px, columns * patch_px, channels).permute(0, 3, 1, 2)


class MoFMEBlock(nn.Module):
    """x + attention(norm x), then x + MoE(x); the MoE's router reads x itself, its experts norm x.

    Args:
        name: the MoE layer's key in `Context.records`.
        config: of the network.
    """

    def __init__(self, name: str, config: MoFMEConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attention = PositionAttention(config.dim, config.heads, config.head_channels, bias=False)
        self.ffn, stem = moe_ffn(name, config.dim, config.moe), ExpertStem(config.dim, star=config.stem == "star")
        if isinstance(self.ffn, MoELayer):
            self.ffn.experts = StemmedExperts(stem, self.ffn.experts)
        else:
            self.ffn = nn.Sequential(stem, self.ffn)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        x_BLD = x_BLD + self.dropout(self.attention(self.norm(x_BLD)))
        y_BLD = self.ffn(x_BLD, context) if isinstance(self.ffn, MoELayer) else self.ffn(x_BLD)
        return x_BLD + self.dropout(y_BLD)


class ExpertStem(nn.Module):
    """What experts do to a token before they differ: LayerNorm, and with `star` the gated product of the released code.

    Args:
        dim: D.
        star: z = GELU(A n) * (C n) with n = LayerNorm(x), else z = n.
    """

    def __init__(self, dim: int, *, star: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, dim, bias=False) if star else None
        self.value = nn.Linear(dim, dim, bias=False) if star else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = self.norm(x)
        if self.gate is None or self.value is None:
            return x
        return F.gelu(self.gate(x)) * self.value(x)


class StemmedExperts(ExpertBank):
    """A bank behind a common stem, for layers whose router must not see what the stem does."""

    def __init__(self, stem: nn.Module, experts: ExpertBank) -> None:
        super().__init__()
        self.stem, self.experts = stem, experts
        self.num_experts, self.needs_plan = experts.num_experts, experts.needs_plan

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.experts.routed(self.stem(x_ND), routing, order_R, offsets_E1)

    def all(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E, D)."""
        return self.experts.all(self.stem(x_ND))

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.experts.dense(self.stem(x_ND), routing)


class ResBlock(nn.Module):
    """x + conv(ReLU(conv x)), 3x3 both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape out."""
        return x_BCHW + self.second(F.relu(self.first(x_BCHW)))


def released_extra_parameters(config: MoFMEConfig) -> int:
    """Parameters the public code holds beyond `MoFMENet`: a LayerNorm in every expert instead of one per block.

    In its FiLM variants they are dead weights (never used), beside the block's own norm; in its conventional MoE they
    replace the block's norm.
    """
    if config.experts == "dense":
        return 0
    extra = config.num_experts - 1 if config.experts == "ffn" else config.num_experts
    return 2 * config.dim * config.depth * extra if config.experts != "film" else 0


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)
