"""MoEBackbone: any size, every configuration, image-level statistics that can be frozen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.backbone import BackboneConfig, MoEBackbone, MoEConfig
from moevision.backbone.backbone import pad_to_stride
from moevision.backbone.blocks import ChannelNorm, TransposedAttention
from moevision.backbone.config import backbone_base, backbone_small, backbone_test, backbone_tiny
from moevision.moe import Context


def backbone(**changes):
    torch.manual_seed(0)
    return MoEBackbone(BackboneConfig(**{"width": 8, "attention_blocks": 1, "heads": 2, **changes})).eval()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40))
def test_any_size_gives_features_at_strides_2_4_and_8_of_the_padded_picture(height, width):
    net = MoEBackbone(backbone_test()).eval()
    features = net(torch.rand(1, 3, height, width))
    padded = [-(-side // 8) * 8 for side in (height, width)]
    assert [tuple(f.shape) for f in features] == [
        (1, channels, padded[0] // stride, padded[1] // stride)
        for channels, stride in zip(net.config.stage_channels, (2, 4, 8), strict=True)
    ]


def test_the_stem_is_a_convolution_of_the_unshuffled_picture():
    net, x = backbone(conv_blocks=(0, 0)), torch.rand(2, 3, 16, 24)
    expected = net.stem(torch.nn.functional.pixel_unshuffle(x, 2))
    torch.testing.assert_close(net(x)[0], expected)


@pytest.mark.parametrize("mixer", ["transposed", "attention"])
@pytest.mark.parametrize(
    "moe",
    [
        MoEConfig(experts="film", num_experts=4, k=2),
        MoEConfig(experts="film", num_experts=4, k=2, site="hidden", fuse="outputs"),
        MoEConfig(experts="film-linear", num_experts=4, k=2, scorer="literal"),
        MoEConfig(experts="ffn", num_experts=4, k=2, scorer="repaired"),
        MoEConfig(experts="ffn", num_experts=4, k=0, scorer="linear", dense_compute=True),
        MoEConfig(experts="dense"),
    ],
)
def test_every_configuration_runs_trains_and_survives_a_round_trip_through_json(mixer, moe):
    config = BackboneConfig(width=8, attention_blocks=1, heads=2, mixer=mixer, moe=moe)
    assert BackboneConfig.from_dict(config.to_dict()) == config
    net = MoEBackbone(config)
    net(torch.rand(2, 3, 16, 24))[-1].square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_a_picture_alone_gives_the_same_features_as_in_a_batch():
    net, x = backbone(), torch.rand(3, 3, 24, 16)
    for together, alone in zip(net(x), net(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_frozen_statistics_make_a_crop_independent_of_what_it_shows():
    net, x = backbone(), torch.rand(1, 3, 64, 64)
    measured = Context()
    whole = net(x, measured)[0]
    # Far from its borders, a crop with the whole picture's statistics must equal the whole picture.
    crop = net(x[..., :48, :48], Context(frozen_statistics=measured.statistics))[0]
    torch.testing.assert_close(crop[..., :8, :8], whole[..., :8, :8], atol=1e-5, rtol=1e-5)
    own = net(x[..., :48, :48])[0]
    assert (own[..., :8, :8] - whole[..., :8, :8]).abs().max() > 1e-4


def test_the_first_stage_needs_no_copy_for_channels_last_pictures():
    norm = ChannelNorm(4)
    x = torch.rand(1, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


def test_transposed_attention_equals_its_formula():
    torch.manual_seed(0)
    attention, x = TransposedAttention("a", 4, 2), torch.rand(1, 4, 3, 5)
    q, k, v = (t.reshape(1, 2, 2, 15) for t in attention.depthwise(attention.qkv(x)).chunk(3, dim=1))
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    weights = (q @ k.transpose(-2, -1) * attention.temperature).softmax(-1)
    expected = attention.project((weights @ v).reshape(1, 4, 3, 5))
    torch.testing.assert_close(attention(x, Context()), expected, atol=1e-6, rtol=1e-5)


def test_records_are_kept_per_layer_and_counts_cover_every_pixel_slot():
    net = MoEBackbone(backbone_test())
    context = Context()
    net(torch.rand(2, 3, 16, 16), context)
    (record,) = context.records.values()
    assert record.routing.counts_E.sum() == 2 * 2 * 2 * net.config.moe.k
    assert float(torch.as_tensor(context.auxiliary_loss()).detach()) > 0


def test_padding_repeats_the_edge_and_leaves_full_multiples_alone():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_to_stride(x, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert padded[0, 0, 3].tolist() == [3.0, 4.0, 5.0, 5.0]
    assert pad_to_stride(padded, 4).shape == padded.shape


@pytest.mark.parametrize(("build", "millions"), [(backbone_tiny, 0.3), (backbone_small, 0.7), (backbone_base, 1.2)])
def test_named_sizes_stay_small(build, millions):
    assert sum(p.numel() for p in MoEBackbone(build()).parameters()) < millions * 1e6
