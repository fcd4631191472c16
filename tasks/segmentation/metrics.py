"""Segmentation metrics from confusion matrices: rows are the truth, columns the prediction, unlabelled pixels left out.

Intersection over union is that of a whole set of pictures, as benchmarks report it: pixels are counted over all of them
and divided once. Intervals are of the same figure, by drawing pictures again (a bootstrap). Frames of one video are
alike, so that the intervals of a set of them come out too narrow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moevision.datasets.classes import IGNORE

Confusion = NDArray[np.int64]
Floats = NDArray[np.float64]

_RESAMPLES = 2000


def confusion_of(prediction_HW: NDArray[np.uint8], truth_HW: NDArray[np.uint8], classes: int) -> Confusion:
    """(K, K) pixel counts of one picture, at [truth, prediction].

    Args:
        prediction_HW: class indices below `classes`, wherever the truth is not IGNORE.
        truth_HW: class indices or IGNORE.
        classes: K.

    Raises:
        ValueError: the sizes differ, or an index is no class.
    """
    if prediction_HW.shape != truth_HW.shape:
        raise ValueError(f"a prediction of {prediction_HW.shape} for a label of {truth_HW.shape}")
    seen = truth_HW != IGNORE
    truth_N, prediction_N = truth_HW[seen].astype(np.int64), prediction_HW[seen].astype(np.int64)
    for index_N in (truth_N, prediction_N):
        if index_N.size and not 0 <= index_N.min() <= index_N.max() < classes:
            raise ValueError(f"class indices {index_N.min()} to {index_N.max()} of {classes} classes")
    return np.bincount(truth_N * classes + prediction_N, minlength=classes**2).reshape(classes, classes)


def scores_of(confusion_KK: Confusion, names: Sequence[str]) -> dict[str, float]:
    """{"miou", "pixel_accuracy", "iou.<class in lower case>" ...} as fractions.

    A class that is neither in the truth nor in the prediction has NaN and no part in the mean; so have all where no
    pixel is labelled.
    """
    hit_K, union_K = _hits_and_unions(confusion_KK)
    iou_K = _ratio(hit_K, union_K)
    accuracy = _ratio(hit_K.sum(), np.asarray(confusion_KK.sum(), np.float64))
    return {
        "miou": float(_mean_iou(hit_K, union_K)),
        "pixel_accuracy": float(accuracy),
        **{f"iou.{name.lower()}": float(iou) for name, iou in zip(names, iou_K, strict=True)},
    }


def miou_interval(confusions_NKK: Confusion, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean IoU of N pictures, by bootstrap over them."""
    return _interval(_resampled_miou(confusions_NKK, seed))


def paired_interval(a_NKK: Confusion, b_NKK: Confusion, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean IoU of a minus that of b, both of the same N pictures; above 0 = a is better.

    Raises:
        ValueError: they are not of equally many pictures.
    """
    if len(a_NKK) != len(b_NKK):
        raise ValueError(f"{len(a_NKK)} pictures against {len(b_NKK)}")
    return _interval(_resampled_miou(a_NKK, seed) - _resampled_miou(b_NKK, seed))


def _resampled_miou(confusions_NKK: Confusion, seed: int) -> Floats:
    """Of each draw of N pictures with replacement."""
    count = len(confusions_NKK)
    times_RN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _RESAMPLES).astype(np.float64)
    hit_NK, union_NK = _hits_and_unions(confusions_NKK)
    return _mean_iou(times_RN @ hit_NK, times_RN @ union_NK)


def _hits_and_unions(confusion_KK: Confusion) -> tuple[Floats, Floats]:
    """Per class, of one matrix or several; counts as floats, which are exact to 2**53."""
    hit_K = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
    return hit_K.astype(np.float64), (confusion_KK.sum(-1) + confusion_KK.sum(-2) - hit_K).astype(np.float64)


def _mean_iou(hit_K: Floats, union_K: Floats) -> Floats:
    """Over the last axis, of the classes that occur."""
    occurs_K = union_K > 0
    return _ratio((hit_K / np.where(occurs_K, union_K, 1)).sum(-1), occurs_K.sum(-1).astype(np.float64))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is 0."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan), np.float64)


def _interval(values_R: Floats) -> tuple[float, float]:
    known_R = values_R[np.isfinite(values_R)]
    if not known_R.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known_R, (2.5, 97.5))
    return float(low), float(high)
