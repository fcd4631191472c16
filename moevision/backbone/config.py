"""Configurations: frozen dataclasses, and functions that return the named variants."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from moevision.backbone.inverted import PYRAMID_CHANNELS, PYRAMID_STRIDES

ExpertKind = Literal["film", "film-linear", "ffn", "dense"]
ScorerKind = Literal["linear", "exact", "repaired", "literal"]
MixerKind = Literal["transposed", "attention"]
ConvKind = Literal["gated", "inverted"]


@dataclass(frozen=True)
class MoEConfig:
    """The feed-forward part of an attention block.

    Attributes:
        experts: "film" (MoFME, one shared FFN), "film-linear" (its released code), "ffn" (conventional MoE), "dense"
            (one FFN, no router).
        num_experts, k: E and how many an item uses; k = 0 mixes all of them.
        hidden_ratio: H / D.
        scorer: "linear", or the uncertainty-aware router: "exact" moments, "repaired" or "literal" sampling.
        dropout: the router dropout rate whose moments the uncertainty-aware scorers use.
        site, fuse: see `FiLMExperts`.
        dense_compute: run every expert on every item (the baseline of the MoFME paper) instead of only the chosen ones.
        balance_weight: weight of the Switch balance loss.
    """

    experts: ExpertKind = "film"
    num_experts: int = 16
    k: int = 4
    hidden_ratio: float = 4.0
    scorer: ScorerKind = "exact"
    dropout: float = 0.1
    site: Literal["input", "hidden"] = "input"
    fuse: Literal["activations", "outputs"] = "activations"
    dense_compute: bool = False
    balance_weight: float = 0.01


@dataclass(frozen=True)
class BackboneConfig:
    """Stem, convolutional stages, and one attention stage with MoE FFNs at the coarsest stride.

    Attributes:
        in_channels: channels of the input picture.
        width: channels C at stride 2; 2 C at stride 4, 4 C at the attention stage.
        conv_blocks: gated convolution blocks at strides 2 and 4.
        attention_blocks: attention + MoE blocks.
        mixer: "transposed" (attention between channels, linear cost) or "attention" (softmax between positions).
        heads: attention heads.
        moe: the feed-forward part.
        conv: "gated", gated convolution blocks at strides 2 and 4 with the attention stage at stride 8; or "inverted",
            the pyramid of `inverted` up to stride 16, whose channels are given, with the attention stage there.
    """

    in_channels: int = 3
    width: int = 24
    conv_blocks: tuple[int, int] = (1, 1)
    attention_blocks: int = 4
    mixer: MixerKind = "transposed"
    heads: int = 4
    moe: MoEConfig = field(default_factory=MoEConfig)
    conv: ConvKind = "gated"

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the returned features, one a stride of `strides`."""
        if self.conv == "inverted":
            return (*PYRAMID_CHANNELS[:-1], 4 * self.width)
        return self.width, 2 * self.width, 4 * self.width

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the returned features."""
        return PYRAMID_STRIDES if self.conv == "inverted" else (2, 4, 8)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the header of a weights file."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "BackboneConfig":
        """Inverse of `to_dict`. Raises TypeError for unknown fields."""
        fields = dict(fields)
        fields["conv_blocks"] = tuple(fields["conv_blocks"])
        fields["moe"] = MoEConfig(**fields["moe"])
        return BackboneConfig(**fields)


def backbone_test() -> BackboneConfig:
    """A few thousand parameters, for tests only."""
    return BackboneConfig(width=8, attention_blocks=1, heads=2, moe=MoEConfig(num_experts=4, k=2))


def backbone_tiny() -> BackboneConfig:
    """0.2 M parameters."""
    return BackboneConfig(width=16, attention_blocks=2)


def backbone_small() -> BackboneConfig:
    """0.5 M parameters: the size of the shipped restoration weights."""
    return BackboneConfig(width=24, conv_blocks=(1, 2), attention_blocks=4)


def backbone_base() -> BackboneConfig:
    """1 M parameters."""
    return BackboneConfig(width=32, conv_blocks=(2, 2), attention_blocks=4)
