"""Events from scores: how they begin, end, join and are dropped, and that an alarm is never taken back."""

import itertools
import math

import numpy as np
import pytest

from moevision.errors import UsageError
from moevision.tasks.anomaly.events import Event, EventTracker, find_events
from moevision.tasks.anomaly.scores import Box, FrameScore

NAN = math.nan
NO_HEAT = np.zeros((0, 0), np.float32)


def score(number, value, fps=10, disturbed=False):
    box = Box(number, 0, number + 1, 1, value)
    return FrameScore(number, number / fps, value, value, {}, NO_HEAT, (box,), disturbed)


def scores(values, fps=10, disturbed=()):
    return [score(number, value, fps, number in disturbed) for number, value in enumerate(values)]


def spans(values, threshold=2.0, fps=10, disturbed=(), **options):
    found = find_events(scores(values, fps, disturbed), threshold, **options)
    return [(event.start_frame, event.end_frame) for event in found]


def test_an_event_has_its_first_and_last_frame_and_the_boxes_of_its_peak():
    (event,) = find_events(scores([0] * 5 + [3, 4, 5, 9, 5, 4, 3] + [0] * 20), 2)
    assert event == Event(0.5, 1.1, 5, 11, 0.8, 9, (Box(8, 0, 9, 1, 9),))
    assert event.length_s == pytest.approx(0.6)


def test_the_peak_is_found_also_among_the_frames_that_started_the_event():
    (event,) = find_events(scores([0, 9, 3, 3, 3, 3, 3, 3, 0]), 2)
    assert (event.start_frame, event.peak_s, event.peak_score) == (1, 0.1, 9)


def test_four_of_six_frames_start_an_event_and_three_do_not():
    assert spans([0] * 9 + [3, 0, 3, 0, 3, 3] + [3] * 4 + [0] * 9) == [(9, 18)]
    assert spans([0, 3, 0, 3, 3, 0, 0, 0] * 5) == []
    assert spans([3, 3, 3, 0, 0, 0] * 5) == []


def test_a_score_at_the_threshold_does_not_start_one():
    assert spans([2] * 20) == []


def test_an_event_goes_on_until_the_score_falls_below_the_threshold_less_its_margin():
    assert spans([3] * 6 + [1.5, 1.4, 1.5] + [0] * 20) == [(0, 8)]
    assert spans([3] * 6 + [1.3] * 20) == [(0, 5)]
    assert spans([3] * 6 + [1.3] * 5 + [0] * 20, off_margin=1) == [(0, 10)]


def test_a_threshold_below_zero_has_its_margin_below_it():
    assert spans([-5] * 5 + [-1] * 6 + [-2.5] * 3 + [-5] * 20, threshold=-2) == [(5, 13)]


def test_short_events_are_dropped():
    assert spans([0] * 3 + [3] * 4 + [0] * 20) == []  # 0.3 s
    assert spans([0] * 3 + [3] * 5 + [0] * 20) == [(3, 7)]  # 0.4 s
    assert spans([0] * 3 + [3] * 10 + [0] * 60, fps=25) == []


def test_events_less_than_a_second_apart_are_one_and_a_second_apart_are_two():
    assert spans([3] * 6 + [0] * 9 + [3] * 6) == [(0, 5), (15, 20)]  # from 0.5 to 1.5 s
    assert spans([3] * 6 + [0] * 8 + [3] * 6) == [(0, 19)]
    assert spans([3] * 4 + [0] * 8 + [3] * 4 + [0] * 30) == [(0, 15)]  # each alone would be too short


def test_the_peak_of_joined_events_is_the_highest_frame_from_end_to_end():
    (event,) = find_events(scores([3] * 6 + [0, 0, 9, 0, 0, 0, 0] + [4] * 6), 2)
    assert (event.start_frame, event.end_frame, event.peak_s, event.peak_score) == (0, 18, 0.8, 9)


def test_frames_of_an_event_that_ended_do_not_start_the_next():
    assert spans([3] * 10 + [0, 3, 0, 0, 0, 0] + [0] * 20) == [(0, 9)]


def test_disturbed_and_unscored_frames_neither_start_nor_end_an_event():
    assert spans([9] * 20, disturbed=range(20)) == []
    assert spans([NAN] * 20) == []
    assert spans([3] * 6 + [NAN] * 30 + [3] * 2 + [0] * 20) == [(0, 37)]
    assert spans([3] * 6 + [0] * 30 + [0] * 20, disturbed=range(6, 36)) == [(0, 5)]
    assert spans([3, NAN, 3, NAN, 3, NAN, 3] + [0] * 9) == [(0, 6)]
    assert spans([3] * 3 + [NAN] * 15 + [3] + [0] * 9) == []  # 1.6 s without a score part them


def test_an_event_is_told_once_nothing_can_join_it():
    tracker = EventTracker(2)
    told = [tracker.push(s) for s in scores([3] * 6 + [0] * 20)]
    assert [number for number, event in enumerate(told) if event] == [15]
    assert tracker.finish() is None
    told = [tracker.push(s) for s in scores([3] * 6 + [0] + [NAN] * 20)]
    assert [number for number, event in enumerate(told) if event] == [15]


def test_the_end_of_the_source_ends_an_event_and_leaves_the_tracker_as_new():
    tracker = EventTracker(2)
    for _ in range(2):
        assert [tracker.push(s) for s in scores([0, 0] + [3] * 6)] == [None] * 8
        event = tracker.finish()
        assert event is not None
        assert (event.start_frame, event.end_frame) == (2, 7)
        assert not tracker.active
    assert tracker.finish() is None


def test_single_frames_can_be_events():
    assert spans([0, 3, 0], needed=1, of=1, min_length_s=0, merge_gap_s=0) == [(1, 1)]
    assert spans([3, 0, 3, 3, 0, 3], needed=1, of=1, min_length_s=0, merge_gap_s=0) == [(0, 0), (2, 3), (5, 5)]


@pytest.mark.parametrize("seed", range(20))
def test_alarms_lie_in_events_and_every_event_has_one(seed):
    rng = np.random.default_rng(seed)
    values = np.convolve(rng.normal(0, 4, 600), np.ones(5) / 5, "same")
    values[rng.random(600) < 0.1] = NAN
    tracker, alarms, events = EventTracker(1.5), [], []
    for s in scores(values):
        events.append(tracker.push(s))
        alarms += [s.number] if tracker.active and not math.isnan(s.score) else []
    events = [event for event in (*events, tracker.finish()) if event]
    assert len(events) > 3
    assert all(any(event.start_frame <= number <= event.end_frame for event in events) for number in alarms)
    assert all(any(event.start_frame <= number <= event.end_frame for number in alarms) for event in events)
    assert all(event.length_s >= 0.4 for event in events)
    assert all(b.start_s - a.end_s >= 1.0 for a, b in itertools.pairwise(events))
    for event in events:
        inside = [v for v in values[event.start_frame : event.end_frame + 1] if not math.isnan(v)]
        assert event.peak_score == max(inside)
    assert events == find_events(scores(values), 1.5)


def test_settings_that_make_no_sense_are_refused():
    for threshold, options in (
        (NAN, {}),
        (math.inf, {}),
        (1, {"off_margin": -1}),
        (1, {"needed": 7}),
        (1, {"needed": 0}),
        (1, {"min_length_s": -1}),
        (1, {"merge_gap_s": NAN}),
    ):
        with pytest.raises(UsageError):
            EventTracker(threshold, **options)
