"""RestorationNet: the shared backbone, a symmetric decoder, and a head that says how to correct each pixel.

The output is x + gain * (x - 1) + bias - the sum of share_k * top_hat_k(x). Haze removal multiplies contrast by 1 / t,
which an additive residual cannot express without copying the picture through the network; with the gain the network
only has to predict smooth maps. Contrast is stretched about white, as in AOD-Net (Li et al., ICCV 2017), because
airlight is nearly white: stretched about black, gain and bias would have to cancel to a few per cent. The shares do for
streaks and flakes what the gain does for haze (`tophat.py`).

The head has one kernel per weather, so that what one weather needs does not harm another, and a weather is taken away
as strongly as it was detected. An untrained head changes nothing, which is how training starts. Gain and bias of haze
and drops follow the picture's edges (`guided.py`); streaks and flakes have outlines of their own.

Drops are found before they are taken away, after the attention map of "Attentive GAN for raindrop removal" (Qian et
al., CVPR 2018): halfway through the decoder the network says how much of the scene they hide, trained on the truth the
synthesis knows, and the rest of the decoder is told. To find the drops is what is hard to learn
(benchmarks/drops_known.py).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.backbone.backbone import pad_to_stride
from moevision.backbone.blocks import GatedConvBlock
from moevision.backbone.config import MoEConfig, backbone_base, backbone_small, backbone_test, backbone_tiny
from moevision.backbone.rows import by_rows
from moevision.moe import Context, Window
from moevision.tasks.restoration.conditional import ConditionalConv, Kernels
from moevision.tasks.restoration.guided import along_lines, fit_lines
from moevision.tasks.restoration.scene import SCENE_CHANNELS, SceneBranch
from moevision.tasks.restoration.tone import ToneBranch, tone_statistics
from moevision.tasks.restoration.tophat import WINDOWS_PX, top_hats
from moevision.tasks.restoration.weathers import WEATHERS

# Weathers whose gain and bias follow the picture's edges: pixels a cell and cells a radius of the guided filter.
SMOOTHED = {"haze": (4, 4), "drops": (2, 2)}


@dataclass(frozen=True)
class RestorationConfig:
    """Backbone, decoder blocks at strides 4 and 2, and the backbone of the scene branch (None = no branch)."""

    backbone: BackboneConfig = field(default_factory=backbone_small)
    decoder_blocks: tuple[int, int] = (1, 1)
    scene: BackboneConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "RestorationConfig":
        """Inverse of `to_dict`. Raises TypeError or KeyError for unknown or missing fields."""
        scene = None if fields["scene"] is None else BackboneConfig.from_dict(fields["scene"])
        return RestorationConfig(BackboneConfig.from_dict(fields["backbone"]), tuple(fields["decoder_blocks"]), scene)

    def with_moe(self, moe: MoEConfig) -> "RestorationConfig":
        """The same network with another feed-forward part; the scene branch keeps its own number of experts."""
        scene = self.scene
        if scene is not None:
            scene = replace(scene, moe=replace(moe, num_experts=scene.moe.num_experts, k=scene.moe.k))
        return replace(self, backbone=replace(self.backbone, moe=moe), scene=scene)


def scene_backbone(width: int = 16, attention_blocks: int = 3, num_experts: int = 8, k: int = 2) -> BackboneConfig:
    """The scene branch's backbone: ordinary attention, since a thumbnail has at most 256 positions at stride 8."""
    moe = MoEConfig(num_experts=num_experts, k=k)
    return BackboneConfig(SCENE_CHANNELS, width, (1, 1), attention_blocks, "attention", moe=moe)


PRESETS = {
    "test": lambda: RestorationConfig(backbone_test(), scene=scene_backbone(8, 1, 4)),
    "tiny": lambda: RestorationConfig(backbone_tiny(), scene=scene_backbone(12, 2)),
    "small": lambda: RestorationConfig(backbone_small(), (2, 1), scene_backbone()),
    "base": lambda: RestorationConfig(backbone_base(), (2, 2), scene_backbone(24)),
}


class Restoration(NamedTuple):
    """What the network says about a picture.

    Attributes:
        restored_BCHW: of the input's shape and float type, not clamped.
        weather_BW: logits (B, 4) in the order of WEATHERS.
        opacity_B1hw: logits of how much of the scene drops hide, at stride 2 of the picture padded to a multiple of 8.
    """

    restored_BCHW: Tensor
    weather_BW: Tensor
    opacity_B1hw: Tensor


class RestorationNet(nn.Module):
    """Degraded picture in, restored picture, detected weather and places of drops out."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MoEBackbone(config.backbone)
        c2, c4, c8 = config.backbone.stage_channels
        self.up4 = nn.Conv2d(c8, 4 * c4, 1)
        self.decoder4 = nn.ModuleList(GatedConvBlock(f"decoder4.{i}", c4) for i in range(config.decoder_blocks[0]))
        self.up2 = nn.Conv2d(c4, 4 * c2, 1)
        self.decoder2 = nn.ModuleList(GatedConvBlock(f"decoder2.{i}", c2) for i in range(config.decoder_blocks[1]))
        self.head = ConditionalConv(len(WEATHERS), c2, 4 * (2 * config.backbone.in_channels + len(WINDOWS_PX)))
        self.weather = nn.Linear(c8, len(WEATHERS))
        self.condition4, self.condition2 = (nn.Linear(len(WEATHERS), c, bias=False) for c in (c4, c2))
        self.scene = SceneBranch(config.scene, c8) if config.scene is not None else None
        self.tone = ToneBranch(config.backbone.in_channels, c8, len(WEATHERS))
        self.enter_hats = nn.Conv2d(4 * len(WINDOWS_PX), c2, 1, bias=False)
        nn.init.zeros_(self.enter_hats.weight)
        self.locate_drops = nn.Conv2d(c4, 4, 1)
        self.enter_drops = nn.Conv2d(1, c2, 1, bias=False)
        nn.init.zeros_(self.enter_drops.weight)

    def forward(self, x_BCHW: Tensor, context: Context | None = None, weather_BW: Tensor | None = None) -> Restoration:
        """Restore.

        Args:
            x_BCHW: RGB in [0, 1], any H, W >= 1, in float32 also where the weights are not.
            context: receives routing, losses and statistics; frozen statistics in it are used as they are.
            weather_BW: (B or 1, 4) in [0, 1]: what to take away, in the order of WEATHERS; where it is NaN, or without
                it, what the network detects.
        """
        context = context if context is not None else Context()
        x_BCHW = x_BCHW.contiguous()  # plane by plane, which suits what has three channels
        hats_BCHW = top_hats(x_BCHW)
        features_BCHW = x_BCHW.to(self.head.weight.dtype)
        skip2, skip4, x8 = self.backbone(features_BCHW, context, self._scene_reader(x_BCHW, context))
        context.statistic("pooled", lambda: x8.mean((2, 3)))
        context.statistic("tone", lambda: tone_statistics(x_BCHW, hats_BCHW))
        logits_BW, tone_BWO = self.judge(context)
        weather_BW = _told_or_detected(weather_BW, logits_BW)
        x2, opacity_B1hw = self._decode(skip2, skip4, x8, hats_BCHW, weather_BW, context)
        tone_BO = torch.einsum("bw,bwo->bo", weather_BW, tone_BWO.expand(len(weather_BW), -1, -1))
        restored_BCHW = self._correct(x_BCHW, x2, hats_BCHW, weather_BW, tone_BO)
        return Restoration(restored_BCHW, logits_BW, opacity_B1hw)

    def judge(self, context: Context) -> tuple[Tensor, Tensor]:
        """From the picture-wide statistics in `context`: weather logits (B, 4), tone correction (B, 4, 2 C).

        Of any picture that went through the network with this context, or of which it holds the frozen statistics.
        """
        pooled_BC = context.statistics["pooled"]
        logits_BW, tone_BWO = self.tone(context.statistics["tone"], pooled_BC)
        return logits_BW + self.weather(pooled_BC), tone_BWO

    def _decode(
        self, skip2: Tensor, skip4: Tensor, x8: Tensor, hats_BCHW: Sequence[Tensor], weather_BW: Tensor,
        context: Context,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        def enter4(skip: Tensor, x: Tensor) -> Tensor:
            return skip + F.pixel_shuffle(self.up4(x), 2) + self.condition4(weather_BW)[..., None, None]

        def enter2(skip: Tensor, x: Tensor, hats: Tensor, opacity: Tensor) -> Tensor:
            # A 1x1 convolution of unshuffled maps is one with a stride of the maps themselves.
            skip = skip + F.conv2d(hats, F.pixel_shuffle(self.enter_hats.weight, 2), stride=2)
            skip = skip + self.enter_drops(opacity.sigmoid())
            return skip + F.pixel_shuffle(self.up2(x), 2) + self.condition2(weather_BW)[..., None, None]

        x = by_rows(enter4, [skip4, x8], strides=[2, 1], out=skip4)
        for block in self.decoder4:
            x = block(x, context)
        opacity_B1hw = F.pixel_shuffle(self.locate_drops(x), 2)
        hats_BKHW = torch.cat([hat_BCHW.mean(1, keepdim=True) for hat_BCHW in hats_BCHW], 1).to(x.dtype)
        x = by_rows(enter2, [skip2, x, pad_to_stride(hats_BKHW), opacity_B1hw], strides=[2, 1, 4, 2], out=skip2)
        for block in self.decoder2:
            x = block(x, context)
        return x, opacity_B1hw

    def _correct(
        self, x_BCHW: Tensor, x2: Tensor, hats_BCHW: Sequence[Tensor], weather_BW: Tensor, tone_BO: Tensor
    ) -> Tensor:
        """The picture, corrected by gain and bias, without the shares of its top-hats; in its float type."""
        outputs = 2 * x_BCHW.shape[1]

        def gain_bias_and_share_of(weathers: Collection[str]) -> tuple[Kernels, ...]:
            chosen_W = weather_BW.new_tensor([weather in weathers for weather in WEATHERS])
            return self.head.kernels(weather_BW * chosen_W).split((4 * outputs, 4 * len(WINDOWS_PX)))

        gain_bias, _ = gain_bias_and_share_of([weather for weather in WEATHERS if weather not in SMOOTHED])
        _, share = gain_bias_and_share_of(WEATHERS)
        fine = Kernels.side_by_side([gain_bias, share])
        smooth = Kernels.side_by_side([gain_bias_and_share_of([weather])[0].mean_of(4) for weather in SMOOTHED])
        guide_B1HW = x_BCHW.mean(1, keepdim=True)
        maps = smooth(x2).split(outputs, dim=1)
        windows = list(SMOOTHED.values())
        lines = [fit_lines(m, guide_B1HW, *window) for m, window in zip(maps, windows, strict=True)]

        def correct(x: Tensor, guide: Tensor, x2: Tensor, *rest: Tensor) -> Tensor:
            lines, hats = rest[: len(windows)], rest[len(windows) :]
            height, width = x.shape[-2:]
            fine_BOHW = F.pixel_shuffle(fine(x2).contiguous(), 2)[..., :height, :width]
            gain_bias, share = fine_BOHW.split((outputs, len(WINDOWS_PX)), dim=1)
            for line, (cell_px, _) in zip(lines, windows, strict=True):
                gain_bias = gain_bias + along_lines(line, guide, cell_px)
            # bf16 has 8 bits: enough for gain, bias and shares, not for the picture.
            gain, bias = (gain_bias + tone_BO[..., None, None]).to(x.dtype).chunk(2, dim=1)
            restored = torch.addcmul(x + bias, gain, x - 1)
            for k, hat in enumerate(hats):
                restored = torch.addcmul(restored, share[:, k : k + 1].to(x.dtype), hat, value=-1)
            return restored

        coarsest_px = max(cell_px for cell_px, _ in windows)
        strides = [coarsest_px, coarsest_px, coarsest_px // 2, *(coarsest_px // cell_px for cell_px, _ in windows)]
        maps = [x_BCHW, guide_B1HW, x2, *lines, *hats_BCHW]
        return by_rows(correct, maps, halo=1, strides=[*strides, *(coarsest_px for _ in hats_BCHW)])

    def _scene_reader(self, x_BCHW: Tensor, context: Context) -> Callable[[Tensor], Tensor] | None:
        scene = self.scene
        if scene is None:
            return None
        map_BChw = context.statistic("scene", lambda: scene.measure(x_BCHW, context))
        window = context.window or Window(0, 0, *x_BCHW.shape[-2:])
        return lambda x8_BCHW: scene.read(map_BChw, x8_BCHW, window)


def _told_or_detected(weather_BW: Tensor | None, logits_BW: Tensor) -> Tensor:
    # Detached: the detector learns to tell the weather, not to please the decoder.
    detected_BW = logits_BW.detach().sigmoid()
    if weather_BW is None:
        return detected_BW
    return torch.where(weather_BW.isnan(), detected_BW, weather_BW.to(detected_BW.dtype))
