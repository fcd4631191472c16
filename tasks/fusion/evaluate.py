"""`moevision evaluate fusion`: the field's metrics on folders of pairs, with the trivial baselines and intervals."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from moevision.datasets.infrared_visible import PairFolder
from moevision.datasets.paired import list_images, read_image
from moevision.errors import UsageError
from moevision.imaging.picture import picture_from_array
from moevision.tasks.fusion.baselines import BASELINES
from moevision.tasks.fusion.metrics import LOWER_IS_BETTER, METRICS, Image, fusion_metrics, grey
from moevision.tasks.fusion.predict import FusionTask

_RESAMPLES = 2000


def evaluate(data: Path, task: FusionTask, peers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Fuse every pair of `data/ir` and `data/vis` and measure the result's luma against both sources'.

    Args:
        data: folder with `ir/` and `vis/`.
        task: the model.
        peers: folders of pictures that other methods made of the same pairs, with the pairs' names.

    Returns:
        {"task", "model", "data", "n", "metrics": {each of METRICS, "visible_weight", "baselines": {average, pixel_max,
        a peer's folder name ...}, "against": {baseline or peer: {metric: [low, high] of the mean advantage, positive =
        the model is better, 95 % by paired bootstrap}}}, "per_item": [...], "seconds", "version"}.

    Raises:
        UsageError: a folder is missing, holds no pair, or a peer lacks a picture.
    """
    from moevision import __version__

    pairs = PairFolder(data)
    shown = {folder.name: {path.stem: path for path in list_images(folder)} for folder in peers}
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ("model", *BASELINES, *shown)}
    items: list[dict[str, Any]] = []
    seconds = 0.0
    for infrared_HWC, visible_HWC, name in pairs:
        begun = time.perf_counter()
        result = task((picture_from_array(infrared_HWC), picture_from_array(visible_HWC)))
        seconds += time.perf_counter() - begun
        infrared_HW, visible_HW = grey(infrared_HWC), grey(visible_HWC)
        rows["model"].append(fusion_metrics(grey(result.picture.pixels_HWC), infrared_HW, visible_HW))
        for arm, rule in BASELINES.items():
            rows[arm].append(fusion_metrics(rule(visible_HW, infrared_HW), infrared_HW, visible_HW))
        for arm, pictures in shown.items():
            if name not in pictures:
                raise UsageError(f"{arm}: no picture called {name}; a peer must have fused every pair")
            rows[arm].append(fusion_metrics(_of_size(read_image(pictures[name]), visible_HW), infrared_HW, visible_HW))
        items.append({"name": name, **_rounded(rows["model"][-1]), "visible_weight": result.facts["visible_weight"]})
    means = {
        arm: _rounded({m: float(np.nanmean([row[m] for row in found])) for m in METRICS}) for arm, found in rows.items()
    }
    others = [arm for arm in rows if arm != "model"]
    metrics: dict[str, Any] = means.pop("model")
    metrics["visible_weight"] = round(float(np.mean([item["visible_weight"] for item in items])), 4)
    metrics["baselines"] = means
    metrics["against"] = {arm: _advantages(rows["model"], rows[arm]) for arm in others}
    return {
        "task": "fusion",
        "model": task.descriptor.name,
        "data": str(data),
        "n": len(items),
        "metrics": metrics,
        "per_item": items,
        "seconds": round(seconds, 3),
        "version": __version__,
    }


def _of_size(image_HWC: np.ndarray, like_HW: Image) -> Image:
    image_HW = grey(image_HWC)
    if image_HW.shape != like_HW.shape:
        raise UsageError(f"a peer's picture is {image_HW.shape}, its pair {like_HW.shape}; they must be equal")
    return image_HW


def _advantages(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Per metric the 95 % interval of the mean advantage over pictures; positive = ours is better."""
    draws = np.random.default_rng(0).integers(len(ours), size=(_RESAMPLES, len(ours)))
    intervals = {}
    for metric in METRICS:
        sign = -1 if metric in LOWER_IS_BETTER else 1
        gain_N = np.array([sign * (a[metric] - b[metric]) for a, b in zip(ours, theirs, strict=True)])
        low, high = np.nanpercentile(gain_N[draws].mean(1), (2.5, 97.5))
        intervals[metric] = [round(float(low), 4), round(float(high), 4)]
    return intervals


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return _rounded({metric: float(np.nanmean([row[metric] for row in rows])) for metric in METRICS})


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
