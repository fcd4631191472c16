"""FusionNet, its gates and experts, the losses, and what surrounds them for real pairs."""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.checkpoint import ModelDescriptor
from moevision.datasets.infrared_visible import Pair, PairCrops, PairFolder, darken
from moevision.errors import InputError, UsageError
from moevision.imaging.picture import picture_from_array
from moevision.imaging.registration import corner_shift_px, read_homography, register_ecc, warp
from moevision.moe import Context
from moevision.tasks.fusion import losses
from moevision.tasks.fusion.baselines import average, pixel_max
from moevision.tasks.fusion.gate import LIGHT_FEATURES, PictureGate, light_of
from moevision.tasks.fusion.infrared import infrared_brightness, parse_range
from moevision.tasks.fusion.model import PRESETS, RESIDUAL_BOUND, FusionConfig, FusionNet
from moevision.tasks.fusion.modulation import ModalityBalance
from moevision.tasks.fusion.predict import WHOLE_PX, FusionTask, luma, recolour

ALL_LOSSES = [
    losses.intensity_loss, losses.gradient_loss, losses.artefact_loss, losses.structure_loss, losses.difference_loss,
    losses.fidelity_loss, losses.edge_loss, losses.contrast_loss,
]  # fmt: skip


def network(seed=0, **changes):
    torch.manual_seed(seed)
    config = PRESETS["test"]()
    net = FusionNet(FusionConfig(**{**config.__dict__, **changes})).eval()
    torch.nn.init.normal_(net.global_experts.w2, std=0.1)
    for gate in (*net.local_gates, net.global_gate):
        torch.nn.init.normal_(gate.router.scorer.logits.weight, std=1.0)
    return net


def task(**options):
    net = network()
    descriptor = ModelDescriptor("test", "fusion", net, net.config.to_dict(), {})
    return FusionTask(descriptor, device=torch.device("cpu"), **options)


def scene(height, width, seed=0):
    """Something with edges at all scales, float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for _ in range(25):
        centre = rng.integers(0, width), rng.integers(0, height)
        cv2.circle(image, tuple(map(int, centre)), int(rng.integers(3, 40)), float(rng.random()), -1)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
@torch.inference_mode()
def test_any_size_is_fused_into_its_own_size_between_the_sources_but_for_the_residual(batch, height, width):
    visible, infrared = torch.rand(2, batch, 1, height, width)
    fused, weight, _ = network()(visible, infrared)
    assert fused.shape == weight.shape == visible.shape
    assert weight.min() >= 0
    assert weight.max() <= 1
    mixed = weight * visible + (1 - weight) * infrared
    assert (fused - mixed).abs().max() <= RESIDUAL_BOUND + 1e-5


def test_a_new_network_prefers_the_brighter_source_and_adds_nothing():
    torch.manual_seed(0)
    net = FusionNet(PRESETS["test"]()).eval()
    visible, infrared = torch.rand(2, 1, 1, 16, 24)
    fused, weight, _ = net(visible, infrared)
    torch.testing.assert_close(fused, weight * visible + (1 - weight) * infrared)
    assert ((weight > 0.5) == (visible > infrared)).all()


@pytest.mark.parametrize("combine", ["linear", "lse"])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_pair_alone_is_fused_as_in_a_batch(combine, shared):
    net = network(combine=combine, shared_experts=shared)
    visible, infrared = torch.rand(2, 3, 1, 24, 16)
    together, alone = net(visible, infrared), net(visible[1:2], infrared[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    net = network().train()
    visible, infrared = torch.rand(2, 4, 1, 64, 64)
    for _ in range(6):  # the noise of the gates gives every expert a turn
        context = Context()
        fused, weight, salience = net(visible, infrared, context)
        (fused.square().mean() + weight.mean() + salience.mean() + context.auxiliary_loss()).backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in idle if "salience" not in name] == []


def test_visible_experts_never_see_the_infrared_picture_nor_the_other_way_round():
    net = network(shared_experts=0)
    routing = net.local_gates[0].router.selector(torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    of_visible, of_infrared = net._seen_by_modality(routing)
    assert of_visible.tolist() == [[0, 1], [-1, -1]]
    assert of_infrared.tolist() == [[-1, -1], [3, 2]]


def test_leaving_empty_windows_out_changes_nothing(monkeypatch):
    net = network()
    visible, infrared = torch.rand(2, 2, 1, 24, 16)
    sparse = net(visible, infrared).fused_B1HW
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(net(visible, infrared).fused_B1HW, sparse)


def test_gates_take_frozen_statistics_and_explore_only_in_training():
    torch.manual_seed(0)
    gate = PictureGate("gate", 6, 4, 2, 0.01)
    torch.nn.init.normal_(gate.router.scorer.logits.weight)
    features = torch.randn(3, 6)
    measured = Context()
    first = gate.eval()(features, measured)
    frozen = gate(torch.randn(3, 6), Context(frozen_statistics=measured.statistics))
    assert torch.equal(first.index_NK, frozen.index_NK)
    assert torch.equal(first.weight_NK, gate(features, Context()).weight_NK)
    gate.train()
    assert not torch.equal(gate(features, Context()).weight_NK, gate(features, Context()).weight_NK)
    assert set(measured.records["gate"].losses) == {"importance_loss", "load_loss"}


def test_light_is_told_as_it_is():
    visible, infrared = torch.full((2, 1, 256, 384), 0.25), torch.rand(2, 1, 256, 384)
    light = light_of(visible, infrared)
    assert light.shape == (2, LIGHT_FEATURES)
    torch.testing.assert_close(light[:, :4], torch.tensor([[0.25, 0.0, 0.25, 0.25]] * 2))
    sample = infrared[:, 0, ::2, ::3].flatten(1)
    wanted = [sample.mean(1), sample.std(1, unbiased=False), *torch.quantile(sample, torch.tensor([0.05, 0.95]), dim=1)]
    torch.testing.assert_close(light[:, 4:8], torch.stack(wanted, 1))
    assert (light[:, 8] < 0.01).all()  # every edge is in the infrared


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (20, 30), (700, 500)])
def test_light_is_told_of_pictures_of_any_size(size):
    visible = torch.linspace(0, 1, size[0] * size[1]).view(1, 1, *size)
    light = light_of(visible, visible)[0]
    assert light.isfinite().all()
    assert light[8] == pytest.approx(0.5)
    if min(size) > 1:
        torch.testing.assert_close(light[:4], torch.tensor([0.5, 1 / 12**0.5, 0.05, 0.95]), atol=0.02, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_the_weights_header(preset):
    config = PRESETS[preset]()
    assert FusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_small_preset_has_less_than_half_a_million_parameters():
    assert sum(p.numel() for p in FusionNet(PRESETS["small"]()).parameters()) <= 500_000


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_losses_are_finite_with_finite_gradients_also_where_there_is_nothing_to_see(loss):
    for visible, infrared in (torch.rand(2, 2, 1, 64, 64), torch.zeros(2, 2, 1, 64, 64), torch.ones(2, 2, 1, 64, 64)):
        fused = ((visible + infrared) / 2).requires_grad_()
        value = loss(fused, visible, infrared)
        (gradient,) = torch.autograd.grad(value, fused, allow_unused=True)
        assert value.isfinite()
        assert gradient is None or gradient.isfinite().all()


def test_every_loss_prefers_what_it_is_about():
    visible, infrared = (torch.from_numpy(scene(96, 96, seed))[None, None] for seed in (1, 2))
    best, mean = torch.maximum(visible, infrared), (visible + infrared) / 2
    noisy = (best + 0.1 * torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert losses.intensity_loss(best, visible, infrared) == 0 < losses.intensity_loss(mean, visible, infrared)
    for loss in (losses.artefact_loss, losses.structure_loss, losses.edge_loss, losses.fidelity_loss):
        assert loss(best, visible, infrared) < loss(noisy, visible, infrared)
    level = torch.full_like(visible, 0.5)
    assert losses.gradient_loss(visible, visible, level) == 0
    assert losses.gradient_loss(level, visible, level) > losses.gradient_loss((visible + level) / 2, visible, level) > 0
    assert losses.difference_loss(visible + infrared, visible, infrared) < 1e-3
    assert losses.contrast_loss(mean, visible, infrared) > losses.contrast_loss(1.2 * best, visible, infrared)


def test_the_encoder_that_runs_ahead_gets_smaller_gradients_and_the_other_one_larger():
    balance = ModalityBalance()
    balance.observe(torch.tensor([0.5, 0.5]))
    assert balance.kappa_2.tolist() == [1, 1]
    balance.observe(torch.tensor([0.3, 0.7]))  # the visible one now misses less
    assert balance.kappa_2[0] < 1 < balance.kappa_2[1]
    torch.testing.assert_close(balance.running_2, torch.tensor([0.4, 0.6]))


def test_modulation_scales_the_gradients_of_its_encoder_alone():
    visible, infrared = torch.rand(2, 2, 1, 32, 32)
    plain, modulated = network(), network()
    balance = ModalityBalance()
    balance.attach(modulated)
    balance.kappa_2.copy_(torch.tensor([0.5, 2.0]))
    for net in (plain, modulated):
        net(visible, infrared).fused_B1HW.square().mean().backward()
    factors = {"visible": 0.5, "infrared": 2.0}
    for (name, a), b in zip(plain.named_parameters(), modulated.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, factors.get(name.split(".")[0], 1.0) * a.grad)


def test_measuring_the_balance_leaves_the_network_as_it_was():
    net = network().train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    balance = ModalityBalance()
    balance.update(net, *torch.rand(2, 2, 1, 32, 32))
    assert net.training
    assert (balance.running_2 > 0).all()
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in before.items())


def test_the_baselines_are_the_mean_and_the_maximum():
    a, b = np.array([[0, 255, 10]], np.uint8), np.array([[255, 255, 13]], np.uint8)
    assert average(a, b).tolist() == [[128, 255, 12]]
    assert pixel_max(a, b).tolist() == [[255, 255, 13]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(37, 53), (37, 53, 3), (37, 53, 4)])
def test_the_result_has_size_depth_channels_and_alpha_of_the_visible_picture(dtype, shape):
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    array = (np.random.default_rng(0).random(shape) * top).astype(dtype)
    visible, infrared = picture_from_array(array), picture_from_array((scene(37, 53) * 255).astype(np.uint8))
    result = task()((infrared, visible))
    assert result.picture.pixels_HWC.shape == visible.pixels_HWC.shape
    assert result.picture.pixels_HWC.dtype == dtype
    if visible.alpha_HW is not None:
        assert np.array_equal(result.picture.alpha_HW, visible.alpha_HW)
    assert result.maps["weights"].pixels_HWC.shape == (37, 53, 1)
    assert 0 <= result.facts["visible_weight"] <= 1
    assert {"local.0", "local.1", "global"} <= set(result.facts["experts"])


def test_tiles_agree_with_the_whole_pair():
    pair = [picture_from_array((scene(300, 420, seed) * 255).astype(np.uint8)) for seed in (1, 2)]
    small = WHOLE_PX  # below it the statistics come from the whole pair, at its own size
    assert small >= 420
    whole = task(tile_px=0)(tuple(pair)).picture.pixels_HWC.astype(int)
    tiled = task(tile_px=192)(tuple(pair))
    assert tiled.facts["tiles"] > 1
    assert np.abs(tiled.picture.pixels_HWC.astype(int) - whole).max() <= 2


def test_colour_is_kept_where_brightness_stays_and_fades_in_the_dark():
    rng = np.random.default_rng(0)
    rgb = (0.2 + 0.6 * rng.random((9, 11, 3))).astype(np.float32)
    y = luma(rgb)
    np.testing.assert_allclose(recolour(rgb, y, y), rgb, atol=1e-6)
    brighter = recolour(rgb, y, y + 0.1)
    np.testing.assert_allclose(luma(brighter), y + 0.1, atol=1e-6)
    np.testing.assert_allclose(brighter - rgb, 0.1, atol=1e-6)  # no colour shift
    dark = recolour(0.01 * rgb, luma(0.01 * rgb), np.full_like(y, 0.8))
    np.testing.assert_allclose(dark, 0.8, atol=1e-6)  # noise in the dark does not become colour


def test_counts_of_a_thermal_camera_are_stretched_but_not_beyond_a_least_span():
    scene_counts = (29000 + 1900 * scene(60, 80)).astype(np.uint16)
    cold_counts = (29000 + np.random.default_rng(0).integers(0, 8, (40, 60))).astype(np.uint16)
    lively, cold = (infrared_brightness(picture_from_array(x), x.shape) for x in (scene_counts, cold_counts))
    assert lively.min() == 0
    assert lively.max() == 1
    assert np.ptp(cold) < 0.05, "noise does not become hot spots"
    fixed = infrared_brightness(picture_from_array(scene_counts), (60, 80), (28000.0, 31000.0))
    np.testing.assert_allclose(fixed, (scene_counts - 28000.0) / 3000, atol=1e-5)
    full = infrared_brightness(picture_from_array(scene_counts), (60, 80), "full")
    np.testing.assert_allclose(full, scene_counts / 65535, atol=1e-5)


def test_an_infrared_picture_of_another_size_is_brought_to_the_visible_one_of_another_shape_refused():
    small = picture_from_array((scene(30, 40) * 255).astype(np.uint8))
    assert infrared_brightness(small, (60, 80)).shape == (60, 80)
    assert infrared_brightness(small, (15, 20)).shape == (15, 20)
    with pytest.raises(InputError, match=r"40x30.*80x80.*--register"):
        infrared_brightness(small, (80, 80))


def test_coloured_infrared_pictures_are_warned_of_once_and_each_is_marked(caplog):
    fusion, visible = task(), picture_from_array((scene(16, 16) * 255).astype(np.uint8))
    coloured = np.zeros((16, 16, 3), np.uint8)
    coloured[..., 0] = 200
    grey = np.full((16, 16, 3), 77, np.uint8)
    with caplog.at_level(logging.WARNING):
        marked = [
            fusion((picture_from_array(x), visible)).facts.get("infrared_coloured") for x in (coloured, grey, coloured)
        ]
    assert marked == [True, None, True]
    assert caplog.text.count("coloured") == 1


@pytest.mark.parametrize("text", ["", "1", "2,1", "a,b", "nan,1", "1,2,3"])
def test_bad_thermal_ranges_are_refused(text):
    with pytest.raises(UsageError, match="--thermal-range"):
        parse_range(text)


def test_ranges_are_read():
    assert [parse_range(text) for text in ("auto", "full", "1,2.5")] == ["auto", "full", (1.0, 2.5)]


def rotated(angle_deg, shift_px, height, width):
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])
    return (
        np.array([[1, 0, shift_px[0]], [0, 1, shift_px[1]], [0, 0, 1.0]]) @ np.linalg.inv(to_centre) @ turn @ to_centre
    )


@pytest.mark.parametrize("seed", range(4))
def test_registration_finds_a_shift_and_a_turn_between_pictures_of_unlike_brightness(seed):
    rng = np.random.default_rng(seed)
    fixed = scene(240, 320, seed)
    true_33 = rotated(rng.uniform(-2, 2), rng.uniform(-8, 8, 2), 240, 320)
    moving, _ = warp(1 - fixed**2, np.linalg.inv(true_33), (240, 320))
    found = register_ecc(fixed, moving)
    assert found.taken
    assert corner_shift_px(np.linalg.inv(true_33) @ found.warp_33, (240, 320)) < 1.5


def test_registration_leaves_alone_what_it_cannot_improve():
    fixed = scene(120, 160)
    assert not register_ecc(fixed, fixed).taken
    level = np.full((120, 160), 0.5, np.float32)
    assert np.array_equal(register_ecc(fixed, level).warp_33, np.eye(3))


def test_a_homography_file_is_used_and_what_it_does_not_show_stays_visible(tmp_path):
    path = tmp_path / "h.json"
    path.write_text("[[1, 0, 20], [0, 1, 0], [0, 0, 1]]")
    visible = picture_from_array((scene(64, 96, 1) * 255).astype(np.uint8))
    infrared = picture_from_array(np.full((64, 96), 255, np.uint8))
    result = task(register=read_homography(path))((infrared, visible))
    assert result.facts["registered"] == "file"
    assert np.array_equal(result.picture.pixels_HWC[:, 78:], visible.pixels_HWC[:, 78:])
    assert (result.maps["weights"].pixels_HWC[:, 78:] == 255).all()


@pytest.mark.parametrize("text", ["", "[1, 2]", "[[1,0,0],[0,1,0],[0,0,0]]", '{"a": 1}', "[[1,0,0],[0,1,0],[0,0,NaN]]"])
def test_bad_homographies_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "h.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"h\.json"):
        read_homography(path)
    with pytest.raises(UsageError, match=r"none\.json"):
        read_homography(tmp_path / "none.json")


def test_pairs_match_by_stem_and_orphans_are_listed(tmp_path):
    for part, names in {"ir": ("a.png", "b.png"), "vis": ("b.jpg", "c.png")}.items():
        (tmp_path / part).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / part / name), np.zeros((8, 8, 3), np.uint8))
    folder = PairFolder(tmp_path)
    assert [pair.name for pair in folder] == ["b"]
    assert [path.name for path in folder.orphans] == ["a.png", "c.png"]
    with pytest.raises(UsageError, match="no such folder"):
        PairFolder(tmp_path / "ir")


def test_crops_are_a_function_of_their_generator_and_some_are_dark():
    rng = np.random.default_rng(0)
    images = rng.integers(60, 256, (2, 90, 80, 3), np.uint8)
    crops = PairCrops([Pair(image, image, "") for image in images])
    one, same = (crops.batch(np.random.default_rng(5), 16, 32) for _ in range(2))
    assert np.array_equal(one, same)
    assert one.shape == (16, 2, 32, 32)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1
    darker = one[:, 0].mean((1, 2)) < 0.8 * one[:, 1].mean((1, 2))
    assert 0 < darker.sum() < 16


def test_darkening_makes_darker():
    image = scene(40, 40)
    for seed in range(20):
        dark = darken(image, np.random.default_rng(seed))
        assert dark.shape == image.shape
        assert dark.dtype == np.float32
        assert dark.mean() < image.mean()


def test_counts_of_a_thermal_camera_are_shown_as_brightness():
    counts = (29000 + 1900 * scene(60, 80)).astype(np.uint16)
    visible = picture_from_array((scene(60, 80, 1) * 255).astype(np.uint8))
    result = task()((picture_from_array(counts), visible))
    views = result.views(40)
    assert list(views) == ["infrared", "visible", "fused"]
    assert views["infrared"].pixels_HWC.shape == (30, 40, 1)
    assert np.ptp(views["infrared"].pixels_HWC) > 0.9
    assert views["fused"] is result.picture
