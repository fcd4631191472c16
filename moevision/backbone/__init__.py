"""The shared convolutional / attention Mixture-of-Experts backbone of every task."""

from moevision.backbone.backbone import MoEBackbone
from moevision.backbone.config import BackboneConfig, MoEConfig

__all__ = ["BackboneConfig", "MoEBackbone", "MoEConfig"]
