"""MemoryOutNet: predicts the next frame through sparse filters that pass what normal scenes need.

After MemoryOut (arXiv 2506.02535), small enough for a CPU. What stands still is copied from the last frame, unfiltered;
what changes must pass every stage's bottleneck, so what normal frames never showed is predicted badly.

    frames -------> appearance (backbone) +--> joint cross-attention --> [block -> sparse filter] x stages --+
    differences -> motion (backbone) -----+          ^                                                       v
    semantic vector, or a learned null token --------+        last frame -------------------> head --> next frame
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.backbone.backbone import STRIDE, pad_to_stride
from moevision.backbone.blocks import AttentionBlock, ChannelNorm
from moevision.backbone.config import MoEConfig
from moevision.moe import BalanceLoss, Context, LinearScorer, MoELayer, Router, SparseFilterExperts, TopK, switch_loss
from moevision.moe.experts import DenseFFN
from moevision.tasks.anomaly.appearance import CHANNELS, LOOK_PX, AppearanceEncoder
from moevision.tasks.anomaly.motion import WORKING_PX

FRAMES = 4  # seen, to predict the one after them
_MOTION_GAIN = 4.0  # differences of frames are small
_POOL = 2  # the motion that cross-attention looks at is pooled: neighbouring tokens say the same

Filter = Literal["sparse", "sparse-residual", "ffn", "none"]


@dataclass(frozen=True)
class MemoryOutConfig:
    """Sizes and switches.

    Attributes:
        width: of the appearance backbone; tokens have D = 4 * width channels at stride 8.
        motion_width: of the motion backbone.
        cross_layers: of joint cross-attention.
        stages: blocks, each with a filter behind it.
        heads: of attention.
        filter: "sparse", the paper's; "sparse-residual" adds what goes in; "ffn", a plain FFN of as many parameters as
            an item uses; "none", the block alone.
        num_experts, k, rank: routed filters E, how many a token uses, columns of a filter. One more is shared by all
            tokens; num_experts = 0 leaves that one alone.
        semantic_dim: length of the semantic vector that describes the scene; 0 = the learned null token alone. Where
            none is given, the encoder's mean features of the last frame are taken if they are of this length.
        encoder: carry the frozen encoder of `appearance`, which takes no part in the prediction.
        balance_weight: weight of the load balance. The paper's 0.001 lets experts die.
    """

    width: int = 16
    motion_width: int = 8
    cross_layers: int = 1
    stages: int = 4
    heads: int = 4
    filter: Filter = "sparse"
    num_experts: int = 16
    k: int = 4
    rank: int = 8
    semantic_dim: int = 0
    encoder: bool = True
    balance_weight: float = 0.02

    @property
    def dim(self) -> int:
        """D, the channels of a token."""
        return 4 * self.width

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "MemoryOutConfig":
        """Inverse of `to_dict`. Raises TypeError for unknown fields."""
        return MemoryOutConfig(**fields)


PRESETS = {
    "test": lambda: MemoryOutConfig(8, 4, 1, 2, 2, num_experts=4, k=2, rank=2, encoder=False),
    "small": MemoryOutConfig,
}


class Prediction(NamedTuple):
    """What the network expects.

    Attributes:
        frame_B1HW: the next frame, in [-1, 1] but for errors, not clamped.
        described_BS: the semantic vector it would describe the scene with; None for a network without.
        semantic_BS: the one it was given, or took from its encoder; None without.
    """

    frame_B1HW: Tensor
    described_BS: Tensor | None
    semantic_BS: Tensor | None


class MemoryOutNet(nn.Module):
    """Four grey frames in, the fifth out."""

    def __init__(self, config: MemoryOutConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AppearanceEncoder() if config.encoder else None
        dim = config.dim
        self.appearance = MoEBackbone(_small(FRAMES, config.width), "appearance.")
        self.motion = MoEBackbone(_small(FRAMES - 1, config.motion_width), "motion.")
        self.to_motion = nn.Conv2d(4 * config.motion_width, dim, 1)
        self.null_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.to_semantic = nn.Linear(config.semantic_dim, dim) if config.semantic_dim else None
        self.cross = nn.ModuleList(CrossAttention(dim, config.heads) for _ in range(config.cross_layers))
        self.join = nn.Sequential(nn.Conv2d(2 * dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))
        plain = BackboneConfig(heads=config.heads, moe=MoEConfig(experts="dense", hidden_ratio=2.0))
        self.blocks = nn.ModuleList(AttentionBlock(f"block.{i}", dim, plain) for i in range(config.stages))
        self.filters = nn.ModuleList(_filter(f"filter.{i}", config) for i in range(config.stages))
        self.norm = ChannelNorm(dim)
        patch = STRIDE * STRIDE
        self.head = nn.Conv2d(dim + patch, patch, 1)
        self.refine = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 1, 1))
        self.describe: nn.Module | None = None
        if config.semantic_dim:
            self.describe = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, config.semantic_dim))
        # At the start the prediction is the last frame, so that the filters learn what changes and nothing else.
        last = self.refine[2]
        for parameter in (self.head.weight, self.head.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]

    def forward(
        self, frames_BTHW: Tensor, context: Context | None = None, semantic_BS: Tensor | None = None
    ) -> Prediction:
        """Predict the frame after the last.

        Args:
            frames_BTHW: grey, in [-1, 1], T = FRAMES, oldest first, any H, W >= 1; in float32 also where the weights
                are not.
            context: receives routing, losses and statistics.
            semantic_BS: a description of the scene, S = semantic_dim; None = the encoder's, or the null token.
        """
        context = context if context is not None else Context()
        if semantic_BS is None and self.encoder is not None and self.config.semantic_dim == CHANNELS:
            semantic_BS = _mean_features(self.encoder, frames_BTHW[:, -1:])
        height, width = frames_BTHW.shape[-2:]
        frames_BTHW = pad_to_stride(frames_BTHW)
        dtype = self.head.weight.dtype
        x_BDhw = self.appearance(frames_BTHW.to(dtype), context)[2]
        motion = self.to_motion(self.motion((_MOTION_GAIN * frames_BTHW.diff(dim=1)).to(dtype), context)[2])
        x_BDhw = self._joined(x_BDhw, motion, semantic_BS)
        for block, passes in zip(self.blocks, self.filters, strict=True):
            x_BDhw = passes(block(x_BDhw, context), context)
        x_BDhw = self.norm(x_BDhw)
        # bf16 has 8 bits: enough for what changes, not for the frame.
        last_B1HW = frames_BTHW[:, -1:]
        patches = F.pixel_unshuffle(last_B1HW, STRIDE).to(dtype)
        frame_B1HW = last_B1HW + F.pixel_shuffle(self.head(torch.cat([x_BDhw, patches], 1)), STRIDE)
        frame_B1HW = frame_B1HW + self.refine(frame_B1HW.to(dtype))
        described_BS = None if self.describe is None else self.describe(x_BDhw.mean((2, 3)))
        return Prediction(frame_B1HW[..., :height, :width], described_BS, semantic_BS)

    def _joined(self, frames_BDhw: Tensor, motion_BDhw: Tensor, semantic_BS: Tensor | None) -> Tensor:
        batch, _, height, width = frames_BDhw.shape
        token_B1D = self.null_token.expand(batch, -1, -1)
        if semantic_BS is not None and self.to_semantic is not None:
            token_B1D = self.to_semantic(semantic_BS.to(self.to_semantic.weight.dtype)).unsqueeze(1)
        pooled_BDhw = F.avg_pool2d(motion_BDhw, _POOL, ceil_mode=True)
        keys_BLD = torch.cat([token_B1D.to(pooled_BDhw.dtype), pooled_BDhw.flatten(2).mT], 1)
        x_BLD = frames_BDhw.permute(0, 2, 3, 1).flatten(1, 2)
        for layer in self.cross:
            x_BLD = layer(x_BLD, keys_BLD)
        x_BDhw = x_BLD.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.join(torch.cat([x_BDhw, motion_BDhw], 1))


class CrossAttention(nn.Module):
    """x + a * attention(x, keys), then x + b * FFN(x); a and b are learned and begin at zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_keys, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.project = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.ffn = DenseFFN(dim, 2 * dim)
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, x_BLD: Tensor, keys_BMD: Tensor) -> Tensor:
        """(B, L, D), (B, M, D) -> (B, L, D)."""
        q = self._split(self.query(self.norm_x(x_BLD)))
        k, v = (self._split(t) for t in self.key_value(self.norm_keys(keys_BMD)).chunk(2, dim=2))
        y_BLD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + self.gates[0] * self.project(y_BLD)
        return x_BLD + self.gates[1] * self.ffn(self.norm_ffn(x_BLD))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SparseFilter(nn.Module):
    """LayerNorm, then a shared filter plus the chosen ones of E; nothing goes around it unless `residual`."""

    def __init__(self, name: str, config: MemoryOutConfig, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        shared = OneFilter(config.dim, config.rank)
        if config.num_experts:
            losses = [BalanceLoss("balance", switch_loss, config.balance_weight)]
            router = Router(LinearScorer(config.dim, config.num_experts), TopK(config.k), losses)
            bank = SparseFilterExperts(config.num_experts, config.dim, config.rank, config.k)
            self.layer: nn.Module = MoELayer(name, router, bank, shared=shared)
        else:
            self.layer = shared

    def forward(self, x_BDhw: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        x_BhwD = x_BDhw.permute(0, 2, 3, 1)
        # The router sees normalised items, too: otherwise a few large channels choose and experts die.
        y_BhwD = F.layer_norm(x_BhwD, x_BhwD.shape[-1:])
        y_BhwD = self.layer(y_BhwD, context) if isinstance(self.layer, MoELayer) else self.layer(y_BhwD)
        return ((x_BhwD + y_BhwD) if self.residual else y_BhwD).permute(0, 3, 1, 2)


class OneFilter(nn.Module):
    """D -> r -> SiLU -> D: the filter that every token passes."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank), nn.Linear(rank, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.up(F.silu(self.down(x)))


class FFNFilter(nn.Module):
    """A plain FFN in the place of a sparse filter: the arm that tells what the experts are worth."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.ffn = DenseFFN(dim, hidden)

    def forward(self, x_BDhw: Tensor, context: Context) -> Tensor:
        """Same shape out."""
        x_BhwD = x_BDhw.permute(0, 2, 3, 1)
        return self.ffn(F.layer_norm(x_BhwD, x_BhwD.shape[-1:])).permute(0, 3, 1, 2)


class NoFilter(nn.Module):
    """Lets everything pass."""

    def forward(self, x_BDhw: Tensor, context: Context) -> Tensor:
        """The same tensor."""
        return x_BDhw


@torch.no_grad()
def _mean_features(encoder: AppearanceEncoder, frame_B1HW: Tensor) -> Tensor:
    """What the encoder sees in the mean over the frame, at the scale it looks at, normalised: (B, CHANNELS)."""
    scale = LOOK_PX / WORKING_PX
    size = [max(1, round(n * scale / STRIDE)) * STRIDE for n in frame_B1HW.shape[-2:]]
    features_BChw = encoder(F.interpolate(frame_B1HW, size, mode="bilinear", align_corners=False))
    return F.layer_norm(features_BChw.mean((2, 3)), features_BChw.shape[1:2])


def _small(channels: int, width: int) -> BackboneConfig:
    return BackboneConfig(channels, width, (1, 1), 0)


def _filter(name: str, config: MemoryOutConfig) -> nn.Module:
    if config.filter == "none":
        return NoFilter()
    if config.filter == "ffn":
        return FFNFilter(config.dim, config.rank * (config.k + 1))
    return SparseFilter(name, config, residual=config.filter == "sparse-residual")
