"""What is normal at one camera: scores, thresholds, and the file that keeps them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.errors import InputError, UsageError
from moevision.tasks.anomaly import appearance, calibration
from moevision.tasks.anomaly.appearance import NormalAppearance
from moevision.tasks.anomaly.calibration import SiteCalibration, Statistics, calibrate
from moevision.tasks.anomaly.model import FRAMES
from moevision.tasks.anomaly.streams import Measurement

from .conftest import made, moved

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
