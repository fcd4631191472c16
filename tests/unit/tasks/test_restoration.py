"""RestorationNet, the Task around it, losses, metrics and baselines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.backbone import MoEConfig
from moevision.checkpoint import ModelDescriptor
from moevision.errors import UsageError
from moevision.imaging.picture import picture_from_array
from moevision.moe import Context
from moevision.tasks.restoration.baselines import dark_channel
from moevision.tasks.restoration.conditional import ConditionalConv, Kernels
from moevision.tasks.restoration.losses import fourier_error, l1_error, opacity_loss, relative, rms_error, weather_loss
from moevision.tasks.restoration.metrics import luma, psnr, quality, ssim
from moevision.tasks.restoration.model import PRESETS, RestorationConfig, RestorationNet
from moevision.tasks.restoration.predict import RestorationTask, statistics_mosaic
from moevision.tasks.restoration.weathers import WEATHERS, known_weathers


def network(seed=0, wake=True):
    """A tiny network; `wake` gives the zero-initialised parts weights so that they do something."""
    torch.manual_seed(seed)
    net = RestorationNet(PRESETS["test"]()).eval()
    if wake:
        torch.nn.init.normal_(net.head.weight, std=0.05)
        torch.nn.init.normal_(net.scene.project.weight, std=0.05)
        torch.nn.init.normal_(net.tone.weather.weight, std=0.05)
        torch.nn.init.normal_(net.tone.correct.weight, std=0.02)
        torch.nn.init.normal_(net.enter_hats.weight, std=0.05)
        torch.nn.init.normal_(net.enter_drops.weight, std=0.05)
    return net


def task(**options):
    net = network()
    descriptor = ModelDescriptor("test", "restoration", net, net.config.to_dict(), {})
    return RestorationTask(descriptor, device=torch.device("cpu"), **options)


def image(height, width, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 33), st.integers(1, 33))
def test_output_has_the_input_size_for_any_size(height, width):
    restored, logits, opacity = network()(torch.rand(1, 3, height, width))
    assert restored.shape == (1, 3, height, width)
    assert logits.shape == (1, len(WEATHERS))
    assert opacity.shape == (1, 1, -(-height // 8) * 4, -(-width // 8) * 4)


def test_an_untrained_network_returns_the_picture_unchanged():
    x = torch.rand(1, 3, 17, 23)
    assert torch.equal(network(wake=False)(x).restored_BCHW, x)


def test_evaluation_is_bit_equal_from_call_to_call():
    net, x = network(), torch.rand(1, 3, 32, 40)
    assert torch.equal(net(x)[0], net(x)[0])


def test_a_weather_that_is_told_counts_and_one_that_is_not_is_detected():
    net, x = network(), torch.rand(1, 3, 32, 40)
    detected, logits, _ = net(x)
    unknown = torch.full((1, 4), math.nan)
    assert torch.equal(net(x, None, unknown)[0], detected)
    torch.testing.assert_close(net(x, None, logits.sigmoid())[0], detected)
    assert torch.equal(net(x, None, torch.zeros(1, 4))[0], x)
    rain, snow = (net(x, None, torch.eye(4)[[i]])[0] for i in (0, 2))
    assert not torch.allclose(rain, snow)
    both = net(torch.cat([x, x]), None, torch.eye(4)[[0]])[0]
    torch.testing.assert_close(both, torch.cat([rain, rain]))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_a_conditional_convolution_is_the_sum_of_its_convolutions(batch, height, width):
    torch.manual_seed(0)
    conv = ConditionalConv(3, 4, 5)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x, strength = torch.rand(batch, 4, height, width), torch.rand(batch, 3)
    parts = [torch.nn.functional.conv2d(x, conv.weight[5 * i : 5 * i + 5], conv.bias[i], padding=1) for i in range(3)]
    expected = sum(strength[:, i, None, None, None] * part for i, part in enumerate(parts))
    torch.testing.assert_close(conv(x, strength), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(conv(x, strength[:1])[0], expected[0], atol=1e-5, rtol=1e-4)


def test_kernels_can_be_averaged_and_set_side_by_side_before_they_are_applied():
    conv = ConditionalConv(3, 4, 6)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x, strength = torch.rand(2, 4, 7, 5), torch.rand(2, 3)
    kernels = conv.kernels(strength)
    y = conv(x, strength)
    torch.testing.assert_close(kernels.mean_of(3)(x), y.unflatten(1, (2, 3)).mean(2))
    first, rest = kernels.split((2, 4))
    torch.testing.assert_close(Kernels.side_by_side([rest, first])(x), torch.cat([y[:, 2:], y[:, :2]], 1))


def test_a_picture_in_bands_of_rows_is_restored_as_with_gradients_where_it_is_whole():
    net, x = network(), torch.rand(1, 3, 523, 518)  # several bands at strides 1 and 2
    with torch.inference_mode():
        banded = net(x)
    for mine, whole in zip(banded, net(x), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


def test_every_parameter_learns():
    net = network().train()
    context = Context()
    restored, logits, opacity = net(torch.rand(2, 3, 32, 32), context)
    (restored.square().mean() + logits.square().mean() + opacity.mean() + context.auxiliary_loss()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_the_weights_header(preset):
    config = PRESETS[preset]()
    assert RestorationConfig.from_dict(config.to_dict()) == config


def test_another_feed_forward_part_leaves_the_scene_branch_its_own_number_of_experts():
    config = PRESETS["small"]().with_moe(MoEConfig(experts="ffn", scorer="linear", num_experts=6, k=3))
    assert (config.backbone.moe.experts, config.backbone.moe.num_experts, config.backbone.moe.k) == ("ffn", 6, 3)
    before = PRESETS["small"]().scene.moe
    after = config.scene.moe
    assert (after.experts, after.num_experts, after.k) == ("ffn", before.num_experts, before.k)


def test_the_small_preset_keeps_within_two_million_parameters():
    assert sum(p.numel() for p in RestorationNet(PRESETS["small"]()).parameters()) <= 2_000_000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_task_keeps_size_and_depth(dtype):
    result = task()((picture_from_array(image(37, 51, dtype=dtype)),))
    assert result.picture.pixels_HWC.shape == (37, 51, 3)
    assert result.picture.pixels_HWC.dtype == dtype
    assert result.facts["weather"] in {*WEATHERS, "clean"}
    assert 0.5 <= result.facts["confidence"] <= 1
    assert result.facts["mean_change"] > 0


def test_the_task_takes_away_what_it_is_told_and_still_reports_what_it_detects():
    picture = picture_from_array(image(40, 40))
    untouched, snow = (task(weather=told)((picture,)) for told in ((), ["snow"]))
    assert np.array_equal(untouched.picture.pixels_HWC, picture.pixels_HWC)
    assert not np.array_equal(snow.picture.pixels_HWC, picture.pixels_HWC)
    assert untouched.facts["weathers"] == snow.facts["weathers"]
    with pytest.raises(UsageError, match="'hail': unknown"):
        task(weather=["hail"])


def test_weathers_are_known_by_name_in_one_order():
    assert known_weathers(["haze", "rain", "haze"]) == ("rain", "haze")
    assert known_weathers("drops") == ("drops",)
    with pytest.raises(UsageError, match="'hail': unknown; choose from rain"):
        known_weathers(["haze", "hail"])


def test_strength_mixes_linearly_between_input_and_output():
    picture = picture_from_array(image(24, 24))
    untouched, half, full = (task(strength=s)((picture,)).picture.pixels_HWC.astype(float) for s in (0.0, 0.5, 1.0))
    assert np.array_equal(untouched, picture.pixels_HWC)
    assert np.abs(half - (untouched + full) / 2).max() <= 1


def test_bf16_keeps_what_a_16_bit_picture_has_and_tiles_agree():
    ramp = np.linspace(20_000, 50_000, 900, dtype=np.uint16)
    picture = picture_from_array(np.broadcast_to(ramp[:, None, None], (900, 800, 3)).copy())
    coarse = [task(dtype=torch.bfloat16, tile_px=px)((picture,)).picture.pixels_HWC for px in (0, 384)]
    fine = task(tile_px=0)((picture,)).picture.pixels_HWC
    assert psnr((coarse[0] // 257).astype(np.uint8), (fine // 257).astype(np.uint8)) > 45
    assert psnr((coarse[0] // 257).astype(np.uint8), (coarse[1] // 257).astype(np.uint8)) > 50
    assert len(np.unique(coarse[0])) > 5 * 256


def test_tiles_of_a_large_picture_agree_with_the_whole_of_it():
    # Smooth content as in photographs; the statistics come from one mosaic, so only the receptive field can differ.
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (30, 28, 3)).astype(np.float32)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(small).permute(2, 0, 1)[None], size=(900, 800), mode="bicubic"
    )
    picture = picture_from_array(large[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())
    whole = task(tile_px=0)((picture,)).picture.pixels_HWC
    tiled = task(tile_px=384)((picture,))
    assert tiled.facts["tiles"] > 1
    assert psnr(tiled.picture.pixels_HWC, whole) >= 50
    told = [task(tile_px=px, weather=["rain"])((picture,)).picture.pixels_HWC for px in (0, 384)]
    assert psnr(told[0], told[1]) >= 50
    assert psnr(told[0], whole) < 50


def test_the_statistics_mosaic_takes_native_pixels_from_all_over_the_picture():
    rows = np.arange(1000, dtype=np.uint16)[:, None, None].repeat(600, 1)
    mosaic = statistics_mosaic(rows, 512)
    assert mosaic.shape == (512, 512, 1)
    starts = mosaic[::128, 0, 0].tolist()
    assert starts[0] == 0
    assert starts[-1] == 1000 - 128
    assert (np.diff(mosaic[:128, 0, 0].astype(int)) == 1).all()
    assert statistics_mosaic(rows[:100, :50], 512).shape == (100, 50, 1)


def test_grey_stays_grey_and_alpha_is_untouched():
    pixels = np.dstack([image(20, 20)[..., :1], image(20, 20, 1)[..., :1]])
    result = task()((picture_from_array(pixels),)).picture
    assert result.pixels_HWC.shape == (20, 20, 1)
    assert np.array_equal(result.alpha_HW, pixels[..., 1])


def test_psnr_is_that_of_its_formula():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + 5) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(a, a) == math.inf


def test_ssim_is_one_for_equal_pictures_falls_with_noise_and_matches_an_independent_implementation():
    from scipy.ndimage import gaussian_filter

    a = image(40, 50)
    b = np.clip(a.astype(int) + np.random.default_rng(1).normal(0, 25, a.shape), 0, 255).astype(np.uint8)
    assert ssim(a, a) == pytest.approx(1)

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=5 / 1.5, axes=(0, 1))[5:-5, 5:-5]

    x, y = a.astype(float), b.astype(float)
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()
    assert ssim(a, b) == pytest.approx(expected, abs=2e-4)


def test_luma_is_studio_swing_and_quality_has_the_documented_keys():
    assert luma(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx(235, abs=0.01)
    assert set(quality(image(16, 16), image(16, 16, 1))) == {"psnr", "ssim", "psnr_y", "ssim_y"}


def test_the_dark_channel_prior_removes_synthetic_haze():
    rng = np.random.default_rng(0)
    clean = np.kron(rng.integers(0, 200, (8, 8, 3)), np.ones((16, 16, 1)))
    hazy = clean * 0.5 + 240 * 0.5
    assert (
        psnr(dark_channel(hazy.astype(np.uint8)), clean.astype(np.uint8))
        > psnr(hazy.astype(np.uint8), clean.astype(np.uint8)) + 3
    )


def test_the_fourier_loss_does_not_depend_on_the_crop_size():
    torch.manual_seed(0)
    noise = torch.randn(1, 3, 128, 128)
    small, large = (fourier_error(noise[..., :s, :s], torch.zeros(1, 3, s, s)) for s in (32, 128))
    assert float(small) == pytest.approx(float(large), rel=0.05)
    assert float(l1_error(noise, noise)) == 0


def test_the_rms_error_is_that_of_psnr_and_its_best_constant_is_the_mean_where_that_of_l1_is_the_median():
    a, b = image(16, 16), image(16, 16, 1)
    tensors = (torch.from_numpy(i).permute(2, 0, 1)[None] / 255 for i in (a, b))
    assert -20 * math.log10(float(rms_error(*tensors))) == pytest.approx(psnr(a, b), abs=1e-3)
    sparse = torch.zeros(1, 1, 10, 10)
    sparse[..., :3, :] = 1  # streaks on three pixels in ten
    nothing, mean = torch.zeros_like(sparse), torch.full_like(sparse, 0.3)
    assert rms_error(mean, sparse) < rms_error(nothing, sparse)
    assert l1_error(mean, sparse) > l1_error(nothing, sparse)


def test_the_relative_error_weighs_pictures_by_the_damage_done_to_them():
    damage = torch.tensor([0.3, 0.03, 0.0])
    error = torch.tensor([0.15, 0.02, 0.001], requires_grad=True)
    relative(error, damage, power=1.0, knee=0.03).backward()
    weights = error.grad * 3
    assert weights.tolist() == pytest.approx([1 / 0.33, 1 / 0.06, 1 / 0.03], rel=1e-5)
    assert relative(error, damage, power=0.0).item() == pytest.approx(error.mean().item())


def test_the_damage_is_a_constant_of_the_relative_error():
    damage = torch.tensor([0.3], requires_grad=True)
    relative(torch.tensor([0.1], requires_grad=True), damage, power=0.75).backward()
    assert damage.grad is None


def test_drops_are_placed_where_they_hide_the_scene_in_a_picture_of_any_size():
    torch.manual_seed(0)
    opacity = torch.zeros(1, 1, 13, 22)
    opacity[..., 2:8, 4:10] = 0.9
    logits = torch.zeros(1, 1, 8, 12, requires_grad=True)
    opacity_loss(logits, opacity).backward()
    assert (logits.grad[..., 1:4, 2:5] < 0).all()
    away = torch.ones(8, 12, dtype=torch.bool)
    away[1:4, 2:5] = False
    assert (logits.grad[0, 0, away] > 0).all()
    assert opacity_loss(torch.full_like(logits, 3.0), opacity) > opacity_loss(torch.full_like(logits, -3.0), opacity)


def test_unknown_places_of_drops_do_not_train():
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    opacity = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), math.nan)])
    opacity_loss(logits, opacity).backward()
    assert (logits.grad[0] > 0).all()
    assert (logits.grad[1] == 0).all()


def test_unknown_weather_labels_do_not_train():
    logits = torch.zeros(2, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 0, 0], [math.nan] * 4])
    weather_loss(logits, labels).backward()
    assert (logits.grad[0] != 0).all()
    assert (logits.grad[1] == 0).all()
