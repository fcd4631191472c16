"""What the detector says of the frames of one camera, and of a source that breaks off."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.errors import InputError, UsageError
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.calibration import Threshold
from moevision.tasks.anomaly.detector import AnomalyDetector, boxes_of
from moevision.tasks.anomaly.fit import measure
from moevision.tasks.anomaly.model import FRAMES
from moevision.tasks.anomaly.predict import BrokenOffError, detect, scored_frames
from moevision.tasks.anomaly.streams import FrameAnalyser

from .conftest import (
    BLOB_PX,
    FPS,
    HEIGHT,
    NORMAL_CLIPS,
    UNUSUAL,
    WIDTH,
    blob_left,
    larger,
    made,
    pushed,
    recording,
    source,
)


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
