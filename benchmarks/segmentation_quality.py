"""What a segmentation model is worth, with fewer experts, in tiles, and how fast.

    python benchmarks/segmentation_quality.py segmentation-camvid --data CAMVID/val --out DIR

Writes `quality.json`, `quality.md` and `pictures.png`. Rows: every share of active experts, against all of them, with
the paired bootstrap over pictures; tiles against the whole picture. Speed: median seconds of a picture in memory to its
class ids, on the threads there are; run it on an idle machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from moevision.api import segmentation_task
from moevision.datasets.segmentation import LabelledFolder
from moevision.imaging.picture import picture_from_array
from moevision.tasks.segmentation.labels import draw_overlay
from moevision.tasks.segmentation.metrics import confusion_of, miou_interval, paired_interval, scores_of
from moevision.tasks.segmentation.predict import SegmentationTask

TIMED = 20  # pictures
SHOWN = 4


def confusions(task: SegmentationTask, folder: LabelledFolder) -> np.ndarray:
    """(N, K, K) of all pictures."""
    return np.stack(
        [
            confusion_of(task.segment(picture_from_array(item.image_HWC)).ids_HW, item.label_HW, len(task.classes))
            for item in folder
        ]
    )


def seconds_of(task: SegmentationTask, folder: LabelledFolder) -> float:
    """Median over pictures, the first ones left out."""
    pictures = [picture_from_array(folder[i].image_HWC) for i in range(min(TIMED, len(folder)))]
    found = []
    for picture in pictures:
        begun = time.perf_counter()
        task.segment(picture)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[3:] or found)


def row_of(found_NKK: np.ndarray, reference_NKK: np.ndarray, names: tuple[str, ...], seconds: float) -> dict:
    """Fractions, with intervals."""
    low, high = miou_interval(found_NKK)
    scores = scores_of(found_NKK.sum(0), names)
    return {
        "miou": round(scores["miou"], 4),
        "miou_95": [round(low, 4), round(high, 4)],
        "pixel_accuracy": round(scores["pixel_accuracy"], 4),
        "minus_all_95": [round(v, 4) for v in paired_interval(found_NKK, reference_NKK)],
        "pictures_per_second": round(1 / seconds, 1),
    }


def pictures(task: SegmentationTask, folder: LabelledFolder) -> np.ndarray:
    """Some pictures, what was found in them, and the truth, side by side: RGB."""
    rows = []
    for index in np.linspace(0, len(folder) - 1, SHOWN).astype(int):
        item = folder[int(index)]
        found = task.segment(picture_from_array(item.image_HWC))
        palette = [*task.palette, *[(0, 0, 0)] * (256 - len(task.palette))]
        truth = draw_overlay(item.image_HWC, item.label_HW, palette)
        rows.append(np.concatenate([item.image_HWC, found.overlay(), truth], 1))
    return np.concatenate(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = LabelledFolder(arguments.data)
    shipped = segmentation_task(model=arguments.model)
    moe = shipped.model.config.backbone.moe
    tasks = {"tiles of 256 px": segmentation_task(model=arguments.model, tile_px=256)}
    if moe.experts != "dense":
        shares = sorted({max(1, round(share * moe.num_experts)) for share in (1.0, 0.75, 0.5, 0.25)}, reverse=True)
        tasks |= {
            f"{k} of {moe.num_experts} experts": segmentation_task(model=arguments.model, experts=k) for k in shares
        }
        tasks["as shipped"] = shipped
        reference = f"{moe.num_experts} of {moe.num_experts} experts"
    else:
        tasks["as shipped"], reference = shipped, "as shipped"
    found = {name: confusions(task, folder) for name, task in tasks.items()}
    rows = {
        name: row_of(found[name], found[reference], shipped.classes, seconds_of(task, folder))
        for name, task in tasks.items()
    }
    per_class = {k: round(v, 4) for k, v in scores_of(found["as shipped"].sum(0), shipped.classes).items()}
    result = {
        "model": shipped.descriptor.name, "n": len(folder), "threads": torch.get_num_threads(), "rows": rows,
        "as_shipped": per_class,
    }  # fmt: skip
    (arguments.out / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| | mIoU, % | 95 % | less all experts, 95 % | pictures a second |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        (low, high), (less, more) = row["miou_95"], row["minus_all_95"]
        lines.append(
            f"| {name} | {100 * row['miou']:.2f} | {100 * low:.1f} to {100 * high:.1f} | {100 * less:+.2f} to "
            f"{100 * more:+.2f} | {row['pictures_per_second']} |"
        )
    (arguments.out / "quality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    cv2.imwrite(str(arguments.out / "pictures.png"), pictures(shipped, folder)[..., ::-1])


if __name__ == "__main__":
    main()
