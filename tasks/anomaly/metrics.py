"""Measures of a video anomaly detector: frames (AUC) and events (recall, delay, false alarms).

Shapes: T frames of a clip, H x W pixels of a frame, N clips, R resamples, P points of a curve. A
score is larger the more unusual a frame is; NaN says that the frame is not scored. All rates are fractions, 0 to 1.
What is undefined (one class only, no event, no region) is NaN; an empty list of clips is a ValueError.

Published frame AUCs differ as much by protocol as by method, so a protocol is an argument here: `honest` is what a live
camera could have had, `published` is what MemoryOut's tables on UCSD Ped2 use and looks at the whole clip first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevision.tasks.anomaly.scores import Box

Scores = NDArray[np.float64]
Labels = NDArray[np.uint8]
Frames = tuple[Labels, Scores]

_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class ClipScores:
    """What a detector says of one clip beside what is true of it.

    Attributes:
        name: of the clip.
        score_T: unsmoothed, finite, or NaN where the frame is not scored.
        label_T: 1 = abnormal, 0 = normal.
        peak_T2: (y, x) of the hottest place of every frame, in source pixels; pixel y reaches from y to y + 1.
        boxes: of every frame, in source pixels.
        mask_THW: True on what is abnormal, at the source's size.
        fps: frames a second, above 0.

    Raises:
        ValueError: the parts do not describe the same T frames, or a label, score or rate is out of its range.
    """

    name: str
    score_T: Scores
    label_T: Labels
    peak_T2: NDArray[np.float64] | NDArray[np.int64] | None = None
    boxes: tuple[tuple[Box, ...], ...] | None = None
    mask_THW: NDArray[np.bool_] | None = None
    fps: float = 10.0

    def __post_init__(self) -> None:
        frames = self.score_T.shape
        shapes = [self.label_T.shape == frames, len(frames) == 1]
        shapes += [] if self.peak_T2 is None else [self.peak_T2.shape == (*frames, 2)]
        shapes += [] if self.boxes is None else [(len(self.boxes),) == frames]
        shapes += [] if self.mask_THW is None else [self.mask_THW.ndim == 3 and self.mask_THW.shape[:1] == frames]
        if not all(shapes):
            raise ValueError(f"clip {self.name}: scores, labels, peaks, boxes and mask must describe the same T frames")
        if np.isinf(self.score_T).any() or not np.isin(self.label_T, (0, 1)).all() or not self.fps > 0:
            raise ValueError(f"clip {self.name}: needs scores finite or NaN, labels 0 or 1, and fps above 0")


ScoringProtocol = Callable[[ClipScores], Scores]


class EventReport(TypedDict):
    """What `event_recall_and_delay` returns."""

    event_recall: float
    delay_s_mean: float
    delay_s_max: float
    false_alarms: int
    normal_hours: float
    false_alarms_per_hour: float
    false_alarms_per_hour_95: tuple[float, float]


def roc_auc(label: ArrayLike, score: ArrayLike) -> float:
    """Share of pairs of an abnormal and a normal frame in which the abnormal one scores higher; a tie is half a pair.

    Args:
        label: (T,), 1 = abnormal, 0 = normal.
        score: (T,), infinite values allowed.

    Returns:
        0 to 1; NaN with fewer than two classes.

    Raises:
        ValueError: a score is NaN (leave frames that are not scored out), or the sizes differ.
    """
    label_T, score_T = _checked(label, score)
    normal, abnormal = np.sort(score_T[label_T == 0]), score_T[label_T == 1]
    pairs = normal.size * abnormal.size
    return _wins(normal, abnormal) / pairs if pairs else math.nan


def equal_error_rate(label: ArrayLike, score: ArrayLike) -> float:
    """Where the share of false alarms equals that of misses, 0 to 1; the ROC is a line between its points.

    Arguments, NaN and errors as in `roc_auc`.
    """
    label_T, score_T = _checked(label, score)
    abnormal, normal = np.count_nonzero(label_T == 1), np.count_nonzero(label_T == 0)
    if not abnormal or not normal:
        return math.nan
    levels = np.unique(score_T)[::-1]
    alarms = np.append(0, at_least(score_T[label_T == 0], levels)) / normal
    misses = 1 - np.append(0, at_least(score_T[label_T == 1], levels)) / abnormal
    # Every level moves a frame to the alarms, so that the difference grows strictly from -1 to 1.
    return float(np.interp(0.0, alarms - misses, alarms))


def causal_mean(score_T: Scores, window: int = 9) -> Scores:
    """(T,) means of every scored frame and at most `window` - 1 scored frames before it; NaN stays NaN.

    Raises:
        ValueError: the window is below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} frames holds no frame; use 1 or more")

    def means(scored: Scores) -> Scores:
        padded = np.append(np.full(window - 1, np.nan), scored)
        return np.asarray(np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1))

    return _on_scored(score_T, means)


def gaussian(score_T: Scores, sigma: float = 5.0) -> Scores:
    """(T,) scores blurred over past and future frames, sigma in frames; NaN is cut out and stays NaN.

    The window ends at 4 sigma and the clip is mirrored at its ends, as in scipy.ndimage.gaussian_filter1d.

    Raises:
        ValueError: sigma is not above 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0 frames, not {sigma}")
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return _on_scored(score_T, lambda scored: np.convolve(np.pad(scored, radius, "symmetric"), kernel, "valid"))


def min_max(score_T: Scores) -> Scores:
    """(T,) scores stretched to 0 to 1 over the scored frames; zeros if they are all equal, NaN stays NaN."""

    def stretched(scored: Scores) -> Scores:
        span = np.ptp(scored)
        return (scored - scored.min()) / span if span > 0 else np.zeros_like(scored)

    return _on_scored(score_T, stretched)


def honest(clip: ClipScores) -> Scores:
    """P0: the causal mean of 9 scored frames, and nothing that needs the rest of the clip."""
    return causal_mean(clip.score_T)


def published(clip: ClipScores) -> Scores:
    """P1: min-max over the clip, then a Gaussian of sigma 5, on the scored frames only (MemoryOut on UCSD Ped2).

    It needs the whole clip, and it takes for granted that every clip has something abnormal in it.
    """
    return gaussian(min_max(clip.score_T))


def frame_metrics(clips: Sequence[ClipScores], protocol: ScoringProtocol) -> dict[str, float]:
    """AUCs and equal error rate of the scored frames.

    Returns:
        micro_auc: of all clips' frames together.
        macro_auc: mean over the clips that have both classes; NaN if none has.
        macro_auc_padded: mean over all clips with a scored frame, each with a normal frame at -inf and an abnormal one
            at +inf added. The field's habit; it flatters: a clip with one class counts as 1.
        eer: equal error rate of all frames together.

    Raises:
        ValueError: there are no clips.
    """
    frames = [_scored(clip, protocol(clip)) for clip in listed(clips)]
    label_T, score_T = (np.concatenate(part) for part in zip(*frames, strict=True))
    mixed = [auc for auc in (roc_auc(*one) for one in frames) if not math.isnan(auc)]
    padded = [roc_auc([0, *label, 1], [-np.inf, *score, np.inf]) for label, score in frames if label.size]
    return {
        "micro_auc": roc_auc(label_T, score_T),
        "macro_auc": float(np.mean(mixed)) if mixed else math.nan,
        "macro_auc_padded": float(np.mean(padded)) if padded else math.nan,
        "eer": equal_error_rate(label_T, score_T),
    }


def bootstrap_auc(
    clips: Sequence[ClipScores], protocol: ScoringProtocol, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval (low, high) of the micro AUC, over clips drawn with replacement.

    Frames of one clip resemble each other: drawing frames would make the interval far too narrow. The draws are
    `default_rng(seed).integers(N, size=(resamples, N))`; those with one class only are left out, NaN if all are.

    Raises:
        ValueError: there are no clips.
    """
    frames = [_scored(clip, protocol(clip)) for clip in listed(clips)]
    low, high = _percentiles(_resampled_auc(frames, resamples, seed), _LEVELS)
    return low, high


def bootstrap_gain(
    clips: Sequence[ClipScores],
    other_clips: Sequence[ClipScores],
    protocol: ScoringProtocol,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """95 % interval and median (low, median, high) of the micro AUC of `clips` less that of `other_clips`.

    Paired: both are measured on the same draws (see `bootstrap_auc`), and only on frames that both score, so that
    neither gains by what it leaves out. Each is smoothed over its own scored frames before.

    Raises:
        ValueError: there are no clips, or the two lists differ in names or labels.
    """
    ids = [[(clip.name, clip.label_T.tolist()) for clip in part] for part in (listed(clips), other_clips)]
    if ids[0] != ids[1]:
        raise ValueError("the two lists must hold the same clips, in one order, with the same labels")
    ours, theirs = ([protocol(clip) for clip in part] for part in (clips, other_clips))
    both = [np.isfinite(a) & np.isfinite(b) for a, b in zip(ours, theirs, strict=True)]
    aucs = [
        _resampled_auc([(c.label_T[t], s[t]) for c, s, t in zip(clips, part, both, strict=True)], resamples, seed)
        for part in (ours, theirs)
    ]
    low, median, high = _percentiles(aucs[0] - aucs[1], (_LEVELS[0], 50, _LEVELS[1]))
    return low, median, high


def abnormal_events(label_T: Labels) -> list[tuple[int, int]]:
    """Runs of ones as (start, stop), stop one past the last frame, in order."""
    return _runs(label_T == 1)


def event_recall_and_delay(clips: Sequence[ClipScores], alarms: Sequence[NDArray[np.bool_]]) -> EventReport:
    """How many abnormal events are noticed, how late, and how often there is an alarm for nothing.

    Args:
        clips: labels, scored frames and rates are used.
        alarms: (T,) per clip, True while there is an alarm.

    Returns:
        event_recall: share of runs of abnormal frames with an alarm inside.
        delay_s_mean, delay_s_max: from a run's start to the first alarm inside it, over the runs that have one; 0 if
            the alarm is on already.
        false_alarms: runs of alarm that touch no abnormal frame.
        normal_hours: scored normal frames; where nothing is scored nothing could have been said.
        false_alarms_per_hour, false_alarms_per_hour_95: of normal_hours, and the interval of `poisson_interval`.

    Raises:
        ValueError: there are no clips, or the alarms do not fit them.
    """
    if [clip.label_T.shape for clip in listed(clips)] != [alarm_T.shape for alarm_T in alarms]:
        raise ValueError("alarms must hold one array per clip, with one value per frame")
    firsts: list[float] = []
    false_alarms, normal_s = 0, 0.0
    for clip, alarm_T in zip(clips, alarms, strict=True):
        inside = (np.flatnonzero(alarm_T[start:stop]) for start, stop in abnormal_events(clip.label_T))
        firsts += [float(found[0]) / clip.fps if found.size else math.nan for found in inside]
        false_alarms += sum(not clip.label_T[start:stop].any() for start, stop in _runs(alarm_T))
        normal_s += int(((clip.label_T == 0) & np.isfinite(clip.score_T)).sum()) / clip.fps
    delays = [delay for delay in firsts if not math.isnan(delay)]
    hours = normal_s / 3600
    return {
        "event_recall": len(delays) / len(firsts) if firsts else math.nan,
        "delay_s_mean": float(np.mean(delays)) if delays else math.nan,
        "delay_s_max": max(delays, default=math.nan),
        "false_alarms": false_alarms,
        "normal_hours": hours,
        "false_alarms_per_hour": false_alarms / hours if hours else math.nan,
        "false_alarms_per_hour_95": poisson_interval(false_alarms, hours),
    }


def poisson_interval(count: int, exposure: float) -> tuple[float, float]:
    """Exact 95 % interval (low, high) of the rate behind `count` events (Garwood, Biometrika 1936).

    Args:
        count: events seen, 0 or more.
        exposure: how long was watched, in the unit of which the rate is wanted; NaN results if it is 0.

    Raises:
        ValueError: count or exposure is negative.
    """
    if count < 0 or not exposure >= 0:
        raise ValueError(f"count and exposure must be 0 or more, not {count} and {exposure}")
    if exposure == 0:
        return math.nan, math.nan
    # The rates at which so many events or more, and so few or fewer, have a chance of 2.5 %.
    low = _poisson_mean(count - 1, 0.975) if count else 0.0
    return low / exposure, _poisson_mean(count, 0.025) / exposure


def listed(clips: Sequence[ClipScores]) -> Sequence[ClipScores]:
    if not clips:
        raise ValueError("there are no clips to measure")
    return clips


def _checked(label: ArrayLike, score: ArrayLike) -> Frames:
    label_T, score_T = np.asarray(label, np.uint8), np.asarray(score, np.float64)
    if label_T.shape != score_T.shape or label_T.ndim != 1:
        raise ValueError(f"labels {label_T.shape} and scores {score_T.shape} must be (T,) of one length")
    if np.isnan(score_T).any() or (label_T > 1).any():
        raise ValueError("labels must be 0 or 1 and scores not NaN: leave the frames that are not scored out")
    return label_T, score_T


def _on_scored(score_T: Scores, change: Callable[[Scores], Scores]) -> Scores:
    """The change of the scored frames alone, as if there were no others; the others stay NaN."""
    scored_T = ~np.isnan(score_T)
    changed_T = np.full(score_T.shape, np.nan)
    if scored_T.any():
        changed_T[scored_T] = change(score_T[scored_T].astype(np.float64))
    return changed_T


def _scored(clip: ClipScores, score_T: Scores) -> Frames:
    scored_T = np.isfinite(score_T)
    return clip.label_T[scored_T], score_T[scored_T]


def _wins(normal_sorted: Scores, abnormal: Scores) -> float:
    """Pairs that the abnormal side wins; half a pair for a tie."""
    sides = (np.searchsorted(normal_sorted, abnormal, side).sum() for side in ("left", "right"))
    return float(sum(sides)) / 2


def _resampled_auc(frames: Sequence[Frames], resamples: int, seed: int) -> Scores:
    """(R,) micro AUCs, NaN where a resample has one class only.

    A pair's outcome does not depend on the draw, so the wins between any two clips are counted once; a resample in
    which clip n occurs times_RN[r, n] times is a quadratic form in them.
    """
    count = len(frames)
    normal = [np.sort(score[label == 0]) for label, score in frames]
    abnormal = [score[label == 1] for label, score in frames]
    wins_NN = np.array([[_wins(a, b) for b in abnormal] for a in normal])
    draws_RN = np.random.default_rng(seed).integers(count, size=(resamples, count))
    cells_RN = draws_RN + count * np.arange(resamples)[:, None]
    times_RN = np.bincount(cells_RN.ravel(), minlength=cells_RN.size).reshape(cells_RN.shape).astype(np.float64)
    normal_R, abnormal_R = (times_RN @ np.array([x.size for x in side], np.float64) for side in (normal, abnormal))
    pairs_R = normal_R * abnormal_R
    wins_R = ((times_RN @ wins_NN) * times_RN).sum(axis=1)
    return np.where(pairs_R > 0, wins_R / np.maximum(pairs_R, 1), np.nan)


def _percentiles(values: Scores, levels: Iterable[float]) -> list[float]:
    defined = values[~np.isnan(values)]
    return [float(np.percentile(defined, level)) if defined.size else math.nan for level in levels]


def _runs(on_T: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(on_T.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _poisson_mean(count: int, chance: float) -> float:
    """The mean at which `count` events or fewer have this chance."""
    log_factorial = np.append(0, np.cumsum(np.log(np.arange(1, count + 1))))
    low, high = 0.0, count + 10 * (math.sqrt(count) + 1)
    # The chance falls as the mean grows; 100 halvings are beyond float64.
    for _ in range(100):
        mean = (low + high) / 2
        below = np.exp(np.arange(count + 1) * math.log(mean) - mean - log_factorial).sum()
        low, high = (mean, high) if below > chance else (low, mean)
    return (low + high) / 2


def at_least(scores: Scores, levels_P: Scores) -> NDArray[np.int64]:
    """(P,) how many scores reach each level."""
    return np.asarray(scores.size - np.searchsorted(np.sort(scores), levels_P, "left"), np.int64)
