"""SegmentationNet: a picture in, one logit a class and pixel out.

picture -> MoEBackbone (pyramid at strides 2, 4, 8; attention with MoE FFNs at 16)
               16 ----> + up ----> + up ----> logits at stride 4 ----> bilinear to the picture
                        8          4
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.backbone.blocks import ChannelNorm
from moevision.backbone.config import MoEConfig
from moevision.backbone.inverted import norm
from moevision.moe import Context, MoELayer, TopK

STRIDE = 4  # of the logits


@dataclass(frozen=True)
class SegmentationConfig:
    """Sizes and classes.

    Attributes:
        backbone: with the inverted pyramid, strides 2 to 16.
        classes: their names; a pixel's id is the place in this list.
        palette: a colour (red, green, blue; 0 to 255) for each class.
        decoder_channels: at strides 16 and 8; half of them at 4.
    """

    backbone: BackboneConfig
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    decoder_channels: int = 96

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "SegmentationConfig":
        """Inverse of `to_dict`. Raises TypeError for unknown fields."""
        palette = tuple((int(r), int(g), int(b)) for r, g, b in fields["palette"])
        backbone = BackboneConfig.from_dict(fields["backbone"])
        return SegmentationConfig(
            **{**fields, "backbone": backbone, "classes": tuple(fields["classes"]), "palette": palette}
        )


def segmentation_backbone(
    width: int = 32, blocks: int = 4, heads: int = 4, experts: int = 8, k: int = 4, hidden_ratio: float = 1.0
) -> BackboneConfig:
    """Of k FFNs of E with H = hidden_ratio * D; with experts = 0 the dense control of equal work, one FFN of k * H."""
    if experts:
        moe = MoEConfig("ffn", experts, k, hidden_ratio, "linear")
    else:
        moe = MoEConfig("dense", hidden_ratio=k * hidden_ratio)
    return BackboneConfig(3, width, attention_blocks=blocks, conv="inverted", mixer="attention", heads=heads, moe=moe)


PRESETS = {
    "test": lambda: segmentation_backbone(4, 1, 2, 4, 2),
    "small": segmentation_backbone,
    "small-dense": lambda: segmentation_backbone(experts=0),
}


class SegmentationNet(nn.Module):
    """A backbone and a light decoder of sums and separable convolutions."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        _, c4, c8, c16 = config.backbone.stage_channels
        wide, narrow = config.decoder_channels, config.decoder_channels // 2
        self.backbone = MoEBackbone(config.backbone)
        self.norm16 = ChannelNorm(c16)
        self.enter16 = nn.Conv2d(c16, wide, 1)
        self.skip8, self.skip4 = nn.Conv2d(c8, wide, 1), nn.Conv2d(c4, narrow, 1)
        self.mix8, self.mix4 = SeparableConv(wide, narrow), SeparableConv(narrow, narrow)
        self.classify = nn.Conv2d(narrow, len(config.classes), 1)
        self.classify16 = nn.Conv2d(wide, len(config.classes), 1)  # while it learns

    @property
    def tile_multiple_px(self) -> int:
        """The coarsest stride; see `checkpoint.SizeRequirement`."""
        return self.config.backbone.strides[-1]

    def forward(self, x_BCHW: Tensor, context: Context | None = None) -> Tensor:
        """Logits of the picture's size.

        Args:
            x_BCHW: RGB in [0, 1], any H, W >= 1.
            context: receives routing and losses.

        Returns:
            (B, classes, H, W).
        """
        height, width = x_BCHW.shape[-2:]
        logits_BKhw, _ = self.logits(x_BCHW, context)
        return enlarged(logits_BKhw, STRIDE)[..., :height, :width]

    def logits(self, x_BCHW: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Logits at strides 4 and 16 of the picture padded to a multiple of 16; the latter help learning only."""
        _, x4, x8, x16 = self.backbone(x_BCHW, context)
        y = self.enter16(self.norm16(x16))
        coarse_BKhw = self.classify16(y)
        y = self.mix8(F.relu(self.skip8(x8) + enlarged(y, 2)))
        y = self.mix4(F.relu(self.skip4(x4) + enlarged(y, 2)))
        return self.classify(y), coarse_BKhw


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.pointwise_norm = norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        return F.relu(self.pointwise_norm(self.pointwise(self.depthwise(x))))


def enlarged(x_BCHW: Tensor, factor: int) -> Tensor:
    """Bilinear, to a multiple of the size."""
    return F.interpolate(x_BCHW, scale_factor=factor, mode="bilinear", align_corners=False)


def set_active_experts(net: nn.Module, k: int) -> None:
    """Let every item use k experts from now on, fewer or more than the weights were made with; 1 <= k <= E.

    Raises ValueError for a k that is none of these, or a network without experts.
    """
    layers = [module for module in net.modules() if isinstance(module, MoELayer)]
    if not layers:
        raise ValueError("a network without experts")
    for layer in layers:
        if not 1 <= k <= layer.experts.num_experts:
            raise ValueError(f"{k} of {layer.experts.num_experts} experts")
        layer.router.selector = TopK(k)
