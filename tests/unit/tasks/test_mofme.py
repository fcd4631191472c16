"""The paper-size MoFME network: sizes against published figures, every variant; and how the bench counts and times."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moevision.kernels import expert_ffn, film_ffn, plan, route
from moevision.moe import Context, Dense, MoELayer
from moevision.tasks.restoration import bench
from moevision.tasks.restoration.calibration import Probe, calibration, fit_temperature, softmax
from moevision.tasks.restoration.mofme import MoFMEConfig, MoFMENet, released_extra_parameters

SMALL = MoFMEConfig(num_experts=4, k=2, dim=24, depth=2, heads=2, head_channels=8, image_px=32)
PAPER_SHAPE = (1, 3, 240, 240)
# Counted from the public code at 240x240, E experts: parameters in M.
CONVENTIONAL = {4: 15.81, 8: 25.27, 16: 44.19, 32: 82.04, 64: 157.7, 128: 309.1}
LINEAR_WITH_STAR = {4: 11.68, 8: 14.05, 16: 18.80, 32: 28.30, 64: 47.30, 128: 85.29}
CONSTANT = {4: 8.72, 8: 8.73, 16: 8.75, 32: 8.78, 64: 8.86, 128: 9.00}


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in MoFMENet(config).parameters())


def test_dense_network_has_exactly_the_published_parameters():
    with torch.device("meta"):
        net = MoFMENet(MoFMEConfig(experts="dense"))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert sizes["head"] == 37_888
    assert sizes["expand"] == 3_153_920
    assert sizes["tail"] == 444_547
    assert sum(p.numel() for p in net.parameters()) == 8_709_379


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"experts": "ffn"}, CONVENTIONAL),
        ({"experts": "film-linear", "stem": "star"}, LINEAR_WITH_STAR),
        ({"experts": "film"}, CONSTANT),
    ],
    ids=["conventional", "linear", "const"],
)
def test_parameters_match_the_published_table(fields, expected):
    for experts, millions in expected.items():
        config = MoFMEConfig(num_experts=experts, **fields)
        ours = parameters(config)
        assert ours / 1e6 == pytest.approx(millions, rel=0.005)
        assert (ours + released_extra_parameters(config)) / 1e6 == pytest.approx(millions, rel=0.0007)


@pytest.mark.parametrize(
    ("fields", "gmacs"),
    [
        ({"experts": "dense"}, 36.49),
        ({"experts": "ffn", "dense_compute": True, "num_experts": 16}, 68.35),
        ({"experts": "ffn", "dense_compute": True, "num_experts": 128}, 306.2),
        ({"experts": "film-linear", "num_experts": 16}, 44.99),
        ({"experts": "film-linear", "num_experts": 128}, 104.5),
        ({"experts": "film", "num_experts": 16}, 36.5),
    ],
)
def test_multiply_accumulates_match_the_published_table(fields, gmacs):
    config = MoFMEConfig(scorer="linear", **fields)
    assert bench.count_macs(lambda: MoFMENet(config), PAPER_SHAPE) / 1e9 == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize("experts", ["film", "film-linear", "ffn", "dense"])
@pytest.mark.parametrize("stem", ["none", "star"])
def test_any_size_and_gradient_to_every_parameter(experts, stem):
    net = MoFMENet(replace(SMALL, experts=experts, stem=stem))
    for height, width in ((1, 1), (7, 35), (32, 32)):
        restored = net(torch.rand(2, 3, height, width))
        assert restored.shape == (2, 3, height, width)
        assert 0 <= restored.min() <= restored.max() <= 1
    restored.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("experts", ["film", "film-linear", "ffn"])
@pytest.mark.parametrize("scorer", ["linear", "exact", "repaired", "literal"])
def test_dense_compute_and_looped_baseline_agree_with_the_kernels(experts, scorer):
    torch.manual_seed(0)
    net = MoFMENet(replace(SMALL, experts=experts, scorer=scorer)).eval()
    x = torch.rand(1, 3, 24, 40)
    with torch.no_grad():
        expected = net(x)
        layers = [module for module in net.modules() if isinstance(module, MoELayer)]
        for dispatcher in [Dense()] + ([bench.LoopedDense()] if experts == "ffn" else []):
            for layer in layers:
                layer.dispatcher = dispatcher
            torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


def test_fusing_outputs_differs_from_fusing_activations_but_not_with_one_expert():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 24, 24)
    for k, equal in ((1, True), (2, False)):
        net = MoFMENet(replace(SMALL, k=k)).eval()
        other = MoFMENet(replace(SMALL, k=k, fuse="outputs")).eval()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            assert torch.allclose(net(x), other(x), atol=1e-7) == equal


def test_router_reads_the_stream_before_normalisation():
    net = MoFMENet(SMALL).eval()
    block = net.blocks[0]
    with torch.no_grad():
        block.ffn.experts.stem.norm.weight.zero_()
        block.ffn.experts.stem.norm.bias.zero_()
        context = Context()
        block(torch.randn(1, 64, SMALL.dim), context)
    probs_NE = context.records["block0.ffn"].routing.probs_NE
    assert probs_NE.std(0).max() > 1e-3


def test_position_embedding_can_be_left_out_and_is_resampled():
    torch.manual_seed(0)
    net = MoFMENet(SMALL).eval()
    unused = MoFMENet(replace(SMALL, position="unused")).eval()
    unused.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 48, 16)
    with torch.no_grad():
        assert net._position(6, 2).shape == (1, 12, SMALL.dim)
        assert not torch.allclose(net(x), unused(x), atol=1e-7)


def test_config_survives_json_and_evaluation_is_deterministic():
    config = MoFMEConfig.from_dict(json.loads(json.dumps(SMALL.to_dict())))
    assert config == SMALL
    net, x = MoFMENet(config).eval(), torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        torch.testing.assert_close(net(x)[1:], net(x[1:]), atol=1e-6, rtol=0)


def counted(function, *tensors):
    with FlopCounterMode(display=False) as counter:
        function(*tensors)
    return counter.get_total_flops()


def test_flop_formulas_count_forward_and_backward():
    n, d, h, e, k = 10, 6, 24, 5, 2
    x, w = torch.randn(n, d), torch.randn(e, d)
    assert counted(lambda: route(x, w, k, 0.0)) == 2 * n * d * e
    assert counted(lambda: route(x, w, k, 0.1)) == 4 * n * d * e
    gate, index, _, _ = route(x, w, k)
    order, offsets = plan(index, e)
    bank = [torch.randn(e, d, h), torch.randn(e, h), torch.randn(e, h, d), torch.randn(e, d)]
    ffn_flops = 4 * n * k * d * h
    assert counted(lambda: expert_ffn(x, *bank, gate, order, offsets)) == ffn_flops + 2 * n * k * d
    shared = [torch.randn(d, h, requires_grad=True), torch.randn(h), torch.randn(h, d), torch.randn(d)]
    film = [torch.randn(e, d), torch.randn(e, d)]
    assert counted(lambda: film_ffn(x, *shared, *film, gate, index)) == 4 * n * d * h + 4 * n * e * d
    assert counted(lambda: film_ffn(x, *shared, *film, gate, index, fuse="outputs")) == 2 * (k + 1) * n * d * h
    both = counted(lambda: film_ffn(x, *shared, *film, gate, index).sum().backward())
    assert both == 3 * (4 * n * d * h) + 4 * (4 * n * e * d)


def test_interleaving_runs_every_arm_in_every_round():
    calls = []
    arms = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = bench.time_interleaved(arms, 4, torch.device("cpu"))
    assert {name: len(laps) for name, laps in seconds.items()} == dict.fromkeys("abc", 4)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(lap) == ["a", "b", "c"] for lap in rounds)
    assert len({lap[0] for lap in rounds}) == 3


@pytest.mark.slow
def test_bench_returns_finite_numbers_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    result = bench.bench_mofme(threads=1, repeats=1, quick=True, device="cpu")
    assert torch.get_num_threads() == threads
    json.dumps(result, allow_nan=False)
    keys = ["params_ratio", *(f"time_ratio_{arm}" for arm in ("dense_compute_moe", "sparse_moe", "dense_ffn"))]
    for key in [*keys, *(f"small.{key}" for key in keys), "flops_share_of_matmul_peak"]:
        assert math.isfinite(result[key])
        assert result[key] > 0
    assert result["params_ratio"] == pytest.approx(0.198, abs=0.001)
    assert set(result["machine"]) >= {"threads", "torch", "cpu"}


def test_calibration_measures_on_known_cases():
    sure, target = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])
    measured = calibration(sure, target)
    assert measured["accuracy"] == 0.5
    assert measured["ece"] == pytest.approx(0.5)
    assert measured["brier"] == pytest.approx(1.0)
    even = calibration(np.full((2, 2), 0.5), target)
    assert even["ece"] == pytest.approx(0.0)
    assert even["nll"] == pytest.approx(math.log(2))


def test_temperature_is_recovered_and_probe_separates():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4))
    target = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    assert fit_temperature(3 * logits, target) == pytest.approx(3, rel=0.15)
    features = np.eye(3)[rng.integers(3, size=200)] + 0.05 * rng.normal(size=(200, 3))
    label = features.argmax(1)
    assert calibration(Probe(features, label, 3)(features), label)["accuracy"] == 1.0
