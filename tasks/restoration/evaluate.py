"""`moevision evaluate restoration`: quality on paired folders, with the trivial baselines beside it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevision.datasets.paired import PairedFolder
from moevision.imaging.picture import picture_from_array
from moevision.tasks.restoration.baselines import BASELINES
from moevision.tasks.restoration.metrics import quality
from moevision.tasks.restoration.predict import RestorationTask

Image = NDArray[np.uint8]


def evaluate(data: Path, task: RestorationTask) -> dict[str, Any]:
    """Restore every `data/input` picture and compare it with `data/gt`.

    Returns:
        {"task", "model", "weather" (told, or None), "data", "n",
        "metrics": {psnr, ssim, psnr_y, ssim_y, baselines: {identity, dark_channel}}, "per_item": [...],
        "seconds", "version"}; metrics are means over pictures (uint8, whole picture). A picture that comes back
        unchanged has infinite PSNR; it counts as 100 dB in the mean and is reported as 100.

    Raises:
        UsageError: the folder is missing or holds no pair.
    """
    from moevision import __version__

    arms: dict[str, Callable[[Image], Image]] = {"model": lambda image: _restore(task, image), **BASELINES}
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    for degraded_HWC, target_HWC, name in PairedFolder(data):
        row: dict[str, Any] = {"name": name}
        for arm, restore in arms.items():
            begun = time.perf_counter()
            restored_HWC = restore(degraded_HWC)
            elapsed = time.perf_counter() - begun
            row[arm] = {key: min(value, 100.0) for key, value in quality(restored_HWC, target_HWC).items()}
            seconds += elapsed if arm == "model" else 0.0
        rows.append(row)
    means = {arm: _means([row[arm] for row in rows]) for arm in arms}
    return {
        "task": "restoration",
        "model": task.descriptor.name,
        "weather": None if task.weather is None else list(task.weather),
        "data": str(data),
        "n": len(rows),
        "metrics": {**means.pop("model"), "baselines": means},
        "per_item": [{"name": row["name"], **row["model"], "identity_psnr": row["identity"]["psnr"]} for row in rows],
        "seconds": round(seconds, 3),
        "version": __version__,
    }


def _restore(task: RestorationTask, image_HWC: Image) -> Image:
    return task((picture_from_array(image_HWC),)).picture.pixels_HWC


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.nanmean([row[key] for row in rows])), 4) for key in rows[0]}
