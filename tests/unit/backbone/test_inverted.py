"""The inverted residual pyramid: sizes, folding, what is frozen; and MoEBackbone on top of it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moevision.backbone import BackboneConfig, MoEBackbone, MoEConfig
from moevision.backbone.inverted import (
    PYRAMID_CHANNELS,
    PYRAMID_STRIDES,
    InvertedPyramid,
    InvertedResidual,
    SameConv,
    fold_norms,
)
from moevision.moe import Context


def pyramid():
    """With norms that have seen something, so that folding has something to do."""
    torch.manual_seed(0)
    net = InvertedPyramid().train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(2, 3, 32, 48))
    return net.eval()


PYRAMID = pyramid()
CONFIG = BackboneConfig(
    width=8, attention_blocks=1, heads=2, mixer="attention", conv="inverted", moe=MoEConfig("ffn", 4, 2, 1.0, "linear")
)


@torch.inference_mode()
def test_features_come_at_strides_2_to_16_with_the_published_channels():
    features = PYRAMID(torch.rand(2, 3, 48, 80))
    assert [tuple(f.shape) for f in features] == [
        (2, channels, 48 // stride, 80 // stride)
        for channels, stride in zip(PYRAMID_CHANNELS, PYRAMID_STRIDES, strict=True)
    ]


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_convolution_of_stride_two_is_centred_between_its_four_middle_pixels_or_on_the_first_of_them(kernel):
    # TensorFlow's "same": of an even length one more zero is put behind than before.
    conv = SameConv(1, 1, kernel, 2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 8, 8)
    x[..., 0, 0] = 1.0
    assert conv(x)[0, 0, 0, 0] == 1
    assert conv(x).shape[-2:] == (4, 4)
    behind = torch.zeros(1, 1, 8, 8)
    behind[..., 7, 7] = 1.0
    assert conv(behind)[0, 0, 3, 3] == 1


@torch.inference_mode()
def test_folded_norms_change_nothing_but_the_number_of_layers():
    folded = fold_norms(copy.deepcopy(PYRAMID))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(folded(x), PYRAMID(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in PYRAMID.modules())  # the original is as it was


def test_a_block_adds_its_input_only_where_the_shapes_allow():
    same, wider, strided = (
        InvertedResidual(8, out, 2, 3, stride, normed=False) for out, stride in ((8, 1), (16, 1), (8, 2))
    )
    for block in (same, wider, strided):
        nn.init.zeros_(block.project.weight)
        nn.init.zeros_(block.project.bias)
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(same(x), x)
    assert not wider(x).any()
    assert not strided(x).any()


def test_what_is_frozen_gets_no_gradient_and_keeps_its_statistics_while_the_rest_learns():
    net = copy.deepcopy(PYRAMID)
    net.freeze(2)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(torch.rand(2, 3, 32, 32))[-1].square().mean().backward()
    frozen = ("stem", "stages.0.", "stages.1.")
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    changed = [name for name, t in net.state_dict().items() if not torch.equal(t, before[name])]
    assert changed
    assert not [name for name in changed if name.startswith(frozen)]
    net.freeze(0)
    net.train()
    assert all(p.requires_grad for p in net.parameters())
    assert net.stem_norm.training


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 50), st.integers(1, 50))
@torch.inference_mode()
def test_a_backbone_on_the_pyramid_takes_any_size_and_says_its_strides_and_channels(height, width):
    net = BACKBONE
    padded = [-(-side // 16) * 16 for side in (height, width)]
    features = net(torch.rand(1, 3, height, width))
    assert [tuple(f.shape) for f in features] == [
        (1, channels, padded[0] // stride, padded[1] // stride)
        for channels, stride in zip(CONFIG.stage_channels, CONFIG.strides, strict=True)
    ]


BACKBONE = MoEBackbone(CONFIG).eval()


def test_a_backbone_on_the_pyramid_trains_all_its_parameters_and_tells_its_routing():
    assert BackboneConfig.from_dict(CONFIG.to_dict()) == CONFIG
    net, context = MoEBackbone(CONFIG, "left."), Context()
    net(torch.rand(2, 3, 32, 48), context)[-1].square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert list(context.records) == ["left.stage16.0.ffn"]
    assert context.auxiliary_loss() > 0


def test_what_is_added_at_stride_8_is_refused_where_no_attention_stage_is_there():
    with pytest.raises(ValueError, match="stride 8"):
        MoEBackbone(CONFIG)(torch.rand(1, 3, 32, 32), add8=lambda x: x)
