"""What frames measure: boxes, flow, looks and prediction, one frame after another. Every scene is made in code."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moevision.errors import InputError
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import Frame
from moevision.tasks.anomaly import appearance
from moevision.tasks.anomaly.appearance import (
    CHANNELS,
    STRIDE,
    AppearanceEncoder,
    FeatureSums,
    NormalAppearance,
    look_size,
    looked_at,
    nearest,
    smoothed,
)
from moevision.tasks.anomaly.fit import measure
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutNet
from moevision.tasks.anomaly.motion import (
    BOX_PX,
    BOX_STRIDE_PX,
    WORKING_PX,
    box_centres_px,
    box_means,
    difference_grid,
    flow_grid,
    highest,
    mean_of_highest,
    working_size,
)
from moevision.tasks.anomaly.streams import STREAMS, FrameAnalyser, Measurement, logarithm, spread

HEIGHT, WIDTH = 48, 64
NORMAL = NormalAppearance(np.zeros(CHANNELS), np.eye(CHANNELS))
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def texture(height, width, seed=0):
    """Smooth grey patches, uint8 (H, W) from 40 to 200."""
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 40, 200, cv2.NORM_MINMAX).astype(np.uint8)


def clip(count, *, fps=10.0, speed_px=2, blob_px=10, seed=0):
    """A bright square that moves over a still texture: frames in RGB."""
    background = texture(HEIGHT, WIDTH, seed)
    found = []
    for number in range(count):
        grey = background.copy()
        left = 4 + speed_px * number % (WIDTH - blob_px - 8)
        grey[16 : 16 + blob_px, left : left + blob_px] = 235
        found.append(Frame(np.repeat(grey[..., None], 3, 2), number / fps))
    return found


def still(count, fps=10.0):
    return [Frame(np.repeat(texture(HEIGHT, WIDTH)[..., None], 3, 2), number / fps) for number in range(count)]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = MemoryOutNet(replace(PRESETS["test"](), encoder=True)).eval()
    torch.nn.init.normal_(made.head.weight, std=0.05)
    return made


@pytest.fixture(autouse=True)
def small_looks(monkeypatch):
    """The encoder sees frames of 96 px instead of 540: as many places as there are boxes, in a tenth of the time."""
    monkeypatch.setattr(appearance, "LOOK_PX", 96)


def pushed(analyser, frames):
    return [analyser.push(frame) for frame in frames]


def assert_same(first: Measurement | None, second: Measurement | None):
    """Bit for bit."""
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.values == second.values
        assert (first.moves, first.disturbed) == (second.moves, second.disturbed)
        assert np.array_equal(first.frame_error, second.frame_error, equal_nan=True)
        assert first.grids.keys() == second.grids.keys()
        assert all(np.array_equal(first.grids[name], second.grids[name]) for name in first.grids)


# Boxes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_box_means_are_those_of_a_plain_loop(height, width, seed):
    image_HW = np.random.default_rng(seed).random((height, width), np.float32) * 255
    rows, columns = (range(0, n - BOX_PX + 1, BOX_STRIDE_PX) for n in (height, width))
    boxes = [[image_HW[y : y + BOX_PX, x : x + BOX_PX].mean() for x in columns] for y in rows]
    if height < BOX_PX or width < BOX_PX:
        boxes = [[image_HW.mean()]]
    grid = box_means(image_HW)
    assert grid.dtype == np.float32
    np.testing.assert_allclose(grid, boxes, atol=1e-3)


def test_a_box_lies_about_its_centre():
    image_HW = np.zeros((40, 56), np.float32)
    rows, columns = box_centres_px(box_means(image_HW).shape)
    assert (rows.tolist(), columns.tolist()) == ([8, 16, 24, 32], [8, 16, 24, 32, 40, 48])
    image_HW[int(rows[2]) - 1 : int(rows[2]) + 1, int(columns[4]) - 1 : int(columns[4]) + 1] = 1
    grid = box_means(image_HW)
    touched = np.argwhere(grid > 0)
    assert touched.mean(0).tolist() == [2, 4]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.integers(1, 15))
def test_the_mean_of_the_highest_takes_what_there_is(values, count):
    grid = np.array([values], np.float32)
    wanted = np.mean(sorted(values)[-count:])
    assert mean_of_highest(grid, count) == pytest.approx(wanted, abs=1e-4)
    assert mean_of_highest(grid, 1) == highest(grid) == np.float32(max(values))


def test_differences_are_in_grey_levels_whichever_frame_is_brighter():
    dark, bright = np.full((32, 48), 20, np.uint8), np.full((32, 48), 27, np.uint8)
    np.testing.assert_allclose(difference_grid(dark, bright), 7, atol=1e-4)
    np.testing.assert_allclose(difference_grid(bright, dark), 7, atol=1e-4)
    assert not difference_grid(bright, bright).any()


def test_the_flow_is_the_speed_in_pixels_a_frame():
    wide = texture(64, 120)
    for speed_px in (0, 1, 3):
        grid = flow_grid(wide[:, 10:90], wide[:, 10 - speed_px : 90 - speed_px])
        assert float(np.median(grid)) == pytest.approx(speed_px, abs=0.3)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 80), np.uint8)
    assert flow_grid(*noise).max() <= 32


# Sizes


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIZES)
def test_everything_is_measured_at_a_longer_side_of_288_and_never_enlarged(size_hw):
    height, width = working_size(size_hw)
    assert max(height, width) == min(WORKING_PX, max(size_hw))
    assert min(height, width) >= 1
    scale = min(1, WORKING_PX / max(size_hw))
    assert abs(height - max(1, size_hw[0] * scale)) <= 0.5
    assert abs(width - max(1, size_hw[1] * scale)) <= 0.5
    assert working_size((height, width)) == (height, width)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIZES)
def test_the_encoder_sees_about_540_px_in_multiples_of_its_stride(size_hw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance, "LOOK_PX", 540)
        height, width = look_size(size_hw)
    assert height % STRIDE == width % STRIDE == 0
    assert abs(max(height, width) - 540) <= STRIDE / 2
    assert min(height, width) >= STRIDE
    scale = 540 / max(size_hw)
    assert abs(height - size_hw[0] * scale) <= STRIDE / 2 or height == STRIDE
    assert abs(width - size_hw[1] * scale) <= STRIDE / 2 or width == STRIDE


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 80))
def test_frames_of_any_size_can_be_looked_at(height, width):
    seen = looked_at(texture(height, width))
    assert seen.shape == (1, 1, *look_size((height, width)))
    assert seen.dtype == torch.float32
    assert seen.abs().max() <= 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90))
def test_nearest_is_the_place_whose_cell_holds_the_centre(from_n, to_n):
    found = nearest(from_n, to_n)
    assert found.tolist() == [min(from_n - 1, int((i + 0.5) / to_n * from_n + 1e-9)) for i in range(to_n)]


# Looks


@torch.inference_mode()
def test_the_encoder_gives_40_channels_at_stride_8_and_is_local():
    torch.manual_seed(0)
    encoder = AppearanceEncoder().eval()
    x_B1HW = torch.rand(2, 1, 64, 96) * 2 - 1
    features = encoder(x_B1HW)
    assert features.shape == (2, CHANNELS, 8, 12)
    torch.testing.assert_close(encoder(x_B1HW[1:]), features[1:], atol=1e-5, rtol=1e-5)
    x_B1HW[:, :, :8, :8] = 0
    assert torch.equal(encoder(x_B1HW)[..., 8:], features[..., 8:])


@pytest.mark.parametrize("size_hw", [(8, 8), (136, 544), (264, 304)])
@torch.inference_mode()
def test_the_encoder_gives_what_its_layers_give_one_after_the_other(size_hw):
    torch.manual_seed(0)
    encoder = AppearanceEncoder().eval()
    x_B1HW = torch.rand(1, 1, *size_hw) * 2 - 1
    y = F.relu6(encoder.stem(((127.5 * x_B1HW + 0.5) / 128).expand(-1, encoder.stem.in_channels, -1, -1)))
    for block in encoder.blocks:
        y = block(y)
    torch.testing.assert_close(encoder(x_B1HW), y, atol=1e-5, rtol=1e-4)


def test_features_are_averaged_over_three_by_three_places_and_less_at_the_edge():
    features = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    smooth = smoothed(features)
    assert smooth.shape == (4, 5, 3)
    np.testing.assert_allclose(smooth[2, 2], features[0, :, 1:4, 1:4].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(smooth[0, 4], features[0, :, :2, 3:].mean((1, 2)), atol=1e-6)


def features(count=500, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, channels)) @ rng.standard_normal((channels, channels)) + 5).astype(np.float32)


def test_the_gaussian_is_that_of_numpy_with_a_ridge():
    x_NC = features()
    normal = FeatureSums.of(x_NC).normal()
    covariance = np.cov(x_NC.astype(np.float64).T, bias=True)
    ridge = 1e-3 * np.trace(covariance) / 6
    np.testing.assert_allclose(normal.mean_C, x_NC.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(normal.precision_CC, np.linalg.inv(covariance + ridge * np.eye(6)), rtol=1e-6)


def test_sums_of_parts_add_up_and_can_be_taken_out():
    x_NC = features()
    whole, first, second = (FeatureSums.of(x) for x in (x_NC, x_NC[:180], x_NC[180:]))
    for found, wanted in ((first + second, whole), (whole - first, second), (FeatureSums.none(6) + whole, whole)):
        assert found.count == wanted.count
        np.testing.assert_allclose(found.sum_C, wanted.sum_C, rtol=1e-9)
        np.testing.assert_allclose(found.outer_CC, wanted.outer_CC, rtol=1e-9)
    np.testing.assert_allclose((whole - first).normal().precision_CC, second.normal().precision_CC, rtol=1e-6)


def test_the_mean_is_at_no_distance_and_what_was_learned_from_on_average_at_that_of_its_channels():
    x_NC = features(2000, 8)
    normal = FeatureSums.of(x_NC).normal()
    assert normal.distance(normal.mean_C.astype(np.float32)) == pytest.approx(0, abs=1e-6)
    distances = normal.distance(x_NC.reshape(40, 50, 8))
    assert distances.shape == (40, 50)
    assert distances.dtype == np.float32
    assert distances.mean() == pytest.approx(8, rel=0.1)
    assert normal.distance(x_NC[:1] + 1000) > 100 * distances.max()


def test_channels_that_never_varied_do_not_break_the_gaussian():
    x_NC = features(300)
    x_NC[:, 2] = 3
    x_NC[:, 4] = x_NC[:, 5]
    assert np.isfinite(FeatureSums.of(x_NC).normal().distance(x_NC)).all()
    same = np.full((300, 6), 7, np.float32)
    assert np.isfinite(FeatureSums.of(same).normal().distance(same)).all()


def test_too_few_places_that_move_are_refused():
    assert FeatureSums.of(features(200)).normal().mean_C.shape == (6,)
    with pytest.raises(InputError, match=r"only 199 places moved.*more"):
        FeatureSums.of(features(199)).normal()
    with pytest.raises(InputError, match="only 0 places"):
        FeatureSums.none().normal()


# Frames one after another


def test_the_first_frames_measure_nothing_and_then_all_streams(net):
    found = pushed(FrameAnalyser(net, normal=NORMAL, collect=True), clip(FRAMES + 3))
    for measurement in found[:FRAMES]:
        assert_same(measurement, Measurement())
    for measurement in found[FRAMES:]:
        assert set(measurement.values) == set(measurement.grids) == set(STREAMS)
        assert np.isfinite(list(measurement.values.values())).all()
        assert {grid.shape for grid in measurement.grids.values()} == {(5, 7)}
        assert measurement.moves
        assert not measurement.disturbed
        assert measurement.features_NC.shape[1] == CHANNELS
        assert len(measurement.features_NC) > 0


def test_streams_that_cannot_be_measured_are_left_out(net):
    plain = MemoryOutNet(PRESETS["test"]()).eval()
    expected = [
        (FrameAnalyser(None), {"difference", "flow"}),
        (FrameAnalyser(net), {"difference", "flow", "prediction"}),
        (FrameAnalyser(plain, normal=NORMAL), {"difference", "flow", "prediction"}),
        (FrameAnalyser(net, normal=NORMAL, streams=("difference", "appearance")), {"difference", "appearance"}),
        (FrameAnalyser(None, normal=NORMAL, streams=("difference",)), {"difference"}),
    ]
    for analyser, names in expected:
        assert set(pushed(analyser, clip(FRAMES + 1))[-1].values) == names


def test_values_are_logarithms_of_the_highest_boxes_or_of_the_mean_of_some(net):
    measurement = pushed(FrameAnalyser(net), clip(FRAMES + 2))[-1]
    for name, pool in (("difference", highest), ("flow", mean_of_highest), ("prediction", mean_of_highest)):
        assert measurement.values[name] == pytest.approx(np.log(pool(measurement.grids[name]) + 1e-3))
        assert logarithm(measurement.grids[name]).max() >= measurement.values[name] - 1e-5
    np.testing.assert_allclose(
        np.exp(logarithm(measurement.grids["flow"])) - 1e-3, measurement.grids["flow"], atol=1e-4
    )


def test_the_error_of_a_network_that_expects_the_last_frame_is_the_squared_difference():
    frames = clip(FRAMES + 1)
    new = MemoryOutNet(PRESETS["test"]()).eval()
    measurement = pushed(FrameAnalyser(new), frames)[-1]
    last, now = (frame.pixels_HWC[..., 0].astype(np.float32) for frame in frames[-2:])
    assert measurement.frame_error == pytest.approx(((now - last) ** 2).mean(), rel=1e-4)
    np.testing.assert_allclose(measurement.grids["prediction"], box_means((now - last) ** 2), rtol=1e-3, atol=1e-2)
    assert np.isnan(pushed(FrameAnalyser(None), frames)[-1].frame_error)


def test_where_nothing_moves_nothing_is_looked_at(net):
    measurement = pushed(FrameAnalyser(net, normal=NORMAL, collect=True), still(FRAMES + 1))[-1]
    assert not measurement.moves
    assert measurement.features_NC.shape == (0, CHANNELS)
    assert not measurement.grids["appearance"].any()
    assert measurement.values["difference"] == measurement.values["appearance"] == pytest.approx(np.log(1e-3))


def test_looks_are_told_where_something_moves(net):
    far = NORMAL._replace(mean_C=np.full(CHANNELS, 100.0))  # everything looks unusual
    grid = pushed(FrameAnalyser(net, normal=far), clip(FRAMES + 2))[-1].grids["appearance"]
    rows, columns = box_centres_px(grid.shape)
    hot = grid > 0
    assert hot.any()
    assert np.abs(rows[hot.any(1)] - 21).max() <= 24
    assert np.abs(columns[hot.any(0)] - (4 + 2 * 5 + 5)).max() <= 24
    assert not hot.all()


@pytest.mark.parametrize("corner", [(0, 0), (9, 14), (18, 29), (18, 0)])
@torch.inference_mode()
def test_what_moves_is_seen_in_a_part_of_the_frame_as_in_the_whole(net, monkeypatch, corner):
    monkeypatch.setattr(appearance, "LOOK_PX", 400)
    seen_px = []
    handle = net.encoder.register_forward_pre_hook(lambda _, arguments: seen_px.append(arguments[0].numel()))
    analyser = FrameAnalyser(net, normal=NORMAL)
    grey_HW = texture(160, 250)
    analyser.size_hw = working_size(grey_HW.shape)
    difference = np.zeros((19, 30), np.float32)
    difference[corner[0] : corner[0] + 1, corner[1] : corner[1] + 1] = 50
    features_hwC, moving_hw = analyser._looks(grey_HW, difference)
    handle.remove()
    whole_hwC = smoothed(net.encoder(looked_at(grey_HW)))
    assert moving_hw.any()
    assert seen_px[0] < 0.7 * looked_at(grey_HW).numel()
    np.testing.assert_allclose(features_hwC[moving_hw], whole_hwC[moving_hw], atol=1e-5)


def test_the_boxes_are_spread_over_the_frame():
    grid = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    spread_HW = spread(grid, (HEIGHT, WIDTH))
    assert spread_HW.shape == (HEIGHT, WIDTH)
    rows, columns = (centres.astype(int) for centres in box_centres_px(grid.shape))
    np.testing.assert_allclose(spread_HW[rows][:, columns], grid, atol=1e-6)
    assert spread_HW[12, 8] == pytest.approx((grid[0, 0] + grid[1, 0]) / 2, abs=1e-6)
    assert spread_HW[0, 0] == grid[0, 0]
    assert spread_HW[-1, -1] == grid[-1, -1]


def test_a_frame_that_comes_too_early_is_left_out():
    analyser = FrameAnalyser(None, fps=5)
    found = pushed(analyser, clip(2 * FRAMES + 2, fps=10))
    assert [measurement is None for measurement in found] == [False, True] * (FRAMES + 1)
    alone = pushed(FrameAnalyser(None, fps=5), clip(2 * FRAMES + 2, fps=10)[::2])
    for measurement, wanted in zip(found[::2], alone, strict=True):
        assert_same(measurement, wanted)
    assert found[2 * FRAMES].values


def test_all_frames_are_analysed_where_no_rate_is_asked_for():
    frames = [replace(frame, time_s=0.0) for frame in clip(FRAMES + 1)]
    assert pushed(FrameAnalyser(None), frames)[-1].values


@pytest.mark.parametrize("jump_s", [0.3, 60.0, -5.0])
def test_a_long_gap_and_time_that_goes_back_begin_anew(jump_s):
    frames = clip(2 * FRAMES + 2)
    shifted = [replace(frame, time_s=frame.time_s + jump_s) for frame in frames[FRAMES + 1 :]]
    found = pushed(FrameAnalyser(None, fps=10), frames[: FRAMES + 1] + shifted)
    assert [bool(m.values) for m in found] == [False] * FRAMES + [True] + [False] * FRAMES + [True]
    for measurement, wanted in zip(
        found[FRAMES + 1 :], pushed(FrameAnalyser(None, fps=10), frames[FRAMES + 1 :]), strict=True
    ):
        assert_same(measurement, wanted)


def test_a_frame_that_is_a_little_late_is_not_a_gap():
    frames = clip(FRAMES + 1)
    late = [*frames[:-1], replace(frames[-1], time_s=frames[-1].time_s + 0.1)]
    assert pushed(FrameAnalyser(None, fps=10), late)[-1].values


def test_a_jump_of_all_brightness_is_disturbed_and_begins_anew():
    frames = clip(3 * FRAMES)
    lit = [replace(frame, pixels_HWC=frame.pixels_HWC // 2 + 90) for frame in frames]
    at = FRAMES + 2
    found = pushed(FrameAnalyser(None), frames[:at] + lit[at:])
    assert [m.disturbed for m in found] == [n == at for n in range(3 * FRAMES)]
    assert not found[at].values
    assert not found[at].grids
    measured = [bool(m.values) for m in found]
    assert measured == [n >= FRAMES and not at <= n < at + FRAMES for n in range(3 * FRAMES)]
    for measurement, wanted in zip(found[at + 1 :], pushed(FrameAnalyser(None), lit[at:])[1:], strict=True):
        assert_same(measurement, wanted)


def test_a_recording_is_measured_as_its_frames_are_one_by_one(net):
    frames = clip(3 * FRAMES)
    analyser = FrameAnalyser(net, normal=NORMAL)
    pushed(analyser, still(3))  # another source before it
    recorded = list(measure(RecordedSource("a", 10.0, (frame for frame in frames)), analyser))
    live = pushed(FrameAnalyser(net, normal=NORMAL), frames)
    assert len(recorded) == len(live) == 3 * FRAMES
    for first, second in zip(recorded, live, strict=True):
        assert_same(first, second)


def test_a_frame_is_measured_by_the_few_before_it_and_nothing_else(net):
    frames = clip(4 * FRAMES)
    long = pushed(FrameAnalyser(net, normal=NORMAL), frames)[-1]
    short = pushed(FrameAnalyser(net, normal=NORMAL), frames[-FRAMES - 1 :])[-1]
    assert_same(long, short)


@pytest.mark.parametrize("size_hw", [(1, 1), (9, 40), (17, 16), (300, 20)])
def test_frames_of_any_size_can_be_measured(net, size_hw):
    rng = np.random.default_rng(0)
    base = rng.integers(60, 190, (*size_hw, 3), np.uint8)
    frames = [Frame(base + np.uint8(n), n / 10) for n in range(FRAMES + 1)]
    found = pushed(FrameAnalyser(net, normal=NORMAL), frames)[-1]
    assert np.isfinite(list(found.values.values())).all()
    assert set(found.values) == set(STREAMS)
    assert len({grid.shape for grid in found.grids.values()}) == 1


def test_colour_is_seen_as_grey():
    frames = clip(FRAMES + 1)
    coloured = []
    for frame in frames:
        pixels = frame.pixels_HWC.copy()
        pixels[..., 2] = 0
        coloured.append(replace(frame, pixels_HWC=pixels))
    grey = [
        replace(f, pixels_HWC=np.repeat(cv2.cvtColor(f.pixels_HWC, cv2.COLOR_RGB2GRAY)[..., None], 3, 2))
        for f in coloured
    ]
    assert_same(pushed(FrameAnalyser(None), coloured)[-1], pushed(FrameAnalyser(None), grey)[-1])


def test_the_encoder_in_bands_of_rows_gives_what_it_gives_at_once():
    torch.manual_seed(0)
    encoder, frame_B1HW = AppearanceEncoder().eval(), torch.rand(1, 1, 208, 512) * 2 - 1
    with torch.no_grad():
        in_bands = encoder(frame_B1HW)
    with torch.enable_grad():  # bands are for inference alone
        at_once = encoder(frame_B1HW)
    torch.testing.assert_close(in_bands, at_once, atol=1e-5, rtol=1e-5)
    assert in_bands.shape == (1, CHANNELS, 26, 64)
