"""Segmentation metrics: by hand, against torchmetrics, and what must hold of any prediction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.datasets.classes import IGNORE
from moevision.tasks.segmentation.metrics import confusion_of, miou_interval, paired_interval, scores_of

NAMES = ("Sky", "road", "car", "pole")


def maps(seed, height=20, width=30, classes=4, count=1):
    """(prediction, truth) pairs; a tenth of the truth has no label."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, classes, (count, height, width)).astype(np.uint8)
    wrong = rng.random(truths.shape) < rng.random((count, 1, 1))
    predictions = np.where(wrong, rng.integers(0, classes, truths.shape), truths).astype(np.uint8)
    truths[rng.random(truths.shape) < 0.1] = IGNORE
    return list(zip(predictions, truths, strict=True))


def confusions(seed, count=30):
    return np.stack([confusion_of(*pair, 4) for pair in maps(seed, count=count)])


def test_a_small_picture_counts_as_by_hand():
    truth_HW = np.array([[0, 0, 1, 1, IGNORE]], np.uint8)
    prediction_HW = np.array([[0, 1, 1, 1, 2]], np.uint8)
    confusion_KK = confusion_of(prediction_HW, truth_HW, 4)
    assert confusion_KK.dtype == np.int64
    assert confusion_KK.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = scores_of(confusion_KK, NAMES)
    assert scores["iou.sky"] == 1 / 2
    assert scores["iou.road"] == 2 / 3
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["pixel_accuracy"] == 3 / 4
    assert np.isnan(scores["iou.car"])
    assert np.isnan(scores["iou.pole"])


def test_a_class_that_is_only_predicted_counts_as_0():
    scores = scores_of(confusion_of(np.array([[2, 0]], np.uint8), np.array([[0, 0]], np.uint8), 4), NAMES)
    assert scores["iou.car"] == 0
    assert scores["miou"] == 1 / 4


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 12), st.integers(2, 19))
def test_figures_are_those_of_torchmetrics(seed, height, width, classes):
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.functional.classification")
    [(prediction_HW, truth_HW)] = maps(seed, height, width, classes)
    confusion_KK = confusion_of(prediction_HW, truth_HW, classes)
    pair = torch.from_numpy(prediction_HW).long(), torch.from_numpy(truth_HW).long()
    theirs = classification.multiclass_confusion_matrix(*pair, classes, ignore_index=IGNORE)
    np.testing.assert_array_equal(confusion_KK, theirs.numpy())
    if not confusion_KK.any():
        return
    scores = scores_of(confusion_KK, [f"c{i}" for i in range(classes)])
    means = {
        "miou": classification.multiclass_jaccard_index(*pair, classes, average="macro", ignore_index=IGNORE),
        "pixel_accuracy": classification.multiclass_accuracy(*pair, classes, average="micro", ignore_index=IGNORE),
    }
    each_K = classification.multiclass_jaccard_index(*pair, classes, average="none", ignore_index=IGNORE)
    assert {name: scores[name] for name in means} == pytest.approx({n: float(v) for n, v in means.items()}, abs=1e-6)
    ours_K = np.array([scores[f"iou.c{i}"] for i in range(classes)])
    np.testing.assert_allclose(np.nan_to_num(ours_K), np.nan_to_num(each_K.numpy()), atol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 9999), st.permutations(range(4)))
def test_renaming_classes_and_adding_pictures_up_change_nothing(seed, order):
    pairs = maps(seed, count=3)
    total_KK = np.sum([confusion_of(*pair, 4) for pair in pairs], axis=0)
    joined = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
    np.testing.assert_array_equal(confusion_of(*joined, 4), total_KK)
    table = np.append(np.array(order, np.uint8), np.zeros(251, np.uint8) + 9)
    table = np.append(table, np.uint8(IGNORE)).astype(np.uint8)
    renamed = scores_of(confusion_of(table[joined[0]], table[joined[1]], 4), NAMES)
    scores = scores_of(total_KK, NAMES)
    assert renamed["miou"] == pytest.approx(scores["miou"])
    assert renamed["pixel_accuracy"] == scores["pixel_accuracy"]
    assert renamed[f"iou.{NAMES[order[0]].lower()}"] == scores["iou.sky"]


def test_the_truth_is_perfect_and_no_label_is_no_figure():
    [(_, truth_HW)] = maps(0)
    assert scores_of(confusion_of(truth_HW, truth_HW, 4), NAMES)["miou"] == 1
    nothing_HW = np.full((3, 4), IGNORE, np.uint8)
    assert all(np.isnan(value) for value in scores_of(confusion_of(nothing_HW, nothing_HW, 4), NAMES).values())


def test_what_is_predicted_where_there_is_no_label_does_not_matter():
    [(prediction_HW, truth_HW)] = maps(1)
    other_HW = np.where(truth_HW == IGNORE, 77, prediction_HW).astype(np.uint8)
    np.testing.assert_array_equal(confusion_of(other_HW, truth_HW, 4), confusion_of(prediction_HW, truth_HW, 4))


def test_other_sizes_and_indices_that_are_no_class_are_refused():
    [(prediction_HW, truth_HW)] = maps(2)
    with pytest.raises(ValueError, match="label of"):
        confusion_of(prediction_HW[1:], truth_HW, 4)
    with pytest.raises(ValueError, match="of 3 classes"):
        confusion_of(prediction_HW, np.zeros_like(truth_HW), 3)
    with pytest.raises(ValueError, match="of 3 classes"):
        confusion_of(np.zeros_like(prediction_HW), truth_HW, 3)


def test_the_interval_holds_the_figure_and_narrows_with_pictures():
    few, many = confusions(0, 10), confusions(0, 200)
    widths = []
    for confusions_NKK in (few, many):
        low, high = miou_interval(confusions_NKK)
        assert low < scores_of(confusions_NKK.sum(0), NAMES)["miou"] < high
        assert miou_interval(confusions_NKK) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_interval_is_that_of_a_dumb_loop():
    confusions_NKK = confusions(3, 12)
    rng = np.random.default_rng(9)
    drawn = [scores_of(confusions_NKK[rng.integers(12, size=12)].sum(0), NAMES)["miou"] for _ in range(4000)]
    np.testing.assert_allclose(miou_interval(confusions_NKK), np.percentile(drawn, (2.5, 97.5)), atol=0.01)


def test_a_picture_alone_has_an_interval_without_width():
    confusions_NKK = confusions(4, 1)
    assert miou_interval(confusions_NKK) == pytest.approx([scores_of(confusions_NKK[0], NAMES)["miou"]] * 2)


def test_draws_without_any_label_are_left_out_of_the_interval():
    confusions_NKK = np.concatenate([confusions(5, 1), np.zeros((1, 4, 4), np.int64)])
    low, high = miou_interval(confusions_NKK)
    assert low == high == pytest.approx(scores_of(confusions_NKK[0], NAMES)["miou"])
    assert np.isnan(miou_interval(np.zeros((2, 4, 4), np.int64))).all()


def test_a_paired_difference_is_narrower_than_the_spread_of_pictures_and_has_a_sign():
    a_NKK = confusions(6, 40)
    b_NKK = a_NKK.copy()
    b_NKK[:, 0, 1] += b_NKK[:, 0, 0] // 10  # a tenth of one class goes wrong
    b_NKK[:, 0, 0] -= b_NKK[:, 0, 0] // 10
    low, high = paired_interval(a_NKK, b_NKK)
    assert 0 < low < high
    assert high - low < np.subtract(*miou_interval(a_NKK)[::-1]) / 3
    assert paired_interval(b_NKK, a_NKK) == pytest.approx((-high, -low))
    assert paired_interval(a_NKK, a_NKK) == (0, 0)
    with pytest.raises(ValueError, match="40 pictures against 39"):
        paired_interval(a_NKK, b_NKK[1:])
