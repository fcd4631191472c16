"""What is normal at one camera: statistics of normal footage, and thresholds from a wanted rate of false alarms.

Nothing here sees an anomaly: thresholds extrapolate the tail of normal scores. Minutes of footage cannot promise a rate
of alarms an hour, so every threshold comes with its interval.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moevision.errors import InputError, UsageError
from moevision.tasks.anomaly.appearance import CHANNELS, NormalAppearance
from moevision.tasks.anomaly.metrics import causal_mean
from moevision.tasks.anomaly.motion import Grid
from moevision.tasks.anomaly.streams import STREAMS, Measurement, logarithm

FORMAT = 1
WINDOW = 9  # frames of the causal mean
_LEAST_DEVIATION = 0.05  # of a logarithm: a camera on which nothing moved must not make everything unusual
_LEAST_FRAMES = 20
_BLOCK_S = 1.0  # alarms closer than this are one
_TAIL = 0.1  # share of the blocks to which the tail is fitted
_LEAST_TAIL = 10
_LOWEST = -3.0  # of a standardised stream: a frame in which less moves than ever must not hide the ones after it
_RESAMPLES = 500
_KEPT_SCORES = 2000  # of the calibration's, evenly over their ranks: the p-value's resolution


class Statistics(NamedTuple):
    """Mean and standard deviation of normal values."""

    mean: float
    deviation: float

    def standardise(self, value: float) -> float:
        """Standard deviations above the mean."""
        return (value - self.mean) / self.deviation


class Threshold(NamedTuple):
    """A threshold of the score, the 95 % interval in which the right one may lie, and what it was asked for."""

    value: float
    low: float
    high: float
    asked: str


@dataclass(frozen=True)
class SiteCalibration:
    """What is normal at one camera.

    Attributes:
        model, model_sha256: of the network whose prediction is a stream; empty strings without one.
        source_size_hw: of the frames it was measured on.
        fps: frames a second that are analysed.
        streams: statistics of every stream's values.
        score: statistics of the sum of the standardised streams.
        block_maxima: the highest smoothed score of every second of the footage.
        scores: smoothed scores, ascending, at most _KEPT_SCORES of them.
        frames: how many were scored.
        normal: how what moves looks; None without "appearance" among the streams.
    """

    model: str
    model_sha256: str
    source_size_hw: tuple[int, int]
    fps: float
    streams: dict[str, Statistics]
    score: Statistics
    block_maxima: tuple[float, ...]
    scores: tuple[float, ...]
    frames: int
    normal: NormalAppearance | None = None

    @property
    def hours(self) -> float:
        """Of normal footage behind it."""
        return self.frames / self.fps / 3600

    def raw_score(self, measurement: Measurement) -> float:
        """The frame's score, not smoothed; NaN for a frame that measured nothing."""
        if not measurement.values:
            return float("nan")
        return self.score.standardise(_total(measurement, self.streams))

    def heat_grid(self, measurement: Measurement) -> Grid:
        """The same of every box: (h, w). Raises ValueError for a frame that measured nothing."""
        if not measurement.grids:
            raise ValueError("a frame that measured nothing has no heat")
        standard = [_standard_grid(measurement.grids[name], s) for name, s in self.streams.items()]
        return np.asarray((np.sum(standard, axis=0) - self.score.mean) / self.score.deviation, np.float32)

    def p_value(self, score: float) -> float:
        """Share of normal frames at least as unusual (conformal: never 0)."""
        at_least = len(self.scores) - int(np.searchsorted(self.scores, score))
        return (1 + at_least) / (1 + len(self.scores))

    def threshold_for_rate(self, alarms_per_hour: float, seed: int = 0) -> Threshold:
        """The score that normal footage exceeds so often: a generalised Pareto tail of the seconds' maxima.

        The interval is a bootstrap over seconds. Raises UsageError for a rate that is not positive.
        """
        if not 0 < alarms_per_hour < float("inf"):
            raise UsageError(f"--false-alarms-per-hour {alarms_per_hour}: must be a positive number")
        share = alarms_per_hour * _BLOCK_S / 3600
        maxima_M = np.asarray(self.block_maxima)
        value = _tail_quantile(maxima_M, share)
        rng = np.random.default_rng(seed)
        draws = [_tail_quantile(rng.choice(maxima_M, len(maxima_M)), share) for _ in range(_RESAMPLES)]
        low, high = np.percentile(draws, (2.5, 97.5))
        return Threshold(value, float(low), float(high), f"{alarms_per_hour:g} false alarms an hour")

    def threshold_for_p_value(self, p_value: float, seed: int = 0) -> Threshold:
        """The score that this share of normal frames exceeds.

        Raises UsageError where there are too few normal frames for so small a share.
        """
        least = 1 / (1 + len(self.scores))
        if not least <= p_value < 1:
            raise UsageError(
                f"--p-value {p_value:g}: {len(self.scores)} normal scores allow {least:.2g} to 1; fit on more footage"
            )
        scores_N = np.asarray(self.scores)
        rng = np.random.default_rng(seed)
        draws = [np.quantile(rng.choice(scores_N, len(scores_N)), 1 - p_value) for _ in range(_RESAMPLES)]
        low, high = np.percentile(draws, (2.5, 97.5))
        return Threshold(float(np.quantile(scores_N, 1 - p_value)), float(low), float(high), f"p-value {p_value:g}")

    def write(self, path: Path) -> None:
        """As JSON; appears whole or not at all."""
        from moevision.imaging.write import atomic_write_text

        fields = {"format": FORMAT, **asdict(self), "streams": {k: s._asdict() for k, s in self.streams.items()}}
        fields["score"] = self.score._asdict()
        if self.normal is not None:
            fields["normal"] = {"mean": self.normal.mean_C.tolist(), "precision": self.normal.precision_CC.tolist()}
        atomic_write_text(path, json.dumps(fields, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> "SiteCalibration":
        """Inverse of `write`. Raises InputError for a missing, damaged or foreign file."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if fields.pop("format") != FORMAT:
                raise ValueError("another version wrote it")
            streams = {str(k): _statistics(v) for k, v in fields.pop("streams").items()}
            height, width = (int(n) for n in fields.pop("source_size_hw"))
            maxima, scores = (tuple(float(x) for x in fields.pop(k)) for k in ("block_maxima", "scores"))
            score, normal = _statistics(fields.pop("score")), _normal(fields.pop("normal"))
            if not maxima or not scores or not np.isfinite([*maxima, *scores, float(fields["fps"])]).all():
                raise ValueError("its scores are missing or not finite")
            sizes = (height, width, float(fields["fps"]), int(fields["frames"]))
            if not streams or set(streams) - set(STREAMS) or min(sizes) <= 0 or not isinstance(fields["model"], str):
                raise ValueError("a value is missing or out of range")
            if "appearance" in streams and normal is None:
                raise ValueError("the appearance of normal things is missing")
            return SiteCalibration(
                source_size_hw=(height, width),
                streams=streams,
                score=score,
                block_maxima=maxima,
                scores=scores,
                normal=normal,
                **fields,
            )
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); make one with moevision anomaly-fit"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: not a site calibration ({error}); make one with moevision anomaly-fit") from None


def calibrate(
    clips: Sequence[Sequence[Measurement]], *, model: str, model_sha256: str, source_size_hw: tuple[int, int],
    fps: float, streams: Sequence[str] | None = None, normal: NormalAppearance | None = None,
) -> SiteCalibration:  # fmt: skip
    """Statistics of normal clips.

    Args:
        clips: each a sequence of measurements in order.
        model, model_sha256, source_size_hw, fps: see SiteCalibration.
        streams: names of those to use; None = all that were measured.
        normal: how what moves looks.

    Raises:
        InputError: something moved in fewer than 20 frames.
    """
    # Of frames in which nothing moves there may be any number; they must not decide what is usual of those that count.
    measured = [m for clip in clips for m in clip if m.values and m.moves]
    if len(measured) < _LEAST_FRAMES:
        raise InputError(
            f"something moves in {len(measured)} frames only and {_LEAST_FRAMES} are the least; use more normal footage"
        )
    names = tuple(measured[0].values) if streams is None else tuple(streams)
    statistics = {name: _statistics_of([m.values[name] for m in measured]) for name in names}
    totals = [np.array([_total(m, statistics) if m.values else np.nan for m in clip]) for clip in clips]
    moves = [np.array([bool(m.values) and m.moves for m in clip], dtype=bool) for clip in clips]
    score = _statistics_of([x for total_T, moves_T in zip(totals, moves, strict=True) for x in total_T[moves_T]])
    smoothed = [causal_mean((total_T - score.mean) / score.deviation, WINDOW) for total_T in totals]
    block = max(1, round(_BLOCK_S * fps))
    maxima = [
        float(np.nanmax(part))
        for smooth_T in smoothed
        for part in np.split(smooth_T, range(block, len(smooth_T), block))
        if not np.isnan(part).all()
    ]
    every = np.sort(np.concatenate(smoothed))
    every = every[~np.isnan(every)]
    kept = every[np.linspace(0, len(every) - 1, min(len(every), _KEPT_SCORES)).round().astype(int)]
    return SiteCalibration(
        model, model_sha256, source_size_hw, fps, statistics, score,
        tuple(round(m, 5) for m in maxima), tuple(kept.round(5).tolist()), len(every), normal,
    )  # fmt: skip


def _standard_grid(grid: Grid, statistics: Statistics) -> Grid:
    return np.maximum((logarithm(grid) - statistics.mean) / statistics.deviation, _LOWEST)


def _total(measurement: Measurement, streams: dict[str, Statistics]) -> float:
    return sum(max(s.standardise(measurement.values[name]), _LOWEST) for name, s in streams.items())


def _statistics_of(values: Sequence[float]) -> Statistics:
    return Statistics(float(np.mean(values)), max(float(np.std(values)), _LEAST_DEVIATION))


def _statistics(fields: dict[str, float]) -> Statistics:
    statistics = Statistics(float(fields["mean"]), float(fields["deviation"]))
    if not np.isfinite(statistics).all() or statistics.deviation <= 0:
        raise ValueError("a deviation is not positive")
    return statistics


def _normal(fields: dict[str, Any] | None) -> NormalAppearance | None:
    if fields is None:
        return None
    mean_C, precision_CC = np.array(fields["mean"], np.float64), np.array(fields["precision"], np.float64)
    shapes = mean_C.shape == (CHANNELS,) and precision_CC.shape == (CHANNELS, CHANNELS)
    if not shapes or not (np.isfinite(mean_C).all() and np.isfinite(precision_CC).all()):
        raise ValueError("the appearance of normal things is damaged")
    return NormalAppearance(mean_C, precision_CC)


def _tail_quantile(maxima_M: NDArray[np.float64], share: float) -> float:
    """The value that a share of the maxima exceeds; beyond the tail's begin by a generalised Pareto distribution.

    Fitted by probability-weighted moments (Hosking and Wallis 1987), the shape held within -0.5 and 0.5: more cannot be
    told from so few values.
    """
    ordered = np.sort(maxima_M)
    count = min(len(ordered) - 1, max(_LEAST_TAIL, round(_TAIL * len(ordered))))
    if count < 1 or share >= count / len(ordered):
        # Not between two of them, or the threshold would rise where the tail ends.
        return float(np.quantile(ordered, max(0.0, 1 - share), method="lower"))
    begin = float(ordered[-count - 1])
    excess_C = ordered[-count:] - begin
    mean = float(excess_C.mean())
    weighted = float((excess_C * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean())
    shape = float(np.clip(2 - mean / max(mean - 2 * weighted, 1e-12), -0.5, 0.5))
    scale = mean * (1 - shape)
    rarer = share * len(ordered) / count
    stretch = -np.log(rarer) if abs(shape) < 1e-6 else (rarer**-shape - 1) / shape
    return begin + scale * float(stretch)
