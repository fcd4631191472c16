"""What is normal at one camera, and what the detector says of its frames: calibration, fitting, detection."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError, UsageError
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import Frame
from moevision.tasks.anomaly import appearance, calibration
from moevision.tasks.anomaly.appearance import FeatureSums, NormalAppearance
from moevision.tasks.anomaly.calibration import SiteCalibration, Statistics, Threshold, calibrate
from moevision.tasks.anomaly.detector import AnomalyDetector, boxes_of
from moevision.tasks.anomaly.fit import PRODUCT, fit_site, measure
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutNet, Prediction
from moevision.tasks.anomaly.predict import BrokenOffError, detect, scored_frames
from moevision.tasks.anomaly.streams import FrameAnalyser, Measurement

HEIGHT, WIDTH, FPS = 96, 128, 10.0
BLOB_PX, BLOB_SPEED_PX = 34, 7


def texture(height, width):
    """Smooth grey patches, uint8 (H, W) from 60 to 170."""
    noise = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 60, 170, cv2.NORM_MINMAX).astype(np.uint8)


def blob_left(number, first):
    """Left edge of the large blob, which goes to and fro."""
    way = WIDTH - BLOB_PX
    at = BLOB_SPEED_PX * (number - first) % (2 * way)
    return min(at, 2 * way - at)


def recording(count=40, *, seed=0, blob=None, moving=True, noise=1.0):
    """A still scene with some noise in which a small thing moves slowly.

    Args:
        count: frames.
        seed: of the noise, and of where the small thing begins.
        blob: first and last frame between which something large moves fast.
        moving: whether the small thing is there.
        noise: standard deviation, in grey levels.
    """
    rng = np.random.default_rng(seed)
    begin = int(rng.integers(30))
    background = texture(HEIGHT, WIDTH)
    found = []
    for number in range(count):
        grey = background.copy()
        if moving:
            at = (begin + number) % 180
            left = 10 + min(at, 180 - at)
            grey[12:24, left : left + 12] = 220
        if blob is not None and blob[0] <= number <= blob[1]:
            left = blob_left(number, blob[0])
            grey[50 : 50 + BLOB_PX, left : left + BLOB_PX] = 235
        grey = np.clip(grey + noise * rng.standard_normal(grey.shape), 0, 255).astype(np.uint8)
        found.append(Frame(np.repeat(grey[..., None], 3, 2), number / FPS))
    return found


def source(frames, name="door", fps=FPS):
    return RecordedSource(name, fps, (frame for frame in frames))


def opener(frames, **options):
    return lambda: source(frames, **options)


def larger(frames, factor):
    """The same frames, pixels repeated."""
    return [replace(f, pixels_HWC=f.pixels_HWC.repeat(factor, 0).repeat(factor, 1)) for f in frames]


NORMAL_CLIPS = [recording(seed=1), recording(seed=2)]
UNUSUAL = recording(44, seed=3, blob=(16, 29))


class LastFrameNet(MemoryOutNet):
    """Predicts the last frame, in no time."""

    def forward(self, frames_BTHW, context=None, semantic_BS=None):
        return Prediction(frames_BTHW[:, -1:], None, None)


@pytest.fixture(scope="module")
def site():
    """Of the two normal clips, without a network."""
    return fit_site([opener(frames) for frames in NORMAL_CLIPS], None)


@pytest.fixture(scope="module")
def unusual(site):
    """What a new detector says of UNUSUAL."""
    return pushed(AnomalyDetector(site, None), UNUSUAL)


@pytest.fixture(scope="module")
def descriptor():
    """With an encoder of random weights, which sees frames of 160 px instead of 540."""
    torch.manual_seed(0)
    net = LastFrameNet(replace(PRESETS["test"](), encoder=True)).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance, "LOOK_PX", 160)
        yield ModelDescriptor("test", "anomaly", net, net.config.to_dict(), {})


@pytest.fixture(scope="module")
def looking_site(descriptor):
    """Of the two normal clips, with that network."""
    return fit_site([opener(frames) for frames in NORMAL_CLIPS], descriptor, model="m", model_sha256="s")


def made(**changes):
    """A calibration as such, of two streams."""
    fields = {
        "model": "", "model_sha256": "", "source_size_hw": (480, 640), "fps": 10.0,
        "streams": {"difference": Statistics(1.0, 0.5), "flow": Statistics(-2.0, 0.25)},
        "score": Statistics(0.5, 2.0), "block_maxima": (0.5, 1.25, 2.0), "scores": (-1.0, 0.0, 0.5, 0.5, 1.5),
        "frames": 36_000,
    }  # fmt: skip
    return SiteCalibration(**{**fields, **changes})


def moved(difference, flow=0.0):
    return Measurement({"difference": difference, "flow": flow}, moves=True)


COMMON = {"model": "", "model_sha256": "", "source_size_hw": (480, 640), "fps": 4.0}


def some_clips(seed=0):
    rng = np.random.default_rng(seed)
    clips = [[moved(*pair) for pair in rng.normal(2, 1, (n, 2)).tolist()] for n in (17, 30)]
    return [[Measurement()] * FRAMES + clip for clip in clips]


# Calibration


def test_statistics_are_those_of_a_plain_loop():
    clips = some_clips()
    site = calibrate(clips, **COMMON)
    values = {name: [m.values[name] for clip in clips for m in clip if m.values] for name in ("difference", "flow")}
    for name, of_stream in values.items():
        assert site.streams[name] == pytest.approx((np.mean(of_stream), np.std(of_stream)))

    def total(m):
        return sum(max((m.values[n] - np.mean(v)) / np.std(v), -3) for n, v in values.items())

    totals = [[total(m) for m in clip[FRAMES:]] for clip in clips]
    score = np.mean(np.concatenate(totals)), np.std(np.concatenate(totals))
    assert site.score == pytest.approx(score)
    smooth = [
        [np.mean([(x - score[0]) / score[1] for x in one[max(0, i - 8) : i + 1]]) for i in range(len(one))]
        for one in totals
    ]
    assert site.scores == pytest.approx(sorted(x for one in smooth for x in one), abs=1e-5)
    maxima = []
    for one in smooth:
        padded = [-math.inf] * FRAMES + one
        maxima += [max(padded[i : i + 4]) for i in range(0, len(padded), 4) if max(padded[i : i + 4]) > -math.inf]
    assert site.block_maxima == pytest.approx(maxima, abs=1e-5)
    assert (site.frames, site.hours) == (47, 47 / 4 / 3600)


def test_a_stream_that_never_varies_has_a_least_deviation():
    site = calibrate([[moved(1.0, float(i)) for i in range(20)]], **COMMON)
    assert site.streams["difference"] == (1.0, 0.05)


def test_only_the_streams_asked_for_are_used():
    site = calibrate(some_clips(), **COMMON, streams=("flow",))
    assert list(site.streams) == ["flow"]
    assert calibrate(some_clips(), **COMMON).streams["flow"] == site.streams["flow"]


def test_frames_in_which_nothing_moves_do_not_change_what_is_usual():
    clips = some_clips()
    nothing = Measurement({"difference": -6.9, "flow": -6.9}, moves=False)
    with_pauses = [[*clip, *[nothing] * 50] for clip in clips]
    before, after = calibrate(clips, **COMMON), calibrate(with_pauses, **COMMON)
    assert (before.streams, before.score) == (after.streams, after.score)
    assert after.frames == before.frames + 100


def test_fewer_than_twenty_frames_in_which_something_moves_are_refused():
    clip = [moved(float(i)) for i in range(20)]
    calibrate([clip[:7], clip[7:]], **COMMON)
    still = [replace(m, moves=False) for m in clip]
    for clips in ([clip[:19]], [clip[:19], still], [[Measurement()] * 90], [[]], []):
        with pytest.raises(InputError, match=r"frames only and 20 are the least"):
            calibrate(clips, **COMMON)


def test_a_score_stands_on_the_standardised_streams():
    assert made().raw_score(moved(1.5, -1.5)) == (1 + 2 - 0.5) / 2
    assert math.isnan(made().raw_score(Measurement()))


def test_a_stream_counts_at_the_least_minus_three():
    lowest = (-3 - 3 - 0.5) / 2
    assert made().raw_score(moved(-0.5, -2.75)) == made().raw_score(moved(-1e9, -math.inf)) == lowest
    assert made().raw_score(moved(-1e9, 98.0)) == (-3 + 400 - 0.5) / 2


def test_the_heat_is_the_score_of_every_box():
    rng = np.random.default_rng(0)
    grids = {name: rng.random((3, 4), np.float32) for name in ("difference", "flow")}
    heat = made().heat_grid(Measurement({"difference": 0.0, "flow": 0.0}, grids, moves=True))
    for at in np.ndindex(3, 4):
        box = moved(*(float(np.log(grids[name][at] + 1e-3)) for name in ("difference", "flow")))
        assert heat[at] == pytest.approx(made().raw_score(box), abs=1e-4)
    with pytest.raises(ValueError, match="no heat"):
        made().heat_grid(Measurement())


def test_the_p_value_is_never_zero_and_falls_with_the_score():
    wanted = {-9.0: 1, -1.0: 1, -0.5: 5 / 6, 0.5: 4 / 6, 0.6: 2 / 6, 1.5: 2 / 6, 1.6: 1 / 6, 1e9: 1 / 6}
    for score, p_value in wanted.items():
        assert made().p_value(score) == pytest.approx(p_value)


# Thresholds


def drawn(count=2000, seed=0, kind="exponential"):
    values = getattr(np.random.default_rng(seed), kind)(size=count)
    return made(block_maxima=tuple(values.tolist()), scores=tuple(sorted(values.tolist())))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["exponential", "normal", "random", "standard_cauchy"]), st.integers(1, 150), st.integers(0, 99),
    st.lists(st.floats(0.01, 5000), min_size=2, max_size=3),
)  # fmt: skip
def test_the_threshold_falls_with_the_wanted_rate(kind, count, seed, rates):
    assert_falls(drawn(count, seed, kind), sorted(rates))


def assert_falls(found, rates):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_RESAMPLES", 2)  # the interval is not looked at
        values = [found.threshold_for_rate(rate).value for rate in rates]
    assert values == sorted(values, reverse=True)


def test_the_threshold_falls_also_where_the_tail_begins():
    assert_falls(drawn(100), [3600 * share for share in (0.09, 0.0999, 0.1, 0.1001, 0.11)])  # fitted to 10 of them
    assert_falls(drawn(12), [3600 * share for share in (0.8, 0.83, 0.8334, 0.84)])


@pytest.mark.parametrize("kind", ["exponential", "random"])
@pytest.mark.parametrize("rate", [0.1, 6, 600])
def test_the_interval_holds_the_threshold_and_narrows_with_more_footage(kind, rate):
    short, long = (drawn(count, kind=kind).threshold_for_rate(rate) for count in (150, 1000))
    for threshold in (short, long):
        assert threshold.low <= threshold.value <= threshold.high
    assert long.high - long.low < short.high - short.low
    assert long.asked == f"{rate:g} false alarms an hour"
    assert drawn(1000, kind=kind).threshold_for_rate(rate) == long


@pytest.mark.parametrize("seed", range(4))
def test_the_tail_of_exponential_seconds_is_near_the_true_one(seed):
    """33 minutes of footage, alarms once in an hour: beyond what was seen. A quarter of the value is the tolerance."""
    threshold = drawn(seed=seed).threshold_for_rate(1)
    true = math.log(3600)
    assert threshold.value == pytest.approx(true, rel=0.25)
    assert threshold.low < true < threshold.high


def test_few_or_equal_seconds_still_give_a_threshold():
    assert made(block_maxima=(2.0,)).threshold_for_rate(1)[:3] == (2.0, 2.0, 2.0)
    assert made(block_maxima=(2.0,) * 50).threshold_for_rate(1)[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert np.isfinite(made().threshold_for_rate(1)[:3]).all()


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_rates_that_are_not_positive_are_refused(rate):
    with pytest.raises(UsageError, match="--false-alarms-per-hour"):
        made().threshold_for_rate(rate)


def test_the_threshold_of_a_p_value_is_exceeded_by_that_share_of_frames():
    found = drawn(1000)
    values = []
    for p_value in (0.002, 0.01, 0.1, 0.5):
        threshold = found.threshold_for_p_value(p_value)
        assert threshold.low <= threshold.value <= threshold.high
        assert (np.array(found.scores) > threshold.value).mean() == pytest.approx(p_value, abs=1e-3)
        assert threshold.asked == f"p-value {p_value:g}"
        values.append(threshold.value)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("p_value", [0, -0.1, 1, 1.5, math.nan, 0.16])
def test_p_values_that_the_footage_cannot_give_are_refused(p_value):
    assert made().threshold_for_p_value(0.17).value == pytest.approx(1.5, abs=0.7)
    with pytest.raises(UsageError, match=r"--p-value.*5 normal scores.*more footage"):
        made().threshold_for_p_value(p_value)


# Files


def with_looks():
    rng = np.random.default_rng(0)
    streams = {**made().streams, "appearance": Statistics(3.0, 1.0)}
    normal = NormalAppearance(rng.random(appearance.CHANNELS), rng.random((appearance.CHANNELS, appearance.CHANNELS)))
    return made(model="anomaly-x", model_sha256="ab" * 32, streams=streams, normal=normal)


def test_what_is_written_is_read_again(tmp_path, site):
    for one in (made(), site, replace(site, fps=12.5, block_maxima=(0.1 + 0.2, 1e-300, 5.0))):
        one.write(tmp_path / "a.json")
        assert SiteCalibration.read(tmp_path / "a.json") == one
    looks = with_looks()
    looks.write(tmp_path / "a.json")
    again = SiteCalibration.read(tmp_path / "a.json")
    assert np.array_equal(again.normal.mean_C, looks.normal.mean_C)
    assert np.array_equal(again.normal.precision_CC, looks.normal.precision_CC)
    assert replace(again, normal=None) == replace(looks, normal=None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


DAMAGED = {
    "empty": lambda f: "",
    "text": lambda f: "no calibration",
    "list": lambda f: "[1, 2]",
    "null": lambda f: "null",
    "foreign": lambda f: '{"name": "package", "version": "1.0"}',
    "another format": lambda f: {**f, "format": 2},
    "truncated": lambda f: json.dumps(f)[:-200],
    "a field is missing": lambda f: {k: v for k, v in f.items() if k != "score"},
    "a field too many": lambda f: {**f, "camera": "door"},
    "no scores": lambda f: {**f, "scores": []},
    "no maxima": lambda f: {**f, "block_maxima": []},
    "scores are not finite": lambda f: {**f, "scores": [0.5, math.nan]},
    "deviation 0": lambda f: {**f, "score": {"mean": 0, "deviation": 0}},
    "mean not finite": lambda f: {**f, "streams": {"flow": {"mean": math.inf, "deviation": 1}}},
    "no list of streams": lambda f: {**f, "streams": [1, 2]},
    "no streams": lambda f: {**f, "streams": {}},
    "unknown stream": lambda f: {**f, "streams": {**f["streams"], "smell": {"mean": 0, "deviation": 1}}},
    "appearance without looks": lambda f: {**f, "normal": None},
    "looks of another shape": lambda f: {**f, "normal": {**f["normal"], "mean": [1.0, 2.0]}},
    "looks of too few channels": lambda f: {**f, "normal": {"mean": [1.0], "precision": [[1.0]]}},
    "looks not finite": lambda f: {**f, "normal": {**f["normal"], "mean": [math.nan] * appearance.CHANNELS}},
    "size of one number": lambda f: {**f, "source_size_hw": [480]},
    "size 0": lambda f: {**f, "source_size_hw": [0, 640]},
    "size infinite": lambda f: {**f, "source_size_hw": [math.inf, 640]},
    "fps 0": lambda f: {**f, "fps": 0},
    "fps below 0": lambda f: {**f, "fps": -5.0},
    "fps as text": lambda f: {**f, "fps": "fast"},
    "frames as text": lambda f: {**f, "frames": "many"},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_are_no_calibration_are_refused_with_path_and_remedy(tmp_path, damage):
    path = tmp_path / "site.json"
    with_looks().write(path)
    SiteCalibration.read(path)
    content = DAMAGED[damage](json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        SiteCalibration.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not a site calibration")
    assert text.endswith("make one with moevision anomaly-fit")
    assert "\n" not in text


def test_files_that_cannot_be_read_are_refused_with_path_and_remedy(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read.*moevision anomaly-fit") as caught:
            SiteCalibration.read(path)
        assert str(caught.value).startswith(str(path))
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00 binary")
    with pytest.raises(InputError, match="not a site calibration"):
        SiteCalibration.read(tmp_path / "a.json")


# Fitting


def test_fitting_is_the_same_when_run_twice_and_knows_its_footage(site):
    said = []
    again = fit_site([opener(frames) for frames in NORMAL_CLIPS], None, say=said.append)
    assert again == site
    assert (site.model, site.model_sha256, site.normal) == ("", "", None)
    assert (site.source_size_hw, site.fps, site.frames) == ((HEIGHT, WIDTH), FPS, 2 * (40 - FRAMES))
    assert set(site.streams) == {"difference", "flow"}
    assert [line.split(":")[0] for line in said] == ["clip 1 of 2", "clip 2 of 2"]
    assert "36 frames in which something moves" in said[0]


def test_fitting_is_calibrating_what_was_measured(site):
    measured = [list(measure(source(frames), FrameAnalyser(None, fps=FPS))) for frames in NORMAL_CLIPS]
    common = {"model": "", "model_sha256": "", "source_size_hw": (HEIGHT, WIDTH), "fps": FPS}
    assert calibrate(measured, **common) == site


def test_many_frames_a_second_are_thinned():
    fast = [replace(frame, time_s=number / 25) for number, frame in enumerate(recording(52))]
    found = fit_site([opener(fast, fps=25.0)], None)
    assert (found.fps, found.frames) == (12.5, 26 - FRAMES)
    assert fit_site([opener(fast, fps=25.0)], None, fps=25.0).frames == 52 - FRAMES
    assert fit_site([opener(recording(26), fps=None)], None).fps == 12.5


@pytest.mark.parametrize("fps", [8.0, 15.0, 25.0, 29.97])
def test_the_hours_of_footage_are_those_of_the_source_whatever_its_rate(fps):
    """Of frames a second that are no multiple of 12.5 fewer are analysed, and rates of alarms are by these."""
    count = round(3.4 * fps)
    frames = [replace(frame, time_s=number / fps) for number, frame in enumerate(recording(count))]
    found = fit_site([opener(frames, fps=fps)], None)
    assert found.fps <= 12.5
    assert 3600 * found.hours + FRAMES / found.fps == pytest.approx(3.4, abs=0.15)


def test_footage_that_cannot_be_fitted_is_refused():
    with pytest.raises(InputError, match="no footage"):
        fit_site([], None)
    with pytest.raises(InputError, match=r"garage: 256x192 after 128x96; fit each camera on its own"):
        fit_site([opener(recording(8)), opener(larger(recording(8), 2), name="garage")], None)
    live = source(recording(8), "camera:0")
    live.is_live = True
    with pytest.raises(InputError, match=r"camera:0: is live.*record"):
        fit_site([lambda: live], None)
    with pytest.raises(InputError, match="0 frames only"):
        fit_site([opener(recording(30, moving=False))], None)


def test_with_an_encoder_every_clip_is_compared_with_the_others(descriptor, looking_site):
    assert (looking_site.model, looking_site.model_sha256) == ("m", "s")
    assert set(looking_site.streams) == set(PRODUCT)
    assert "appearance" in PRODUCT

    def seen(frames, **options):
        return list(measure(source(frames), FrameAnalyser(descriptor.model, fps=FPS, **options)))

    looks = [
        [m.features_NC for m in seen(frames, streams=("difference",), collect=True) if m.features_NC is not None]
        for frames in NORMAL_CLIPS
    ]
    everything = FeatureSums.of(np.concatenate([x for clip in looks for x in clip])).normal()
    np.testing.assert_allclose(looking_site.normal.mean_C, everything.mean_C, rtol=1e-6)
    np.testing.assert_allclose(looking_site.normal.precision_CC, everything.precision_CC, rtol=1e-4, atol=1e-4)
    values = []
    for frames, others in zip(NORMAL_CLIPS, looks[::-1], strict=True):
        normal = FeatureSums.of(np.concatenate(others)).normal()
        measured = seen(frames, streams=("appearance",), normal=normal)
        values += [m.values["appearance"] for m in measured if m.values and m.moves]
    assert looking_site.streams["appearance"] == pytest.approx((np.mean(values), np.std(values)), rel=1e-3)


def test_a_single_clip_is_compared_with_its_other_parts(descriptor):
    frames = recording(52)
    site = fit_site([opener(frames)], descriptor, model="m", model_sha256="s")
    own = FrameAnalyser(descriptor.model, normal=site.normal, streams=("appearance",), fps=FPS)
    values = [m.values["appearance"] for m in measure(source(frames), own) if m.values]
    assert site.streams["appearance"].mean > np.mean(values)  # what is compared with itself is too usual


def test_what_looked_at_footage_with_too_little_in_it_is_refused(descriptor):
    with pytest.raises(InputError, match="places moved in the normal footage; more of it"):
        fit_site([opener(recording(12, moving=False))] * 2, descriptor, model="m", model_sha256="s")


@pytest.mark.parametrize(("count", "fps", "words"), [
    (20, 10.0, "20 frames (2.0 s at 10 frames a second)"), (50, 20.0, "25 frames (2.5 s at 10 frames a second)"),
])  # fmt: skip
def test_a_single_clip_of_few_frames_is_refused_with_what_was_read_and_what_is_needed(descriptor, count, fps, words):
    clip = [replace(frame, time_s=number / fps) for number, frame in enumerate(recording(count))]
    with pytest.raises(InputError) as caught:
        fit_site([opener(clip, fps=fps)], descriptor, model="m", model_sha256="s")
    assert f"{words} of normal footage were read" in str(caught.value)
    assert "of a single recording 26 (2.6 s) are the least" in str(caught.value)
    assert "name a longer one, or several" in str(caught.value)


def test_where_all_that_moves_is_in_one_part_or_clip_the_message_says_so(descriptor):
    pauses = recording(60, moving=False)
    pauses[25:50] = [replace(f, time_s=g.time_s) for f, g in zip(recording(25), pauses[25:50], strict=True)]
    for clips, what in (([pauses], "part"), ([recording(30), recording(30, moving=False)], "recording")):
        with pytest.raises(
            InputError, match=rf"60 frames \(6.0 s .*[0-9]+ of the [0-9]+ places.*in one {what}; name more"
        ):
            fit_site([opener(clip) for clip in clips], descriptor, model="m", model_sha256="s")


def test_who_watches_a_fit_sees_every_frame_that_is_read(descriptor):
    read = []
    clips = [opener(recording(30, seed=n), name=f"clip {n}") for n in range(2)]
    fit_site(
        clips, descriptor, model="m", model_sha256="s",
        seen=lambda source, frames: read.append((source.name, frames)),
    )  # fmt: skip
    assert read == 2 * [(f"clip {n}", frames) for n in range(2) for frames in range(1, 31)]


# Detection


def pushed(detector, frames):
    return [detector.push(frame) for frame in frames]


def test_a_network_and_its_calibration_belong_together(site, descriptor):
    with pytest.raises(InputError, match="no model"):
        AnomalyDetector(site, descriptor)
    with pytest.raises(InputError, match="made with ped2 model"):
        AnomalyDetector(replace(site, model="ped2"), None)


def test_sizes_of_another_shape_and_smaller_ones_are_refused():
    detector = AnomalyDetector(made(), None)
    for size_hw in ((480, 640), (960, 1280), (600, 800), (482, 640), (720, 960)):
        detector.check_size(size_hw, "door.mp4")
    for height, width in ((640, 480), (480, 480), (720, 1280), (120, 160), (96, 128)):
        with pytest.raises(InputError, match=rf"door.mp4: frames of {width}x{height}.*on 640x480.*anomaly-fit"):
            detector.check_size((height, width), "door.mp4")


def test_a_source_of_too_few_frames_a_second_is_refused(site):
    detector = AnomalyDetector(site, None)
    list(scored_frames(source(recording(3), fps=8.0), detector, Threshold(1, 1, 1, "")))
    list(scored_frames(source(recording(3), fps=None), detector, Threshold(1, 1, 1, "")))
    with pytest.raises(InputError, match=r"door: 7.9 frames a second.*at 10;.*anomaly-fit"):
        list(scored_frames(source(recording(3), fps=7.9), detector, Threshold(1, 1, 1, "")))


def test_the_score_is_the_mean_of_at_most_nine_raw_scores(unusual):
    raw = [score.raw for score in unusual]
    assert all(math.isnan(x) for x in raw[:FRAMES])
    for number, score in enumerate(unusual):
        assert score.number == number
        assert score.time_s == UNUSUAL[number].time_s
        if number < FRAMES:
            assert math.isnan(score.score)
            assert (score.streams, score.boxes, score.heat_HW.any()) == ({}, (), False)
        else:
            assert score.score == pytest.approx(np.mean(raw[max(FRAMES, number - 8) : number + 1]))
            assert set(score.streams) == {"difference", "flow"}


def test_what_was_calibrated_on_is_scored_as_it_was_calibrated(site):
    detector, scores = AnomalyDetector(site, None), []
    for frames in NORMAL_CLIPS:
        detector.restart()
        scores += [score.score for score in pushed(detector, frames)][FRAMES:]
    assert sorted(scores) == pytest.approx(site.scores, abs=1e-5)


def test_frames_between_those_analysed_keep_the_last_score(site, unusual):
    twice = [Frame(f.pixels_HWC, f.time_s + late_s) for f in UNUSUAL for late_s in (0, 0.05)]
    found = pushed(AnomalyDetector(site, None), twice)
    assert [score.number for score in found] == list(range(len(twice)))
    assert [score.time_s for score in found] == [frame.time_s for frame in twice]
    for analysed, between, wanted in zip(found[::2], found[1::2], unusual, strict=True):
        assert (analysed.analysed, between.analysed) == (True, False)
        for name in ("score", "raw"):
            expected = getattr(wanted, name)
            assert [getattr(analysed, name), getattr(between, name)] == pytest.approx([expected] * 2, nan_ok=True)
        assert analysed.boxes == between.boxes == wanted.boxes
        np.testing.assert_array_equal(between.heat_HW, wanted.heat_HW)


def test_a_restarted_detector_has_forgotten_everything(site):
    frames, detector = NORMAL_CLIPS[0][:14], AnomalyDetector(site, None)
    pushed(detector, UNUSUAL[10:20])
    detector.restart()
    again, new = pushed(detector, frames), pushed(AnomalyDetector(site, None), frames)
    assert [score.score for score in again] == pytest.approx([score.score for score in new], nan_ok=True)


def test_a_disturbed_frame_has_no_score_and_neither_have_those_after_it(site):
    at = 20
    frames = recording(40, seed=5)
    lit = [replace(frame, pixels_HWC=frame.pixels_HWC // 2 + 80) for frame in frames]
    found = pushed(AnomalyDetector(site, None), frames[:at] + lit[at:])
    assert [score.disturbed for score in found] == [number == at for number in range(40)]
    unscored = [math.isnan(score.score) for score in found]
    assert unscored == [number < FRAMES or at <= number < at + FRAMES for number in range(40)]


def test_boxes_are_in_pixels_of_the_source_and_inside_the_frame(site, unusual):
    detector = AnomalyDetector(site, None)
    for factor, found in ((1, unusual), (2, pushed(detector, larger(UNUSUAL[10:20], 2)))):
        boxes = [box for score in found for box in score.boxes]
        assert boxes
        for box in boxes:
            assert 0 <= box.left_px < box.right_px <= factor * WIDTH
            assert 0 <= box.top_px < box.bottom_px <= factor * HEIGHT
            assert box.score > detector.box_threshold


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 12), st.floats(0.2, 5), st.integers(0, 999))
def test_boxes_hold_all_that_is_hot_and_the_hottest_comes_first(rows, columns, scale, seed):
    grid = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    size_hw = 8 * (rows + 1), 8 * (columns + 1)
    source_hw = round(size_hw[0] * scale), round(size_hw[1] * scale)
    boxes = boxes_of(grid, 0.5, size_hw, source_hw)
    assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)
    assert bool(boxes) == bool((grid > 0.5).any())
    if boxes:
        assert boxes[0].score == grid.max()
    for box in boxes:
        assert 0 <= box.left_px < box.right_px <= source_hw[1]
        assert 0 <= box.top_px < box.bottom_px <= source_hw[0]
    for row, column in np.argwhere(grid > 0.5) if len(boxes) < 20 else []:
        y, x = 8 * (1 + row) * source_hw[0] / size_hw[0], 8 * (1 + column) * source_hw[1] / size_hw[1]
        assert any(b.left_px <= x <= b.right_px and b.top_px <= y <= b.bottom_px for b in boxes)


def test_of_very_many_boxes_the_hottest_are_kept():
    grid = np.zeros((12, 12), np.float32)
    grid[::2, ::2] = np.arange(36).reshape(6, 6) + 1
    boxes = boxes_of(grid, 0.5, (104, 104), (104, 104))
    assert [box.score for box in boxes] == list(range(36, 16, -1))


def test_the_heat_is_highest_on_what_moves(site):
    frames = recording(30, seed=4, blob=(8, 29), moving=False)
    found = pushed(AnomalyDetector(site, None), frames)
    for score in found[FRAMES + 6 :]:
        assert score.heat_HW.shape == (HEIGHT, WIDTH)
        row, column = np.unravel_index(score.heat_HW.argmax(), score.heat_HW.shape)
        lefts = [blob_left(n, 8) for n in (score.number - 1, score.number)]
        assert 50 - 8 <= row <= 50 + BLOB_PX + 8
        assert min(lefts) - 8 <= column <= max(lefts) + BLOB_PX + 8


def test_something_large_and_fast_is_found_where_only_slow_and_small_things_are_usual(site, unusual):
    detector = AnomalyDetector(site, None)
    found = detect(source(UNUSUAL), detector, site.threshold_for_rate(1))
    assert len(found.scores) == len(found.times_s) == len(UNUSUAL)
    np.testing.assert_array_equal(found.scores, [score.score for score in unusual])
    raw = [score.raw for score in unusual]
    normal = [raw[n] for n in range(FRAMES, len(raw)) if not 16 <= n <= 30]
    for frames in NORMAL_CLIPS:
        normal += [score.raw for score in pushed(AnomalyDetector(site, None), frames)][FRAMES:]
    assert min(raw[16:31]) > max(normal) + 5  # 30: it is gone, and that is a change, too
    (event,) = found.events
    assert 16 <= event.start_frame <= 18
    assert 29 <= event.end_frame <= 30 + 9
    assert 16 <= event.peak_s * FPS <= 31
    assert_on_blob(event)
    calm = detect(source(recording(40, seed=9)), detector, site.threshold_for_rate(1))
    assert calm.events == []


def assert_on_blob(event):
    box, left = event.boxes[0], blob_left(round(event.peak_s * FPS), 16)
    assert min(box.right_px, left + BLOB_PX) - max(box.left_px, left) > BLOB_PX / 2
    assert min(box.bottom_px, 50 + BLOB_PX) - max(box.top_px, 50) > BLOB_PX / 2


def test_it_is_found_with_a_network_too_and_twice_the_same(descriptor, looking_site):
    threshold = looking_site.threshold_for_rate(1)
    found, again = (
        detect(source(frames), AnomalyDetector(looking_site, descriptor), threshold)
        for frames in (UNUSUAL, UNUSUAL[:20])
    )
    (event,) = found.events
    assert_on_blob(event)
    np.testing.assert_array_equal(found.scores[:20], again.scores)


def test_a_detector_forgets_the_source_before(site):
    detector, threshold = AnomalyDetector(site, None), site.threshold_for_rate(1)
    first, second = (detect(source(UNUSUAL), detector, threshold) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert first.events
    assert first.events == second.events  # frames are counted from 0 in every source


def test_a_detector_takes_sources_of_several_sizes_one_after_the_other(site):
    detector, threshold = AnomalyDetector(site, None), site.threshold_for_rate(1)
    detect(source(NORMAL_CLIPS[0][:8]), detector, threshold)
    after = detect(source(larger(NORMAL_CLIPS[0][:20], 2)), detector, threshold).scores
    alone = detect(source(larger(NORMAL_CLIPS[0][:20], 2)), AnomalyDetector(site, None), threshold).scores
    np.testing.assert_array_equal(after, alone)


def test_a_larger_source_is_scored_as_at_the_size_of_the_calibration(site):
    threshold = site.threshold_for_rate(1)
    own, large = (
        detect(source(larger(NORMAL_CLIPS[0][:20], n)), AnomalyDetector(site, None), threshold) for n in (1, 2)
    )
    np.testing.assert_allclose(large.scores, own.scores, atol=0.5)


def test_every_frame_comes_once_and_the_last_again_with_the_event_that_its_end_ends(site):
    frames = recording(40, seed=3, blob=(16, 60))
    threshold = site.threshold_for_rate(1)
    scored = list(scored_frames(source(frames), AnomalyDetector(site, None), threshold))
    assert [s.score.number for s in scored] == [*range(40), 39]
    assert [s.ended is not None for s in scored] == [False] * 40 + [True]
    assert scored[39].alarm
    found = detect(source(frames), AnomalyDetector(site, None), threshold)
    assert found.events == [scored[-1].ended]
    assert len(found.scores) == 40


class Interrupted(RecordedSource):
    """Its connection was lost before frame 8."""

    def _read(self):
        frame = super()._read()
        self.restarted = round(frame.time_s * FPS) == 8
        return frame


def test_what_was_before_a_lost_connection_is_no_past(site):
    frames = UNUSUAL[10:28]
    before, after = [replace(f, time_s=f.time_s - 1) for f in frames[:8]], frames[8:]
    lost = Interrupted("door", FPS, (replace(f, time_s=n / FPS) for n, f in enumerate(frames)))
    scored = [s.score for s in scored_frames(lost, AnomalyDetector(site, None), Threshold(99, 99, 99, ""))]
    alone = [pushed(AnomalyDetector(site, None), part) for part in (before, after)]
    wanted = [score.score for part in alone for score in part]
    assert [score.score for score in scored] == pytest.approx(wanted, nan_ok=True)
    assert [score.number for score in scored] == list(range(18))
    lost = Interrupted("door", FPS, (replace(f, time_s=n / FPS) for n, f in enumerate(frames)))
    measured = list(measure(lost, FrameAnalyser(None)))
    assert [bool(m.values) for m in measured] == [n % 8 >= FRAMES or n >= 16 for n in range(18)]


def test_detection_can_end_early_and_keep_no_scores(site):
    said = []
    found = detect(
        source(UNUSUAL), AnomalyDetector(site, None), site.threshold_for_rate(1), keep_scores=False, duration_s=1.0,
        say=said.append,
    )  # fmt: skip
    assert (found.times_s, found.scores, found.events) == ([], [], [])
    assert [s.score.number for s in said] == list(range(10))
    for duration_s in (0.0, -1.0):
        with pytest.raises(UsageError, match="above 0"):
            detect(source(UNUSUAL[:5]), AnomalyDetector(site, None), Threshold(9, 9, 9, ""), duration_s=duration_s)


def broken(frames):
    yield from frames
    raise InputError("door: the film tore; mend it")


def test_a_source_that_breaks_off_ends_there_and_its_open_event_is_found(site):
    threshold = site.threshold_for_rate(1)
    detector = AnomalyDetector(site, None)
    scored = scored_frames(RecordedSource("door", FPS, broken(UNUSUAL[:25])), detector, threshold)
    assert [next(scored).score.number for _ in range(26)] == [*range(25), 24]
    with pytest.raises(BrokenOffError, match=r"^door: broke off at 0:00:02.400: the film tore; mend it$"):
        next(scored)
    found = detect(RecordedSource("door", FPS, broken(UNUSUAL[:25])), detector, threshold)
    whole = detect(source(UNUSUAL[:25]), detector, threshold)
    assert (found.broken_off, whole.broken_off) == ("at 0:00:02.400: the film tore; mend it", None)
    assert replace(found, broken_off=None, scores=[]) == replace(whole, scores=[])
    np.testing.assert_array_equal(found.scores, whole.scores)
    assert len(found.events) == 1


def test_what_cannot_be_written_is_no_source_that_broke_off(site):
    def full(_):
        raise InputError("out: cannot be written (No space left on device)")

    with pytest.raises(InputError, match="No space left") as caught:
        detect(source(UNUSUAL[:8]), AnomalyDetector(site, None), Threshold(9, 9, 9, ""), say=full)
    assert not isinstance(caught.value, BrokenOffError)


def darkened():
    """The light goes down at frame 10."""
    lit = recording(20)
    return lit[:10] + [replace(frame, pixels_HWC=frame.pixels_HWC // 3) for frame in lit[10:]]


def test_disturbed_frames_are_counted(site):
    assert detect(source(darkened()), AnomalyDetector(site, None), Threshold(9, 9, 9, "")).disturbed == 1


def test_a_disturbed_frame_is_counted_once_whatever_the_source_has_between_frames_analysed(site):
    twice = [Frame(f.pixels_HWC, f.time_s + late_s) for f in darkened() for late_s in (0, 0.05)]
    assert detect(source(twice, fps=20.0), AnomalyDetector(site, None), Threshold(9, 9, 9, "")).disturbed == 1
