"""SegmentationTask: any size, depth and kind of picture, in bands and tiles; `moevision.segment`."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

import moevision
from moevision.checkpoint import ModelDescriptor, save_model
from moevision.engine.task import TaskResult
from moevision.errors import InputError, UsageError
from moevision.imaging.picture import Picture, picture_from_array
from moevision.imaging.scaling import shrink
from moevision.imaging.write import write_picture
from moevision.tasks.restoration.model import PRESETS as RESTORATION_PRESETS
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.segmentation.labels import draw_overlay, label_bands
from moevision.tasks.segmentation.model import PRESETS, SegmentationConfig, SegmentationNet
from moevision.tasks.segmentation.predict import SegmentationTask

CLASSES = ("Sky", "Road", "Car", "Tree, high", "Person")
PALETTE = ((120, 180, 250), (128, 64, 128), (0, 0, 142), (107, 142, 35), (220, 20, 60))
CPU = torch.device("cpu")


def network(seed=0):
    """A tiny network whose norms have seen something and whose classes differ from place to place."""
    torch.manual_seed(seed)
    net = SegmentationNet(SegmentationConfig(PRESETS["test"](), CLASSES, PALETTE)).train()
    torch.nn.init.normal_(net.classify.weight, std=0.5)
    with torch.no_grad():
        for _ in range(20):
            net(torch.rand(2, 3, 64, 64) * torch.rand(2, 3, 1, 1))
    return net.eval()


NET = network()


def task(net=NET, training=None, **options):
    descriptor = ModelDescriptor("test", "segmentation", net, net.config.to_dict(), training or {})
    return SegmentationTask(descriptor, device=CPU, **options)


TASK = task()


def image(height, width, seed=0, channels=3):
    """Smooth blobs: neighbouring pixels belong together."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8) + 1, -(-width // 8) + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return smooth[..., :channels].copy()


def label(array, **options):
    return (task(**options) if options else TASK).segment(picture_from_array(array))


def decided(logits_KHW, least=1e-3):
    """Where one class is clearly the likeliest: elsewhere rounding may decide."""
    best_2HW = logits_KHW.topk(2, dim=0).values
    return (best_2HW[0] - best_2HW[1] > least).numpy()


def plain_logits(array, net=NET):
    with torch.inference_mode():
        return net(torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255)[0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))
def test_ids_overlay_and_areas_have_the_pictures_size_whatever_it_is(height, width, channels):
    result = TASK((picture_from_array(image(height, width, channels=channels)),))
    assert result.picture.pixels_HWC.shape == (height, width, 1)
    assert result.picture.pixels_HWC.dtype == np.uint8
    assert result.picture.pixels_HWC.max() < len(CLASSES)
    assert result.maps["overlay"].pixels_HWC.shape == (height, width, 3)
    shares = [result.facts[f"area.{name}"] for name in CLASSES]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert result.facts["classes"] == np.unique(result.picture.pixels_HWC).size


@pytest.mark.parametrize("size_hw", [(48, 64), (37, 53), (5, 90)])
def test_a_picture_that_is_not_shrunk_gets_what_the_plain_network_says(size_hw):
    array = image(*size_hw)
    logits_KHW = plain_logits(array)
    clear_HW = decided(logits_KHW)
    assert clear_HW.mean() > 0.9
    assert np.array_equal(label(array).ids_HW[clear_HW], logits_KHW.argmax(0).numpy()[clear_HW])


def test_a_larger_picture_is_shrunk_for_the_network_and_its_logits_enlarged():
    array = image(96, 128)
    small = shrink(array, 64)
    assert small.shape == (48, 64, 3)
    with torch.inference_mode():
        coarse_BKhw, _ = NET.logits(torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255)
        logits_KHW = F.interpolate(coarse_BKhw, scale_factor=8, mode="bilinear", align_corners=False)[0]
    clear_HW = decided(logits_KHW)
    assert np.array_equal(label(array, size_px=64).ids_HW[clear_HW], logits_KHW.argmax(0).numpy()[clear_HW])
    assert not np.array_equal(label(array, size_px=64).ids_HW, label(array, size_px=0).ids_HW)


def test_the_weights_say_at_which_size_they_work_unless_told_otherwise():
    assert task().size_px == 640
    assert task(training={"work_px": 512}).size_px == 512
    assert task(training={"work_px": 512}, size_px=0).size_px == 0
    with pytest.raises(UsageError, match="at least 32"):
        task(size_px=31)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 4), st.integers(1, 4))
def test_bands_give_what_the_whole_enlarged_at_once_does(height, width, cells_h, cells_w):
    logits_KHW = torch.randn(6, 4 * cells_h, 4 * cells_w)
    enlarged_KHW = F.interpolate(logits_KHW[None], (height, width), mode="bilinear", align_corners=False)[0]
    tops, bands = zip(*label_bands(logits_KHW, 4, (16 * cells_h, 16 * cells_w), (height, width)), strict=True)
    assert list(tops) == np.cumsum([0, *map(len, bands)]).tolist()[:-1]
    ids_HW, clear_HW = np.concatenate(bands), decided(enlarged_KHW)
    assert ids_HW.shape == (height, width)
    assert np.array_equal(ids_HW[clear_HW], enlarged_KHW.argmax(0).numpy()[clear_HW])


def test_a_grid_may_go_on_beyond_the_picture():
    logits_KHW = torch.randn(3, 8, 8)
    whole, part = (
        np.concatenate([band_HW for _, band_HW in label_bands(logits_KHW, 4, seen_hw, size_hw)])
        for seen_hw, size_hw in (((32, 32), (64, 64)), ((21, 30), (42, 60)))
    )
    assert np.array_equal(whole[:42, :60], part)


def test_a_large_picture_is_labelled_in_narrow_bands():
    sizes = [band_HW.shape for _, band_HW in label_bands(torch.randn(3, 120, 160), 4, (480, 640), (3000, 4000))]
    assert sum(rows for rows, _ in sizes) == 3000
    assert max(rows for rows, _ in sizes) < 40


def test_tiles_of_a_network_that_sees_one_place_only_give_the_whole(monkeypatch):
    def local(x_BCHW):
        height, width = x_BCHW.shape[-2:]
        padded = F.pad(x_BCHW, (0, -width % 16, 0, -height % 16), mode="replicate")
        pooled = F.avg_pool2d(padded, 4)
        return torch.cat([pooled, 0.7 - pooled[:, :2]], 1), None

    tiled = task(tile_px=64)
    for one in (tiled, whole := task(tile_px=0)):
        monkeypatch.setattr(one.model, "logits", local)
    array = image(150, 211)
    found = tiled.segment(picture_from_array(array))
    assert found.facts["tiles"] > 10
    differs_HW = found.ids_HW != whole.segment(picture_from_array(array)).ids_HW
    assert differs_HW.mean() < 1e-3


def test_tiles_of_the_network_are_near_the_whole():
    array = image(200, 260)
    tiled, whole = label(array, tile_px=128), label(array, tile_px=0)
    assert (tiled.facts["tiles"], whole.facts["tiles"]) == (6, 1)
    assert (tiled.ids_HW == whole.ids_HW).mean() > 0.9


def test_pictures_that_stay_large_are_tiled():
    found = label(image(40, 1100), size_px=0)
    assert found.facts["tiles"] == 2
    assert label(image(40, 1100)).facts["tiles"] == 1


def test_when_memory_runs_out_the_tiles_become_smaller(monkeypatch):
    poor = task(size_px=0)
    run = poor._run

    def with_little_memory(image_HWC):
        if max(image_HWC.shape) > 300:
            raise MemoryError
        return run(image_HWC)

    monkeypatch.setattr(poor, "_run", with_little_memory)
    assert poor.segment(picture_from_array(image(100, 700))).facts["tiles"] > 2


def test_depth_and_channels_do_not_change_the_classes():
    array = image(40, 56)
    expected = label(array).ids_HW
    for same in (array.astype(np.uint16) * 257, array.astype(np.float32) / 255):
        assert (label(same).ids_HW == expected).mean() > 0.999
    grey = image(40, 56, channels=1)
    assert np.array_equal(label(grey).ids_HW, label(np.repeat(grey, 3, axis=2)).ids_HW)


def test_values_outside_the_range_are_clipped_with_a_warning(caplog):
    array = image(20, 30).astype(np.float32) / 128
    with caplog.at_level(logging.WARNING):
        found = label(array)
    assert "clipped" in caplog.text
    assert np.array_equal(found.ids_HW, label(array.clip(0, 1)).ids_HW)
    assert found.overlay().dtype == np.uint8


def test_colours_under_transparent_pixels_do_not_count():
    array = image(40, 56)
    alpha = np.full((40, 56, 1), 255, np.uint8)
    alpha[10:20, 10:30] = 0
    other = array.copy()
    other[10:20, 10:30] = 255 - other[10:20, 10:30]
    found, same = (label(np.concatenate([pixels, alpha], axis=2)) for pixels in (array, other))
    assert found.ids_HW.shape == (40, 56)
    assert np.array_equal(found.ids_HW, same.ids_HW)
    assert found.overlay().shape == (40, 56, 3)


def test_a_picture_may_be_restored_first_and_the_overlay_shows_the_source():
    array = image(30, 40)

    def darken(pictures):
        return TaskResult(Picture(pictures[0].pixels_HWC // 2), {"weather": "haze", "confidence": 0.9, "tiles": 5})

    found = label(array, restore_first=darken)
    assert np.array_equal(found.ids_HW, label(array // 2).ids_HW)
    assert found.facts == {"tiles": 1, "weather": "haze", "confidence": 0.9}
    assert np.array_equal(found.overlay(0), array)


def test_overlays_show_the_classes_colours():
    array, ids_HW = image(9, 7), np.arange(63).reshape(9, 7).astype(np.uint8) % 5
    colours = np.array(PALETTE, np.uint8)[ids_HW]
    assert np.array_equal(draw_overlay(array, ids_HW, PALETTE, 1), colours)
    half = draw_overlay(array.astype(np.uint16) * 257, ids_HW, PALETTE).astype(float)
    assert np.abs(half - (array / 2 + colours / 2)).max() <= 1
    assert draw_overlay(array[..., :1], ids_HW, PALETTE, 0).shape == (9, 7, 3)


def test_overlays_are_left_out_where_nobody_wants_them():
    assert task(overlay=False)((picture_from_array(image(9, 9)),)).maps == {}


def test_a_number_of_experts_changes_the_copy_not_the_model():
    array = image(48, 64)
    before = plain_logits(array)
    one, four = label(array, experts=1), label(array, experts=4)
    assert torch.equal(plain_logits(array), before)
    assert np.array_equal(label(array, experts=2).ids_HW, label(array).ids_HW)
    assert not np.array_equal(one.ids_HW, four.ids_HW)
    with pytest.raises(UsageError, match="--experts 5: 5 of 4"):
        task(experts=5)


def test_half_precision_is_near():
    array = image(64, 96)
    assert (label(array, dtype=torch.bfloat16).ids_HW == label(array).ids_HW).mean() > 0.97


def test_nan_is_refused():
    net = network()
    torch.nn.init.constant_(net.classify.bias, float("nan"))
    with pytest.raises(InputError, match="NaN or infinite values from the network; retry with --precision fp32"):
        task(net).segment(picture_from_array(image(20, 20)))


def test_a_palette_shows_colours_and_still_reads_as_ids(tmp_path):
    array = image(30, 40)
    plain, coloured = (task(palette=palette)((picture_from_array(array),)).picture for palette in (False, True))
    for name, picture in (("plain", plain), ("coloured", coloured)):
        write_picture(picture, tmp_path / f"{name}.png")
    with Image.open(tmp_path / "plain.png") as grey, Image.open(tmp_path / "coloured.png") as colour:
        assert (grey.mode, colour.mode) == ("L", "P")
        assert np.array_equal(np.asarray(grey), np.asarray(colour))
        assert np.array_equal(np.asarray(grey), label(array).ids_HW)
        assert np.array_equal(np.asarray(colour.convert("RGB")), np.array(PALETTE)[np.asarray(grey)])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_model(NET, path, task="segmentation", training={})
    return path


def test_segment_takes_files_arrays_and_pil_images(tmp_path, weights):
    array = image(30, 41)
    Image.fromarray(array).save(tmp_path / "a.png")
    options = {"model": weights, "device": "cpu", "precision": "fp32"}
    found = moevision.segment(tmp_path / "a.png", **options)
    assert np.array_equal(found.ids_HW, label(array).ids_HW)
    for source in (array, Image.fromarray(array)):
        assert np.array_equal(moevision.segment(source, **options).ids_HW, found.ids_HW)
    assert (found.classes, found.palette) == (CLASSES, PALETTE)
    assert sum(found.areas.values()) == pytest.approx(1)
    assert found.mask("Road").mean() == pytest.approx(found.areas["Road"])
    assert found.overlay().shape == array.shape
    with pytest.raises(KeyError, match="Moon"):
        found.mask("Moon")


def test_segment_restores_first_where_asked(weights):
    array = image(40, 48)
    options = {"model": weights, "device": "cpu", "precision": "fp32"}
    assert "weather" in moevision.segment(array, restore="auto", **options).facts
    told = moevision.segment(array, restore=["haze"], **options)
    restored = moevision.restore(array, weather=["haze"], device="cpu", precision="fp32")
    assert np.array_equal(told.ids_HW, moevision.segment(restored, **options).ids_HW)
    with pytest.raises(UsageError, match="fog"):
        moevision.segment(array, restore="fog", **options)


def test_what_restores_first_can_be_chosen(weights, tmp_path):
    torch.manual_seed(1)
    net = RestorationNet(RESTORATION_PRESETS["test"]()).eval()
    with torch.no_grad():  # an untrained network changes nothing
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = tmp_path / "own.safetensors"
    save_model(net, own, task="restoration", training={})
    options = {"model": weights, "device": "cpu", "precision": "fp32"}
    array = image(40, 48)
    restored = moevision.restore(array, model=own, weather=["haze"], device="cpu", precision="fp32")
    assert (restored != array).any()
    found = moevision.segment(array, restore=["haze"], restore_model=own, **options)
    assert np.array_equal(found.ids_HW, moevision.segment(restored, **options).ids_HW)
    with pytest.raises(UsageError, match="choose one for restoration"):
        moevision.segment(array, restore="auto", restore_model=weights, **options)


def test_segment_refuses_a_model_of_another_task(weights):
    with pytest.raises(UsageError, match="a restoration model; choose one for segmentation"):
        moevision.segment(image(9, 9), model="restoration-small", device="cpu")
    with pytest.raises(UsageError, match="a segmentation model; choose one for restoration"):
        moevision.restore(image(9, 9), model=weights, device="cpu")
