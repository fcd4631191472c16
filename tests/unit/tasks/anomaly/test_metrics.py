"""Measures of the anomaly detector: against deliberately dumb references, and values worked out by hand."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from moevision.tasks.anomaly.localisation import pointing_game, rbdc_tbdc, region_curves
from moevision.tasks.anomaly.metrics import (
    ClipScores,
    abnormal_events,
    bootstrap_auc,
    bootstrap_gain,
    causal_mean,
    equal_error_rate,
    event_recall_and_delay,
    frame_metrics,
    gaussian,
    honest,
    min_max,
    poisson_interval,
    published,
    roc_auc,
)
from moevision.tasks.anomaly.scores import Box

NAN = math.nan
# Few values, so that ties are common.
frames = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), max_size=30)
# 8-connected inside a frame, the same pixel from frame to frame.
SAME_PLACE = np.pad([[1]], 1)
TRACK_NEIGHBOURS = np.stack([SAME_PLACE, np.ones((3, 3)), SAME_PLACE])


def clip(label, score, name="clip", **parts):
    return ClipScores(name, np.array(score, np.float64), np.array(label, np.uint8), **parts)


def plain(one):
    """A protocol that changes nothing."""
    return one.score_T


def random_clips(seed, count=5, missing=0.2, shift=1.0):
    """Of different lengths, some with one class only, some frames not scored; labels depend on `count` alone."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(count)
    made = []
    for number in range(count):
        label = (np.arange(truth.integers(4, 40)) >= truth.integers(0, 20)).astype(np.uint8)
        score = np.round(rng.normal(size=label.size) + shift * label, 1)
        score[rng.random(label.size) < missing] = NAN
        made.append(clip(label, score, f"{number}"))
    return made


def square(t, h, w, *objects):
    """(T, H, W) mask that is True in each (frames, rows, columns)."""
    mask = np.zeros((t, h, w), bool)
    for one in objects:
        mask[one] = True
    return mask


def boxes(t, *found):
    """Per frame, from (frame, left, top, right, bottom, score)."""
    return tuple(tuple(Box(*box[1:]) for box in found if box[0] == frame) for frame in range(t))


def located(mask, found=(), **parts):
    return clip(mask.any((1, 2)), np.zeros(len(mask)), mask_THW=mask, boxes=boxes(len(mask), *found), **parts)


# --- frames ---


@settings(max_examples=100, deadline=None, derandomize=True)
@given(frames)
def test_auc_is_the_share_of_pairs_in_order_with_half_a_pair_for_a_tie(found):
    abnormal, normal = ([score for label, score in found if label == wanted] for wanted in (1, 0))
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in abnormal for b in normal)
    expected = wins / (len(abnormal) * len(normal)) if abnormal and normal else NAN
    measured = roc_auc([label for label, _ in found], [score for _, score in found])
    assert measured == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(frames)
def test_equal_error_rate_is_where_the_roc_of_straight_lines_meets_the_diagonal(found):
    count = {wanted: sum(label == wanted for label, _ in found) for wanted in (0, 1)}
    measured = equal_error_rate([label for label, _ in found], [score for _, score in found])
    if not all(count.values()):
        assert math.isnan(measured)
        return
    points = []
    for level in range(4, -4, -1):
        reached = [sum(score >= level for label, score in found if label == wanted) for wanted in (0, 1)]
        points.append((Fraction(reached[0], count[0]), 1 - Fraction(reached[1], count[1])))
    for (false, miss), (next_false, next_miss) in pairwise(points):
        if false - miss <= 0 <= next_false - next_miss and next_false - next_miss > false - miss:
            part = (miss - false) / (next_false - next_miss - false + miss)
            assert measured == pytest.approx(float(false + part * (next_false - false)), abs=1e-12)
            break
    else:
        pytest.fail("the curve crosses the diagonal somewhere")


@pytest.mark.parametrize(
    ("label", "score", "auc", "eer"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75, 0.5),
        ([0, 0, 1, 1], [1, 2, 3, 4], 1, 0),
        ([0, 0, 1, 1], [4, 3, 2, 1], 0, 1),
        ([0, 1, 0, 1], [7, 7, 7, 7], 0.5, 0.5),
        ([0, 1], [-math.inf, math.inf], 1, 0),
    ],
)
def test_auc_and_equal_error_rate_have_known_values(label, score, auc, eer):
    assert roc_auc(label, score) == auc
    assert equal_error_rate(label, score) == eer


@pytest.mark.parametrize("measure", [roc_auc, equal_error_rate])
def test_one_class_is_undefined_and_frames_without_score_are_refused(measure):
    assert math.isnan(measure([], []))
    assert math.isnan(measure([1, 1], [0, 1]))
    assert math.isnan(measure([0, 0], [0, 1]))
    with pytest.raises(ValueError, match="not scored"):
        measure([0, 1], [0, NAN])
    with pytest.raises(ValueError, match="0 or 1"):
        measure([0, 2], [0, 1])
    with pytest.raises(ValueError, match="one length"):
        measure([0, 1], [0, 1, 2])


# --- smoothing and protocols ---


def test_causal_mean_takes_the_scored_frames_up_to_now():
    score = np.array([NAN, 1, 3, NAN, 5, 7.0])
    assert causal_mean(score, 2) == pytest.approx([NAN, 1, 2, NAN, 4, 6], nan_ok=True)
    assert causal_mean(score, 1) == pytest.approx(score, nan_ok=True)
    assert causal_mean(np.arange(12.0))[-1] == np.arange(3, 12).mean()


def test_causal_mean_does_not_see_the_future_and_the_gaussian_does():
    score = np.random.default_rng(0).normal(size=40)
    for now in range(1, 40):
        other = np.append(score[:now], 1e6 + score[now:])
        assert (causal_mean(other)[:now] == causal_mean(score)[:now]).all()
        assert (gaussian(other)[now - 1] != gaussian(score)[now - 1]).all()


@pytest.mark.parametrize("sigma", [0.4, 1, 3, 5, 8.3])
@pytest.mark.parametrize("length", [1, 2, 7, 60])
def test_gaussian_is_scipys_even_where_the_clip_is_shorter_than_the_window(length, sigma):
    score = np.random.default_rng(length).normal(size=length)
    assert gaussian(score, sigma) == pytest.approx(ndimage.gaussian_filter1d(score, sigma), abs=1e-12)


def test_smoothing_that_holds_no_frame_is_refused():
    with pytest.raises(ValueError, match="window"):
        causal_mean(np.zeros(3), 0)
    with pytest.raises(ValueError, match="sigma"):
        gaussian(np.zeros(3), 0)


def test_min_max_stretches_a_clip_and_makes_a_constant_one_zero():
    assert min_max(np.array([NAN, 2, 4, 3])) == pytest.approx([NAN, 0, 1, 0.5], nan_ok=True)
    assert min_max(np.array([5, NAN, 5])) == pytest.approx([0, NAN, 0], nan_ok=True)


@pytest.mark.parametrize("change", [causal_mean, gaussian, min_max])
@pytest.mark.parametrize("length", [0, 3])
def test_clips_without_any_score_stay_without(change, length):
    assert np.isnan(change(np.full(length, NAN))).all()
    assert change(np.full(length, NAN)).shape == (length,)


def test_protocols_work_on_the_scored_frames_alone():
    score = np.random.default_rng(0).normal(size=50)
    scored = np.arange(50) % 7 > 0
    holed = clip(np.zeros(50), np.where(scored, score, NAN))
    dense = score[scored]
    stretched = (dense - dense.min()) / (dense.max() - dense.min())
    assert published(holed)[scored] == pytest.approx(ndimage.gaussian_filter1d(stretched, 5), abs=1e-12)
    assert honest(holed)[scored] == pytest.approx([dense[max(0, i - 8) : i + 1].mean() for i in range(dense.size)])
    assert np.isnan(published(holed)[~scored]).all()
    assert np.isnan(honest(holed)[~scored]).all()


def test_only_the_published_protocol_forgives_clips_of_different_scales():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    pair = [clip(label, rng.normal(size=60) + 3 * label), clip(label, 100 + rng.normal(size=60) + 3 * label)]
    assert frame_metrics(pair, published)["micro_auc"] > 0.99
    assert frame_metrics(pair, honest)["micro_auc"] < 0.8


def test_frame_metrics_are_those_worked_out_by_hand():
    pair = [clip([0, 0, 1], [0, 2, 1]), clip([0, 1, 0], [5, 6, NAN])]
    measured = frame_metrics(pair, plain)
    # Abnormal 1 and 6 against normal 0, 2 and 5: 1 + 3 of 6 pairs.
    assert measured["micro_auc"] == pytest.approx(4 / 6)
    assert measured["macro_auc"] == pytest.approx((1 / 2 + 1) / 2)
    # With (0, -inf) and (1, +inf) the first clip wins 2 + 3 of 6 pairs.
    assert measured["macro_auc_padded"] == pytest.approx((5 / 6 + 1) / 2)
    assert measured["eer"] == pytest.approx(0.5)


def test_padding_makes_clips_of_one_class_perfect():
    measured = frame_metrics([clip([1, 1, 1], [3, 1, 2])], plain)
    assert measured.pop("macro_auc_padded") == 1
    assert all(math.isnan(value) for value in measured.values())
    unscored = frame_metrics([clip([0, 1], [NAN, NAN])], plain)
    assert all(math.isnan(value) for value in unscored.values())


# --- bootstrap ---


def naive_aucs(clips, resamples, seed):
    aucs = []
    for draw in np.random.default_rng(seed).integers(len(clips), size=(resamples, len(clips))):
        label, score = (np.concatenate([getattr(clips[i], name) for i in draw]) for name in ("label_T", "score_T"))
        aucs.append(roc_auc(label[~np.isnan(score)], score[~np.isnan(score)]))
    return np.array(aucs)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_is_that_of_the_frames_drawn_clip_by_clip(seed):
    clips = random_clips(seed)
    aucs = naive_aucs(clips, 60, seed)
    assert bootstrap_auc(clips, plain, 60, seed) == pytest.approx(np.nanpercentile(aucs, (2.5, 97.5)))


def test_gain_is_paired_and_on_frames_that_both_score():
    ours, theirs = random_clips(1), random_clips(2, shift=0.3)
    both = [~np.isnan(a.score_T) & ~np.isnan(b.score_T) for a, b in zip(ours, theirs, strict=True)]
    cut = [
        [clip(c.label_T, np.where(m, c.score_T, NAN)) for c, m in zip(part, both, strict=True)]
        for part in (ours, theirs)
    ]
    gains = naive_aucs(cut[0], 60, 4) - naive_aucs(cut[1], 60, 4)
    measured = bootstrap_gain(ours, theirs, plain, 60, 4)
    assert measured == pytest.approx(np.nanpercentile(gains, (2.5, 50, 97.5)))
    swapped = bootstrap_gain(theirs, ours, plain, 60, 4)
    assert swapped == pytest.approx([-value for value in reversed(measured)])


def test_detector_gains_nothing_over_itself_and_a_sure_gain_excludes_zero():
    clips = random_clips(0, count=8, missing=0)
    assert bootstrap_gain(clips, clips, honest) == (0, 0, 0)
    perfect = [clip(c.label_T, c.label_T, c.name) for c in clips]
    assert bootstrap_gain(perfect, clips, honest)[0] > 0


def test_resamples_with_one_class_are_left_out():
    normal, abnormal = clip([0, 0], [0, 1], "a"), clip([1, 1], [2, 3], "b")
    assert bootstrap_auc([normal, abnormal], plain, 50) == (1, 1)
    assert np.isnan(bootstrap_auc([abnormal, abnormal], plain, 50)).all()
    assert np.isnan(bootstrap_gain([normal], [normal], plain, 50)).all()


def test_gain_over_other_clips_is_refused():
    one, named, labelled = clip([0, 1], [0, 1], "a"), clip([0, 1], [0, 1], "b"), clip([1, 1], [0, 1], "a")
    for others in ([named], [labelled], [], [one, one]):
        with pytest.raises(ValueError, match="same clips"):
            bootstrap_gain([one], others, plain)


# --- events ---


@pytest.mark.parametrize(
    ("label", "events"),
    [([], []), ([0, 0], []), ([1, 1], [(0, 2)]), ([1, 0, 1, 1, 0], [(0, 1), (2, 4)]), ([0, 1], [(1, 2)])],
)
def test_events_are_the_runs_of_abnormal_frames(label, events):
    assert abnormal_events(np.array(label, np.uint8)) == events


def test_recall_delay_and_false_alarms_are_those_worked_out_by_hand():
    clips = [
        clip([0, 0, 0, 1, 1, 1, 0, 0, 1, 1], [NAN] + [0] * 9, fps=10),
        clip([1, 1, 0, 0, 0], [0] * 5, fps=2),
    ]
    alarms = [
        # A false alarm; one that comes 0.2 s late and stays; nothing in the second event.
        np.array([0, 1, 0, 0, 0, 1, 1, 0, 0, 0], bool),
        # On from the start; then two false ones.
        np.array([1, 0, 1, 0, 1], bool),
    ]
    report = event_recall_and_delay(clips, alarms)
    hours = (4 / 10 + 3 / 2) / 3600
    assert report["event_recall"] == pytest.approx(2 / 3)
    assert report["delay_s_mean"] == pytest.approx(0.1)
    assert report["delay_s_max"] == pytest.approx(0.2)
    assert report["false_alarms"] == 3
    assert report["normal_hours"] == pytest.approx(hours)
    assert report["false_alarms_per_hour"] == pytest.approx(3 / hours)
    assert report["false_alarms_per_hour_95"] == poisson_interval(3, report["normal_hours"])


def test_events_that_are_not_there_or_not_noticed_are_undefined_not_zero():
    normal = event_recall_and_delay([clip([0] * 10, [0] * 10)], [np.zeros(10, bool)])
    assert math.isnan(normal["event_recall"])
    assert normal["false_alarms_per_hour"] == 0
    abnormal = event_recall_and_delay([clip([1] * 10, [0] * 10)], [np.zeros(10, bool)])
    assert abnormal["event_recall"] == 0
    assert abnormal["normal_hours"] == 0
    undefined = [abnormal["delay_s_mean"], abnormal["delay_s_max"], abnormal["false_alarms_per_hour"]]
    assert np.isnan([*undefined, *abnormal["false_alarms_per_hour_95"]]).all()


def test_alarms_that_do_not_fit_the_clips_are_refused():
    for alarms in ([], [np.zeros(3, bool)], [np.zeros(2, bool)] * 2):
        with pytest.raises(ValueError, match="one value per frame"):
            event_recall_and_delay([clip([0, 1], [0, 1])], alarms)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 57, 200, 5000])
def test_poisson_interval_is_that_of_the_chi_square_quantiles(count):
    low = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0
    high = stats.chi2.ppf(0.975, 2 * count + 2) / 2
    assert poisson_interval(count, 1) == pytest.approx((low, high), rel=1e-9)
    assert poisson_interval(count, 0.25) == pytest.approx((4 * low, 4 * high), rel=1e-9)


def test_poisson_interval_without_footage_is_undefined_and_negatives_are_refused():
    assert np.isnan(poisson_interval(0, 0)).all()
    for count, exposure in ((-1, 1), (1, -1), (1, NAN)):
        with pytest.raises(ValueError, match="0 or more"):
            poisson_interval(count, exposure)


# --- places ---


def test_pointing_game_counts_peaks_on_the_mask_and_within_the_slack():
    mask = square(5, 10, 20, (slice(0, 4), slice(2, 5), slice(10, 15)))
    # On its last pixel; 1 px below; a diagonal pixel away; not scored; no mask.
    peaks = np.array([[4.9, 14.9], [5, 12], [5, 15], [0, 0], [0, 0]])
    one = clip([1, 1, 1, 1, 1], [0, 0, 0, NAN, 0], peak_T2=peaks, mask_THW=mask)
    assert pointing_game([one]) == pytest.approx(1 / 3)
    assert pointing_game([one], slack_px=1) == pytest.approx(2 / 3)
    assert pointing_game([one], slack_px=1.5) == 1
    assert pointing_game([one, clip([1], [0])]) == pytest.approx(1 / 3)


def test_pointing_game_without_masks_is_undefined_and_peaks_outside_are_refused():
    mask = square(1, 10, 20, (0, 2, 3))
    assert math.isnan(pointing_game([clip([1], [0])]))
    assert math.isnan(pointing_game([clip([0], [0], mask_THW=mask, peak_T2=np.zeros((1, 2)))]))
    for peak in ([3, 20], [10, 3], [-0.1, 3], [NAN, 3]):
        with pytest.raises(ValueError, match="outside"):
            pointing_game([clip([1], [0], mask_THW=mask, peak_T2=np.array([peak], np.float64))])


def test_region_and_track_criteria_are_those_worked_out_by_hand():
    left, right = (slice(0, 4), slice(0, 4), slice(0, 4)), (slice(5, 9), slice(8, 12), slice(8, 12))
    # Regions: 4 of one object, 4 of another. Found: 1 at 5, a false one at 4, 1 at 3, 1 of the other object at 1.
    found = [(0, 0, 0, 4, 4, 5.0), (1, 14, 14, 18, 18, 4.0), (2, 0, 0, 4, 4, 3.0), (5, 8, 8, 12, 12, 1.0)]
    one = located(square(10, 20, 20, left, right), found)
    curves = region_curves([one])
    assert curves.false_regions_per_frame_P == pytest.approx([0, 0, 0.1, 0.1, 0.1])
    assert curves.region_rate_P == pytest.approx([0, 1 / 8, 1 / 8, 2 / 8, 3 / 8])
    assert curves.track_rate_P == pytest.approx([0, 0.5, 0.5, 0.5, 1])
    expected = {"rbdc": 0.1 * 1 / 8 + 0.9 * 3 / 8, "tbdc": 0.1 * 0.5 + 0.9 * 1}
    assert rbdc_tbdc([one]) == pytest.approx(expected)


def test_detector_that_finds_all_is_perfect_and_one_that_finds_nothing_has_zero():
    mask = square(6, 9, 9, (slice(1, 5), slice(2, 5), slice(3, 7)))
    found = [(frame, 3, 2, 7, 5, float(frame)) for frame in range(1, 5)]
    assert rbdc_tbdc([located(mask, found)]) == {"rbdc": 1, "tbdc": 1}
    assert rbdc_tbdc([located(mask)]) == {"rbdc": 0, "tbdc": 0}
    false = [(frame, 0, 8, 2, 9, 1.0) for frame in range(6)]
    assert rbdc_tbdc([located(mask, false)]) == {"rbdc": 0, "tbdc": 0}


@pytest.mark.parametrize(
    ("scores", "true_score", "area"),
    # Two frames: the second false box reaches one false region per frame, where the area ends.
    [((9, 8, 7), 10, 1), ((9, 8, 7), 8.5, 0.5), ((9, 8, 7), 7.5, 0), ((9, 8, 7), 1, 0), ((5, 5, 5, 5), 5, 0.25)],
)
def test_area_ends_at_one_false_region_per_frame_and_ties_enter_together(scores, true_score, area):
    false = [(1, 0, 0, 1, 1, float(score)) for score in scores]
    one = located(square(2, 9, 9, (0, slice(4, 8), slice(4, 8))), [*false, (0, 4, 4, 8, 8, float(true_score))])
    assert rbdc_tbdc([one]) == pytest.approx({"rbdc": area, "tbdc": area})


@pytest.mark.parametrize(("width", "found"), [(10, 1), (11, 0)])
def test_box_finds_a_region_from_a_tenth_of_the_joint_area_on(width, found):
    one = located(square(1, 3, 20, (0, 1, slice(0, width))), [(0, 0, 1, 1, 2, 1.0)])
    assert rbdc_tbdc([one])["rbdc"] == found
    assert region_curves([one]).false_regions_per_frame_P[-1] == 1 - found


@pytest.mark.parametrize(("length", "needed"), [(1, 1), (10, 1), (11, 2), (70, 7), (71, 8)])
def test_track_counts_when_a_tenth_of_its_regions_is_found(length, needed):
    mask = square(length, 5, 5, (slice(None), slice(1, 3), slice(1, 3)))
    for found, expected in ((needed, 1), (needed - 1, 0)):
        one = located(mask, [(frame, 1, 1, 3, 3, 1.0) for frame in range(found)])
        assert rbdc_tbdc([one])["tbdc"] == expected


def test_box_may_find_two_regions_and_a_second_box_on_a_region_is_not_false():
    mask = square(1, 10, 10, (0, slice(0, 4), slice(0, 4)), (0, slice(0, 4), slice(5, 9)))
    curves = region_curves([located(mask, [(0, 0, 0, 9, 4, 2.0), (0, 0, 0, 4, 4, 1.0)])])
    assert curves.region_rate_P[-1] == 1
    assert curves.false_regions_per_frame_P[-1] == 0


def naive_curves(mask, found):
    """The same by definition: label everything with scipy, compare pixels, and try every threshold."""
    tracks_THW, count = ndimage.label(mask, TRACK_NEIGHBOURS)
    regions = []
    for frame, mask_HW in enumerate(mask):
        label_HW, _ = ndimage.label(mask_HW, np.ones((3, 3)))
        for number, place in enumerate(ndimage.find_objects(label_HW), 1):
            canvas = np.zeros_like(mask_HW)
            canvas[place] = True
            regions.append((frame, canvas, tracks_THW[frame][label_HW == number][0]))
    points = [(0, 0, 0)]
    for level in sorted({box[-1] for box in found}, reverse=True):
        seen, false = set(), 0
        for frame, left, top, right, bottom, score in found:
            canvas = np.zeros(mask.shape[1:], bool)
            canvas[top:bottom, left:right] = True
            shared = [r[0] == frame and (canvas & r[1]).sum() / (canvas | r[1]).sum() >= 0.1 for r in regions]
            if score >= level:
                seen |= set(np.flatnonzero(shared))
                false += not any(shared)
        per_track = [[i in seen for i, r in enumerate(regions) if r[2] == track] for track in range(1, count + 1)]
        points.append((false / len(mask), len(seen) / len(regions), np.mean([np.mean(t) >= 0.1 for t in per_track])))
    return np.array(points)


@pytest.mark.parametrize("seed", range(8))
def test_curves_are_those_of_the_definition_tried_at_every_threshold(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.uniform_filter(rng.random((12, 16, 18)), (3, 3, 3)) > 0.58
    found = []
    for _ in range(40):
        (left, right), (top, bottom) = (np.sort(rng.choice(size, 2, replace=False)) for size in (19, 17))
        found.append((rng.integers(12), left, top, right, bottom, float(rng.integers(12))))
    curves = region_curves([located(mask, found)])
    measured = np.stack([curves.false_regions_per_frame_P, curves.region_rate_P, curves.track_rate_P], axis=1)
    # A level at which no point moves may be in one list and not in the other.
    assert np.unique(measured, axis=0) == pytest.approx(np.unique(naive_curves(mask, found), axis=0))


def test_regions_of_several_clips_are_pooled_and_clips_without_masks_left_out():
    mask = square(2, 8, 8, (0, slice(2, 6), slice(2, 6)))
    hit, missed = located(mask, [(0, 2, 2, 6, 6, 1.0)]), located(mask)
    assert rbdc_tbdc([hit, missed, clip([1], [0])]) == {"rbdc": 0.5, "tbdc": 0.5}


def test_places_without_any_region_are_undefined():
    for one in (clip([1], [0]), located(square(2, 8, 8)), located(square(2, 8, 8), [(0, 1, 1, 3, 3, 1.0)])):
        assert np.isnan(list(rbdc_tbdc([one]).values())).all()


def test_box_without_a_finite_score_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        rbdc_tbdc([located(square(1, 8, 8, (0, 1, 1)), [(0, 1, 1, 2, 2, NAN)])])


# --- what is refused everywhere ---


@pytest.mark.parametrize(
    "measure",
    [
        lambda: frame_metrics([], honest),
        lambda: bootstrap_auc([], honest),
        lambda: bootstrap_gain([], [], honest),
        lambda: event_recall_and_delay([], []),
        lambda: pointing_game([]),
        lambda: region_curves([]),
        lambda: rbdc_tbdc([]),
    ],
)
def test_empty_list_of_clips_is_refused(measure):
    with pytest.raises(ValueError, match="no clips"):
        measure()


@pytest.mark.parametrize(
    "parts",
    [
        {"label_T": np.zeros(2, np.uint8)},
        {"score_T": np.zeros((3, 1))},
        {"peak_T2": np.zeros((3, 3))},
        {"boxes": ((), ())},
        {"mask_THW": np.zeros((2, 4, 4), bool)},
        {"label_T": np.full(3, 2, np.uint8)},
        {"score_T": np.array([0, 1, math.inf])},
        {"fps": 0},
    ],
)
def test_clips_whose_parts_do_not_fit_are_refused_by_name(parts):
    whole = {"name": "07", "score_T": np.zeros(3), "label_T": np.zeros(3, np.uint8)}
    with pytest.raises(ValueError, match="clip 07"):
        ClipScores(**{**whole, **parts})
