"""SegmentationNet, its losses, and how many experts it uses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moevision.datasets.segmentation import IGNORE
from moevision.moe import Context
from moevision.tasks.segmentation.losses import class_weights, cross_entropy, jaccard_loss
from moevision.tasks.segmentation.model import (
    PRESETS,
    STRIDE,
    SegmentationConfig,
    SegmentationNet,
    segmentation_backbone,
    set_active_experts,
)

NAMES, PALETTE = ("road", "sky", "car"), ((128, 64, 128), (128, 128, 128), (64, 0, 128))


def network(preset="test", seed=0):
    torch.manual_seed(seed)
    return SegmentationNet(SegmentationConfig(PRESETS[preset](), NAMES, PALETTE)).eval()


NET = network()


def test_the_configuration_survives_the_weights_header():
    config = SegmentationConfig(PRESETS["small"](), NAMES, PALETTE, decoder_channels=48)
    assert SegmentationConfig.from_dict(config.to_dict()) == config
    with pytest.raises(TypeError):
        SegmentationConfig.from_dict({**config.to_dict(), "unknown": 1})


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40))
@torch.inference_mode()
def test_every_pixel_gets_a_logit_of_every_class_at_any_size(height, width):
    assert NET(torch.rand(1, 3, height, width)).shape == (1, len(NAMES), height, width)


@torch.inference_mode()
def test_logits_are_the_bilinear_enlargement_of_those_at_stride_four():
    x = torch.rand(1, 3, 30, 45)
    fine, coarse = NET.logits(x)
    assert fine.shape[-2:] == (32 // STRIDE, 48 // STRIDE)
    assert coarse.shape[-2:] == (2, 3)
    torch.testing.assert_close(NET(x), F.interpolate(fine, (32, 48), mode="bilinear")[..., :30, :45])


@torch.inference_mode()
def test_a_picture_alone_is_labelled_as_in_a_batch():
    x = torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(NET(x[1:2]), NET(x)[1:2], atol=1e-5, rtol=1e-4)


def test_everything_learns_and_the_routers_are_balanced():
    net, context = network().train(), Context()
    fine, coarse = net.logits(torch.rand(2, 3, 32, 32), context)
    (fine.square().mean() + coarse.square().mean() + context.auxiliary_loss()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_dense_control_does_the_work_of_the_chosen_experts_with_one_ffn():
    moe, dense = PRESETS["small"]().moe, PRESETS["small-dense"]().moe
    assert dense.experts == "dense"
    assert dense.hidden_ratio == moe.k * moe.hidden_ratio


@torch.inference_mode()
def test_the_number_of_active_experts_can_be_changed_and_all_weights_still_add_up_to_one():
    net, x = network(), torch.rand(1, 3, 32, 32)
    outputs = []
    for k in (1, 2, 4):
        set_active_experts(net, k)
        context = Context()
        outputs.append(net(x, context))
        (record,) = context.records.values()
        assert record.routing.index_NK.shape[1] == k
        torch.testing.assert_close(record.routing.weight_NK.sum(1), torch.ones(4))
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("k", [0, 5, -1])
def test_numbers_of_experts_that_cannot_be_are_refused(k):
    with pytest.raises(ValueError, match="of 4 experts"):
        set_active_experts(network(), k)


def test_a_network_without_experts_has_none_to_activate():
    dense = SegmentationNet(SegmentationConfig(segmentation_backbone(4, 1, 2, experts=0), NAMES, PALETTE))
    with pytest.raises(ValueError, match="without experts"):
        set_active_experts(dense, 1)


# Losses


def test_rare_classes_weigh_more_absent_ones_nothing_and_the_mean_over_pixels_is_one():
    counts = torch.tensor([900, 100, 0])
    weights = class_weights(counts)
    assert weights[1] == pytest.approx(3 * float(weights[0]), rel=1e-5)
    assert weights[2] == 0
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0, rel=1e-5)


def test_cross_entropy_is_the_weighted_mean_over_labelled_pixels():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = IGNORE
    weights = torch.tensor([0.5, 1.0, 2.0])
    logs = logits.log_softmax(1)
    expected = [
        -weights[labels[b, y, x]] * logs[b, labels[b, y, x], y, x]
        for b in range(2) for y in range(4) for x in range(5) if labels[b, y, x] != IGNORE
    ]  # fmt: skip
    torch.testing.assert_close(cross_entropy(logits, labels, weights), torch.stack(expected).mean())


def test_the_jaccard_loss_of_certain_answers_is_one_less_the_mean_iou_of_the_classes_that_occur():
    labels = torch.tensor([[[0, 0, 1, IGNORE]]])
    answers = torch.tensor([[[0, 1, 1, 2]]])  # IoU of class 0: 1 of 2, of class 1: 1 of 2; class 2 does not occur
    logits = F.one_hot(answers, 3).permute(0, 3, 1, 2) * 200.0
    torch.testing.assert_close(jaccard_loss(logits, labels), torch.tensor(0.5))
    perfect = F.one_hot(labels.clamp_max(2), 3).permute(0, 3, 1, 2) * 200.0
    torch.testing.assert_close(jaccard_loss(perfect, labels), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [lambda x, y: cross_entropy(x, y, torch.ones(3)), jaccard_loss])
def test_a_batch_without_labels_teaches_nothing_and_breaks_nothing(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss(logits, torch.full((1, 4, 4), IGNORE)).backward()
    assert torch.isfinite(logits.grad).all()
