"""FusionNet: one grey picture from a visible and an infrared one.

After MoE-Fusion (Cao et al., ICCV 2023), made free of its size: two encoders, local experts for what stands out and
for the rest, global experts as decoders, and gates that choose experts per picture pair.

    fused = w * visible + (1 - w) * infrared + r

w is the visible weight of every pixel, so the range of the sources is kept and it can be shown who contributed what; r,
the residual, is bounded. w follows the difference of the two images with a sharpness that the network sets, because the
brighter of the two is most often the one to keep (the "maximum" rule no published network beats at everything).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.backbone.blocks import GatedConvBlock
from moevision.backbone.config import MoEConfig
from moevision.moe import Context, ConvExperts, Routing
from moevision.tasks.fusion.gate import LIGHT_FEATURES, PictureGate, light_of

RESIDUAL_BOUND = 0.25
_SHARPNESS = 8.0  # of the weight, per unit of brightness, before anything is learned
_LIGHT_MEAN, _LIGHT_DEVIATION = 0.3, 0.25  # of the features of `light_of`, roughly
_REGIONS = 2  # what stands out, and the rest


@dataclass(frozen=True)
class FusionConfig:
    """Sizes and switches.

    Attributes:
        backbone: of either encoder; one channel in.
        visible_experts, infrared_experts: local experts that see one modality only.
        shared_experts: local experts that see both (MoIIE); 0 as in MoE-Fusion.
        local_k: local experts a picture gets for each region.
        global_experts, global_k: decoder experts.
        combine: "linear" sums what the chosen global experts give by their weights; "lse" takes the log of the sum of
            exponentials, as MoE-Fusion's code does.
        balance_weight: weight of the importance and load losses.
    """

    backbone: BackboneConfig
    visible_experts: int = 2
    infrared_experts: int = 2
    shared_experts: int = 2
    local_k: int = 2
    global_experts: int = 4
    global_k: int = 2
    combine: Literal["linear", "lse"] = "linear"
    balance_weight: float = 0.003

    @property
    def local_experts(self) -> int:
        """Of one region."""
        return self.visible_experts + self.infrared_experts + self.shared_experts

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "FusionConfig":
        """Inverse of `to_dict`. Raises TypeError for unknown fields."""
        return FusionConfig(**{**fields, "backbone": BackboneConfig.from_dict(fields["backbone"])})


def fusion_backbone(width: int, heads: int = 4) -> BackboneConfig:
    """The encoders' backbone: few attention blocks, for fusion is mostly local."""
    moe = MoEConfig(num_experts=8, k=2)
    return BackboneConfig(1, width, (1, 1), 1, heads=heads, moe=moe)


PRESETS = {
    "test": lambda: FusionConfig(fusion_backbone(8, heads=2)),
    "small": lambda: FusionConfig(fusion_backbone(20)),
}


class Fusion(NamedTuple):
    """What the network says about a pair.

    Attributes:
        fused_B1HW: of the pictures' size, in float32, not clamped.
        weight_B1HW: the visible weight, 0 to 1.
        salience_B1hw: logits, at stride 4 of the padded picture, of where something stands out.
    """

    fused_B1HW: Tensor
    weight_B1HW: Tensor
    salience_B1hw: Tensor


class FusionNet(nn.Module):
    """A visible and an infrared picture in, the fused one and who contributed where out."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        c2, c4, c8 = config.backbone.stage_channels
        self.visible = MoEBackbone(config.backbone, "visible.")
        self.infrared = MoEBackbone(config.backbone, "infrared.")
        self.salience = nn.Sequential(nn.Conv2d(2 * c4, c4, 3, padding=1), nn.ReLU(), nn.Conv2d(c4, 1, 1))
        features = 4 * c8 + LIGHT_FEATURES
        gate = config.local_experts, config.local_k, config.balance_weight
        self.local_gates = nn.ModuleList(PictureGate(f"local.{i}", features, *gate) for i in range(_REGIONS))
        self.local_experts = ConvExperts(_REGIONS * config.local_experts, c4, 2 * c4, c4)
        self.merge4, self.merge2 = nn.Conv2d((2 + _REGIONS) * c4, c4, 1), nn.Conv2d(2 * c2, c2, 1)
        self.up4, self.up2 = nn.Conv2d(2 * c8, 4 * c4, 1), nn.Conv2d(c4, 4 * c2, 1)
        self.decoder4, self.decoder2 = GatedConvBlock("decoder4", c4), GatedConvBlock("decoder2", c2)
        self.global_gate = PictureGate(
            "global", features, config.global_experts, config.global_k, 2 * config.balance_weight
        )
        self.global_experts = ConvExperts(config.global_experts, c2, 3 * c2, 4 * 3)
        nn.init.zeros_(self.global_experts.w2)
        nn.init.zeros_(self.global_experts.b2)

    def forward(self, visible_B1HW: Tensor, infrared_B1HW: Tensor, context: Context | None = None) -> Fusion:
        """Fuse.

        Args:
            visible_B1HW: grey or luma in [0, 1], any H, W >= 1, in float32 also where the weights are not.
            infrared_B1HW: of the same size.
            context: receives routing, losses and statistics; frozen statistics in it are used as they are.
        """
        context = context if context is not None else Context()
        dtype = self.merge4.weight.dtype
        v2, v4, v8 = self.visible(visible_B1HW.to(dtype), context)
        i2, i4, i8 = self.infrared(infrared_B1HW.to(dtype), context)
        features_BF = context.statistic("pooled", lambda: _pooled(visible_B1HW, infrared_B1HW, v8, i8))
        salience_B1hw = self.salience(torch.cat([v4, i4], 1))
        local = self._local(v4, i4, salience_B1hw.detach().sigmoid(), features_BF, context)
        x = self.merge4(torch.cat([v4, i4, *local], 1)) + F.pixel_shuffle(self.up4(torch.cat([v8, i8], 1)), 2)
        x = self.decoder4(x, context)
        x = self.merge2(torch.cat([v2, i2], 1)) + F.pixel_shuffle(self.up2(x), 2)
        x = self.decoder2(x, context)
        decided_B3HW = F.pixel_shuffle(self._decide(x, self.global_gate(features_BF, context)), 2)
        height, width = visible_B1HW.shape[-2:]
        return _mix(visible_B1HW, infrared_B1HW, decided_B3HW[..., :height, :width], salience_B1hw)

    def _local(
        self, v4: Tensor, i4: Tensor, salience_B1hw: Tensor, features_BF: Tensor, context: Context
    ) -> list[Tensor]:
        """Of both regions what the chosen experts make of the modalities they may see: (B, C, h, w) each."""
        sources, experts, weights = [], [], []
        for region, gate in enumerate(self.local_gates):
            mask_B1hw = 1 - salience_B1hw if region else salience_B1hw
            routing = gate(features_BF, context)
            for features_BChw, index_BK in zip((v4, i4), self._seen_by_modality(routing), strict=True):
                sources.append(features_BChw * mask_B1hw)
                experts.append(torch.where(index_BK < 0, -1, index_BK + region * self.config.local_experts))
                weights.append(routing.weight_NK)
        # One window a source, picture and slot; W counts them. Most are empty: those are left out where shapes may
        # depend on values, and elsewhere give zeros.
        source_SBChw, expert_W = torch.stack(sources), torch.stack(experts).flatten()
        window_W = torch.arange(len(expert_W), device=expert_W.device)
        if not torch.compiler.is_compiling():
            window_W = (expert_W >= 0).nonzero()[:, 0]
        place_W = window_W // experts[0].shape[1]  # source and picture
        x_WChw = source_SBChw.flatten(0, 1).index_select(0, place_W)
        y_WChw = self.local_experts(x_WChw, expert_W.index_select(0, window_W))
        weight_W = torch.stack(weights).flatten().index_select(0, window_W).to(y_WChw.dtype)
        sum_SBChw = torch.zeros_like(source_SBChw)
        sum_SBChw.flatten(0, 1).index_add_(0, place_W, y_WChw * weight_W[:, None, None, None])
        return list(sum_SBChw.unflatten(0, (_REGIONS, -1)).sum(1).unbind(0))

    def _seen_by_modality(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """The chosen experts (B, K) for visible and for infrared features, -1 where an expert does not see them."""
        visible, infrared = self.config.visible_experts, self.config.infrared_experts
        index_BK = routing.index_NK
        of_visible = index_BK < visible
        of_infrared = ~of_visible & (index_BK < visible + infrared)
        return index_BK.masked_fill(of_infrared, -1), index_BK.masked_fill(of_visible, -1)

    def _decide(self, x: Tensor, routing: Routing) -> Tensor:
        slots = routing.index_NK.shape[1]
        y_KBOhw = self.global_experts(torch.cat([x] * slots), routing.index_NK.T.reshape(-1)).unflatten(0, (slots, -1))
        weight_KB111 = routing.weight_NK.T[..., None, None, None].to(y_KBOhw.dtype)
        if self.config.combine == "lse":
            return torch.logsumexp(y_KBOhw + weight_KB111.clamp_min(1e-6).log(), 0)
        return (weight_KB111 * y_KBOhw).sum(0)


def _pooled(visible_B1HW: Tensor, infrared_B1HW: Tensor, v8: Tensor, i8: Tensor) -> Tensor:
    """Mean and maximum of both encoders' features, and the light, of unit variance: (B, 4 C + LIGHT_FEATURES)."""
    pooled = torch.cat([f(x) for x in (v8, i8) for f in (lambda x: x.mean((2, 3)), lambda x: x.amax((2, 3)))], 1)
    light = (light_of(visible_B1HW, infrared_B1HW) - _LIGHT_MEAN) / _LIGHT_DEVIATION
    return torch.cat([F.layer_norm(pooled, pooled.shape[1:]), light.to(v8.dtype)], 1)


def _mix(visible_B1HW: Tensor, infrared_B1HW: Tensor, decided_B3HW: Tensor, salience_B1hw: Tensor) -> Fusion:
    # bf16 has 8 bits: enough for weights and residual, not for the picture.
    preference, sharpness, residual = decided_B3HW.to(visible_B1HW.dtype).chunk(3, dim=1)
    difference_B1HW = visible_B1HW - infrared_B1HW
    weight_B1HW = torch.sigmoid(4 * preference + _SHARPNESS * (1 + sharpness) * difference_B1HW)
    residual = RESIDUAL_BOUND * torch.tanh(residual / RESIDUAL_BOUND)
    return Fusion(infrared_B1HW + weight_B1HW * difference_B1HW + residual, weight_B1HW, salience_B1hw)
