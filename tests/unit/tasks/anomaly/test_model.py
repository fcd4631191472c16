"""MemoryOutNet: sizes, the start, gradients, filters without a way around them, routing, the scene's description."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moevision.moe import Context
from moevision.tasks.anomaly import losses
from moevision.tasks.anomaly.appearance import CHANNELS
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutConfig, MemoryOutNet

FILTERS = ["sparse", "sparse-residual", "ffn", "none"]
ARMS = [*({"filter": name} for name in FILTERS), {"num_experts": 0}, {"num_experts": 0, "filter": "sparse-residual"}]


def new_network(seed=0, **changes):
    torch.manual_seed(seed)
    return MemoryOutNet(replace(PRESETS["test"](), **changes)).eval()


def network(seed=0, **changes):
    """One in which everything takes part: what begins at zero is drawn."""
    net = new_network(seed, **changes)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return net


def frames(batch=2, height=24, width=32, seed=0):
    return torch.rand(batch, FRAMES, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


DESCRIBING = network(semantic_dim=3)


def test_the_presets_survive_the_weights_header():
    for name, preset in PRESETS.items():
        config = preset()
        assert MemoryOutConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config, name
    changed = replace(PRESETS["test"](), filter="ffn", semantic_dim=7, balance_weight=0.5)
    assert MemoryOutConfig.from_dict(changed.to_dict()) == changed
    with pytest.raises(TypeError):
        MemoryOutConfig.from_dict({**changed.to_dict(), "unheard_of": 1})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
@torch.inference_mode()
def test_the_prediction_has_the_size_of_the_frames(batch, height, width):
    predicted, described, _ = DESCRIBING(frames(batch, height, width))
    assert predicted.shape == (batch, 1, height, width)
    assert described.shape == (batch, 3)
    assert predicted.isfinite().all()


@pytest.mark.parametrize("arm", ARMS, ids=str)
@torch.inference_mode()
def test_a_new_network_predicts_the_last_frame_exactly(arm):
    seen = frames(2, 21, 30)
    assert torch.equal(new_network(**arm)(seen).frame_B1HW, seen[:, -1:])


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_every_parameter_gets_a_gradient(arm):
    net = network(**arm).train()
    for seed in range(4):  # every expert has its turn
        context = Context()
        loss = net(frames(4, 32, 32, seed), context).frame_B1HW.square().mean() + context.auxiliary_loss()
        loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_new_network_learns_everywhere_within_a_few_steps():
    net = new_network().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for seed in range(4):
        optimizer.zero_grad()
        (net(frames(4, 32, 32, seed)).frame_B1HW - frames(4, 32, 32, seed + 1)[:, :1]).square().mean().backward()
        optimizer.step()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_the_description_of_the_scene_learns_through_both_ends():
    net = network(semantic_dim=3).train()
    given_BS = torch.randn(2, 3)
    predicted = net(frames(), None, given_BS)
    (predicted.frame_B1HW.square().mean() + losses.semantic_loss(predicted.described_BS, given_BS)).backward()
    assert net.to_semantic.weight.grad.any()
    assert all(p.grad.any() for p in net.describe.parameters())
    assert net.null_token.grad is None or not net.null_token.grad.any()  # it was not asked


def test_the_encoder_never_gets_gradients_and_a_test_network_has_none():
    assert not any(name.startswith("encoder") for name in new_network().state_dict())
    net = network(encoder=True).train()
    net(frames()).frame_B1HW.square().mean().backward()
    assert sum(p.numel() for p in net.encoder.parameters()) > 50_000
    assert not any(p.requires_grad or p.grad is not None for p in net.encoder.parameters())
    assert all(p.requires_grad for name, p in net.named_parameters() if not name.startswith("encoder."))


@torch.inference_mode()
def test_the_encoder_takes_no_part_in_the_prediction():
    net = network(encoder=True)
    before = net(frames()).frame_B1HW
    for parameter in net.encoder.parameters():
        parameter.zero_()
    assert torch.equal(net(frames()).frame_B1HW, before)


@pytest.mark.parametrize("arm", ARMS, ids=str)
@torch.inference_mode()
def test_a_clip_alone_is_predicted_as_in_a_batch(arm):
    net, seen = network(**arm), frames(3, 24, 40)
    torch.testing.assert_close(net(seen).frame_B1HW[1:2], net(seen[1:2]).frame_B1HW, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arm", ARMS, ids=str)
@torch.inference_mode()
def test_the_same_frames_are_predicted_bit_for_bit_the_same(arm):
    net, seen = network(**arm), frames(1, 48, 64)
    assert torch.equal(net(seen).frame_B1HW, net(seen).frame_B1HW)


@torch.inference_mode()
def test_a_description_changes_nothing_until_its_gates_open():
    net, seen, described_BS = network(semantic_dim=5), frames(), torch.randn(2, 5)
    gates = [layer.gates for layer in net.cross]
    opened = [gate.clone() for gate in gates]
    for gate in gates:
        gate.zero_()
    assert torch.equal(net(seen, None, described_BS).frame_B1HW, net(seen).frame_B1HW)
    for gate, value in zip(gates, opened, strict=True):
        gate.copy_(value)
    assert not torch.equal(net(seen, None, described_BS).frame_B1HW, net(seen).frame_B1HW)
    assert not torch.equal(net(seen, None, described_BS).frame_B1HW, net(seen, None, -described_BS).frame_B1HW)


@torch.inference_mode()
def test_the_null_token_stands_in_for_a_description_and_only_for_that():
    net, seen, described_BS = network(semantic_dim=5), frames(), torch.randn(2, 5)
    without, given_one = net(seen).frame_B1HW, net(seen, None, described_BS).frame_B1HW
    net.null_token.normal_()
    assert not torch.equal(net(seen).frame_B1HW, without)
    assert torch.equal(net(seen, None, described_BS).frame_B1HW, given_one)


@torch.inference_mode()
def test_a_network_that_knows_no_descriptions_has_the_null_token_alone():
    net, seen = network(), frames()
    assert torch.equal(net(seen, None, torch.randn(2, 5)).frame_B1HW, net(seen).frame_B1HW)
    assert net(seen).described_BS is None


@torch.inference_mode()
def test_without_a_given_description_the_encoders_is_taken_and_is_that_of_the_last_frame():
    net, seen = network(semantic_dim=CHANNELS, encoder=True), frames(height=48, width=64)
    taken_BS = net(seen).semantic_BS
    assert taken_BS.shape == (2, CHANNELS)
    assert torch.equal(net(seen).frame_B1HW, net(seen, None, taken_BS).frame_B1HW)
    earlier = seen.clone()
    earlier[:, :-1] = 0
    assert torch.equal(net(earlier).semantic_BS, taken_BS)
    assert not torch.equal(net(seen.roll(1, 1)).semantic_BS, taken_BS)


def closed(**changes):
    """A network whose filters let nothing pass."""
    net = network(**changes)
    with torch.no_grad():
        for parameter in net.filters.parameters():
            parameter.zero_()
    return net


@pytest.mark.parametrize("num_experts", [4, 0])
@torch.inference_mode()
def test_nothing_goes_around_a_sparse_filter(num_experts):
    x, other = torch.randn(2, 1, PRESETS["test"]().dim, 3, 4)
    shut = closed(num_experts=num_experts).filters[0]
    assert torch.equal(shut(x, Context()), shut(other, Context()))
    around = closed(num_experts=num_experts, filter="sparse-residual").filters[0]
    assert torch.equal(around(x, Context()), x)


@torch.inference_mode()
def test_with_closed_filters_the_prediction_knows_the_last_frame_alone():
    seen, other = frames(seed=1), frames(seed=2)
    other[:, -1] = seen[:, -1]
    for name, same in (("sparse", True), ("sparse-residual", False)):
        net = closed(filter=name)
        assert torch.equal(net(seen).frame_B1HW, net(other).frame_B1HW) == same
    net = network()
    assert not torch.equal(net(seen).frame_B1HW, net(other).frame_B1HW)


def token_counts(passes, x_BDhw):
    context = Context()
    passes(x_BDhw, context)
    (record,) = context.records.values()
    return record.routing.counts_E, sum(record.losses.values())


@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_a_new_filter_leaves_no_expert_without_work_even_where_a_few_channels_are_large(seed):
    torch.manual_seed(seed)
    net = MemoryOutNet(replace(PRESETS["small"](), encoder=False))
    x_BDhw = torch.randn(1, net.config.dim, 16, 24)
    x_BDhw[:, :3] *= 30
    for passes in net.filters:
        counts_E, _ = token_counts(passes, x_BDhw)
        assert counts_E.sum() == net.config.k * 16 * 24
        assert counts_E.min() > 0


def test_the_load_balance_gives_idle_experts_work_again():
    passes = new_network(num_experts=8).filters[0]
    x_BDhw = torch.randn(1, 32, 8, 12) + 3 * torch.randn(1, 32, 1, 1)  # places of one scene look alike
    before_E, _ = token_counts(passes, x_BDhw)
    assert before_E.min() == 0
    optimizer = torch.optim.AdamW(passes.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        token_counts(passes, x_BDhw)[1].backward()
        optimizer.step()
    after_E, _ = token_counts(passes, x_BDhw)
    assert after_E.min() > 0
    assert after_E.max() < before_E.max()


@torch.inference_mode()
def test_the_load_balance_is_recorded_for_every_stage_and_weighted():
    light, heavy = Context(), Context()
    new_network(balance_weight=0.1)(frames(), light)
    new_network(balance_weight=0.2)(frames(), heavy)
    assert float(heavy.auxiliary_loss()) == pytest.approx(2 * float(light.auxiliary_loss()))
    assert {f"filter.{i}" for i in range(2)} <= set(light.records)
    assert float(light.auxiliary_loss()) > 0
    without = Context()
    new_network(num_experts=0)(frames(), without)
    assert without.auxiliary_loss() == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.49))
def test_the_motion_loss_is_zero_where_the_prediction_is_nearer_to_the_next_frame(seed, share):
    generator = torch.Generator().manual_seed(seed)
    last, following = torch.rand(2, 2, 1, 5, 7, generator=generator, dtype=torch.float64)
    near_next = following + share * (last - following)
    assert losses.motion_loss(near_next, following, last) == 0
    near_last = last + share * (following - last)
    assert losses.motion_loss(near_last, following, last) > 0


def test_the_losses_are_what_they_say():
    last, following = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]]])
    assert losses.prediction_loss(following, following) == 0
    assert losses.prediction_loss(last, following) == 0.25 / 4
    assert losses.motion_loss(last, following, last) == 0.25 / 4
    assert losses.motion_loss(following, following, last) == 0
    assert losses.motion_loss(last, last, last) == 0
    described = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert float(losses.semantic_loss(5 * described, described)) == pytest.approx(0, abs=1e-6)
    assert float(losses.semantic_loss(-described, described)) == pytest.approx(2)


def test_half_precision_weights_leave_the_frame_itself_exact():
    torch.manual_seed(0)
    net = MemoryOutNet(PRESETS["test"]()).eval()
    frames = torch.rand(1, FRAMES, 16, 24) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(net.bfloat16()(frames).frame_B1HW, frames[:, -1:])  # new networks predict the last frame
