"""Tiled against whole, and memory of a 12-megapixel photograph.

    python benchmarks/tiling.py PHOTO --model restoration-small --json FILE

PHOTO is resized to 2048x1536 (tiled against whole) and 4000x3000 (peak memory, in a process of its own). The seam ratio
is the mean gradient of (tiled - whole) on tile borders over that elsewhere: 1 means nothing marks the borders.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from moevision.api import restoration_task
from moevision.imaging.picture import picture_from_array
from moevision.imaging.tiling import plan_tiles
from moevision.tasks.restoration.metrics import psnr

MEMORY = """
import re, sys, time, cv2, moevision
photo = cv2.resize(cv2.imread(sys.argv[1])[..., ::-1], (4000, 3000), interpolation=cv2.INTER_CUBIC)
begun = time.perf_counter()
moevision.restore(photo, model=sys.argv[2])
# VmHWM, not ru_maxrss: the latter starts at what the parent process held.
peak_kb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(peak_kb // 1024, round(time.perf_counter() - begun, 1))
"""


def seam_ratio(difference_HW: np.ndarray, borders_px: list[int]) -> float:
    """Mean absolute column difference at the borders over the mean everywhere."""
    steps = np.abs(np.diff(difference_HW, axis=1))
    at = np.concatenate([steps[:, x - 1 : x + 1].ravel() for x in borders_px])
    return float(at.mean() / max(steps.mean(), 1e-9))


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", default="restoration-small")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    photo = cv2.resize(cv2.imread(str(options.photo))[..., ::-1], (2048, 1536), interpolation=cv2.INTER_CUBIC)
    picture, outputs, seconds = picture_from_array(np.ascontiguousarray(photo)), {}, {}
    for name, tile_px in (("whole", 0), ("tiled", None)):
        task = restoration_task(model=options.model, tile_px=tile_px)
        begun = time.perf_counter()
        outputs[name] = task((picture,)).picture.pixels_HWC
        seconds[name] = round(time.perf_counter() - begun, 2)
    descriptor = task.descriptor
    first_row = plan_tiles(1536, 2048, descriptor.tile_px, descriptor.overlap_px, descriptor.size.tile_multiple_px)[0]
    difference = outputs["tiled"].astype(float).mean(2) - outputs["whole"].astype(float).mean(2)
    memory = subprocess.run(
        [sys.executable, "-c", MEMORY, str(options.photo), options.model], capture_output=True, text=True, check=True
    )
    peak_mb, large_s = memory.stdout.split()
    result = {
        "photo": options.photo.name,
        "model": descriptor.name,
        "tiled_against_whole_psnr": round(psnr(outputs["tiled"], outputs["whole"]), 2),
        "largest_difference": int(np.abs(outputs["tiled"].astype(int) - outputs["whole"]).max()),
        "seam_ratio": round(seam_ratio(difference, [tile.x0 for tile in first_row[1:]]), 3),
        "seconds_2048x1536": seconds,
        "peak_mb_4000x3000": int(peak_mb),
        "seconds_4000x3000": float(large_s),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
