"""`moevision evaluate anomaly`: the product's score, the network alone and the baselines, on one set of test clips.

Two protocols side by side: "p0", honest (what a camera could do: causal, nothing taken from the clip itself), and "p1",
the papers' (every clip stretched to 0..1 and smoothed with its future).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import moevision
from moevision.checkpoint import ModelDescriptor
from moevision.datasets.video import ClipFolder, read_labels, read_masks
from moevision.engine.task import as_json
from moevision.errors import InputError, UsageError
from moevision.imaging.sources import open_source
from moevision.tasks.anomaly.calibration import SiteCalibration, Statistics, calibrate
from moevision.tasks.anomaly.detector import boxes_of
from moevision.tasks.anomaly.fit import MOTION, fit_site
from moevision.tasks.anomaly.localisation import pointing_game, rbdc_tbdc
from moevision.tasks.anomaly.metrics import (
    ClipScores,
    bootstrap_auc,
    bootstrap_gain,
    frame_metrics,
    honest,
    published,
)
from moevision.tasks.anomaly.model import MemoryOutNet
from moevision.tasks.anomaly.motion import box_centres_px, working_size
from moevision.tasks.anomaly.streams import FrameAnalyser, Measurement
from moevision.tasks.anomaly.train import held_out

PROTOCOLS = {"p0": honest, "p1": published}
_BOX_THRESHOLD = 1.0  # low, so that region detection has a curve


def evaluate(
    data: Path, descriptor: ModelDescriptor, *, site: SiteCalibration | None = None, device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:  # fmt: skip
    """Measure a model on a set as `datasets.video` describes it.

    Args:
        data: folder with train/, test/ and labels.npz.
        descriptor: the network.
        site: what is normal; None = calibrated on the training clips that the recipe keeps from learning.
        device, dtype: where and in which float type the network runs.

    Returns:
        `metrics`: per protocol micro and macro AUC, EER and the interval of micro AUC, of the product's score; the same
        under `baselines` (`frame_difference`, `mb`) and `streams` (each alone, and `frame_mean`, the mean error of the
        predicted frame, as the papers score it); `gain_over_mb` (95 % interval and median of the paired
        difference of micro AUC, p0); with pixel masks `pointing_game`, `rbdc`, `tbdc`. `per_item`: per clip.

    Raises:
        UsageError: a part of the set is missing. InputError: a clip cannot be read.
    """
    began = time.perf_counter()
    if descriptor.task != "anomaly":
        raise UsageError(f"{descriptor.name}: a {descriptor.task} model; choose an anomaly model")
    train, test = ClipFolder(data / "train").paths, ClipFolder(data / "test").paths
    labels = read_labels(data)
    if missing := [p.stem for p in test if p.stem not in labels]:
        raise UsageError(f"{data / 'labels.npz'}: no labels for {', '.join(missing)}")
    model = cast("MemoryOutNet", descriptor.model.to(device=device, dtype=dtype))
    if site is None:
        kept = held_out(p.stem for p in train) or {p.stem for p in train}
        openers = [partial(open_source, str(p)) for p in train if p.stem in kept]
        site = fit_site(openers, descriptor, device=device, dtype=dtype)
    source_hw = site.source_size_hw
    baselines = _baselines(train, site)
    analyser = FrameAnalyser(model, normal=site.normal, fps=site.fps, device=device, dtype=dtype)
    clips = {path.stem: _measure(path, analyser, source_hw) for path in test}
    masks = read_masks(data, source_hw[1])
    _check_truth(clips, labels, masks, source_hw, data)

    def scored(by: SiteCalibration, *, placed: bool = False) -> list[ClipScores]:
        return [
            _clip_scores(n, m, by, labels[n], masks.get(n) if placed else None, source_hw) for n, m in clips.items()
        ]

    product, mb = scored(site, placed=True), scored(baselines["mb"])
    metrics: dict[str, Any] = _numbers(product)
    metrics["baselines"] = {name: _numbers(scored(by)) for name, by in baselines.items()}
    frame_mean = [ClipScores(n, np.array([m.frame_error for m in ms]), labels[n]) for n, ms in clips.items()]
    alone = {name: replace(site, streams={name: by}, score=Statistics(0, 1)) for name, by in site.streams.items()}
    metrics["streams"] = {name: _numbers(scored(by)) for name, by in alone.items()}
    metrics["streams"]["frame_mean"] = _numbers(frame_mean)
    low, median, high = bootstrap_gain(product, mb, honest)
    metrics["gain_over_mb"] = {"low": low, "median": median, "high": high}
    if masks:
        metrics |= {"pointing_game": pointing_game(product), **rbdc_tbdc(product)}
    return {
        "task": "anomaly", "model": descriptor.name, "data": str(data), "n": len(test), "metrics": as_json(metrics),
        "per_item": [as_json(_per_clip(clip)) for clip in product],
        "seconds": round(time.perf_counter() - began, 1), "version": moevision.__version__,
    }  # fmt: skip


def _baselines(train: Sequence[Path], site: SiteCalibration) -> dict[str, SiteCalibration]:
    """The scores that need no network, calibrated on all training clips."""
    analyser = FrameAnalyser(None, streams=MOTION, fps=site.fps)
    normal = [_measure(path, analyser, site.source_size_hw) for path in train]
    streams = {"frame_difference": ("difference",), "mb": MOTION}
    return {
        name: calibrate(
            normal, model="", model_sha256="", source_size_hw=site.source_size_hw, fps=site.fps, streams=chosen
        )
        for name, chosen in streams.items()
    }


def _measure(path: Path, analyser: FrameAnalyser, size_hw: tuple[int, int]) -> list[Measurement]:
    """Of every frame; one that is not analysed, for it comes too soon, measures nothing."""
    analyser.restart()
    with open_source(str(path)) as source:
        if source.size_hw != size_hw:
            sizes = " and ".join(f"{w}x{h}" for h, w in (source.size_hw, size_hw))
            raise InputError(f"{path}: frames of {sizes} in one set; scale them to one size")
        return [analyser.push(frame) or Measurement() for frame in source]


def _check_truth(
    clips: dict[str, list[Measurement]], labels: dict[str, NDArray[np.uint8]], masks: dict[str, NDArray[np.bool_]],
    size_hw: tuple[int, int], data: Path,
) -> None:  # fmt: skip
    """Labels and masks must be of the clips."""
    for name, measurements in clips.items():
        if labels[name].shape != (len(measurements),) or labels[name].max(initial=0) > 1:
            raise UsageError(f"{data / 'labels.npz'}: {name} needs {len(measurements)} labels of 0 or 1")
        if name in masks and masks[name].shape != (len(measurements), *size_hw):
            raise UsageError(f"{data}: the pixel masks of {name} are not of its size and length")


def _clip_scores(
    name: str, measurements: list[Measurement], site: SiteCalibration, label_T: NDArray[np.uint8],
    mask_THW: NDArray[np.bool_] | None, source_hw: tuple[int, int],
) -> ClipScores:  # fmt: skip
    score_T = np.array([site.raw_score(m) for m in measurements])
    if mask_THW is None:
        return ClipScores(name, score_T, label_T, fps=site.fps)
    size_hw = working_size(source_hw)
    peak_T2, boxes = np.full((len(measurements), 2), np.nan), []
    for t, measurement in enumerate(measurements):
        grid = site.heat_grid(measurement) if measurement.grids else np.full((1, 1), -np.inf, np.float32)
        rows, columns = box_centres_px(grid.shape)
        row, column = np.unravel_index(int(grid.argmax()), grid.shape)
        peak_T2[t] = rows[row] * source_hw[0] / size_hw[0], columns[column] * source_hw[1] / size_hw[1]
        boxes.append(boxes_of(grid, _BOX_THRESHOLD, size_hw, source_hw))
    return ClipScores(name, score_T, label_T, peak_T2, tuple(boxes), mask_THW, site.fps)


def _numbers(clips: list[ClipScores]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, protocol in PROTOCOLS.items():
        numbers[name] = frame_metrics(clips, protocol)
        numbers[name]["micro_auc_low"], numbers[name]["micro_auc_high"] = bootstrap_auc(clips, protocol)
    return numbers


def _per_clip(clip: ClipScores) -> dict[str, Any]:
    smooth_T = honest(clip)
    scored = ~np.isnan(smooth_T)
    parts = {kind: smooth_T[scored & (clip.label_T == label)] for kind, label in (("normal", 0), ("abnormal", 1))}
    ends = {f"{kind}_{end}": float(f(part)) for kind, part in parts.items() if len(part) for end, f in _ENDS.items()}
    return {"name": clip.name, "frames": len(smooth_T), "abnormal_frames": int(clip.label_T.sum()), **ends}


_ENDS: dict[str, Callable[[Any], Any]] = {"least": np.min, "median": np.median, "most": np.max}
