"""How well ECC finds a known warp between infrared and visible pictures.

    python benchmarks/registration.py --data roadscene_test --json FILE

Every infrared picture is turned by up to 2 degrees and shifted by up to 8 px (seed 0), then registered to its visible
one. The error is the mean distance of the corners from where they belong: "absolute", taking the pair as aligned, and
"relative" to what registration finds for the pair as it is, since the pairs themselves are not aligned to the pixel.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from moevision.datasets.infrared_visible import PairFolder
from moevision.imaging.registration import register_ecc, warp

LIMIT_PX = 1.5


def true_warp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Visible to infrared points: a turn about the centre and a shift."""
    angle = np.deg2rad(rng.uniform(-2, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    warp_33 = centre @ turn @ np.linalg.inv(centre)
    warp_33[:2, 2] += rng.uniform(-8, 8, 2)
    return warp_33


def corner_error(a_33: np.ndarray, b_33: np.ndarray, height: int, width: int) -> float:
    """Mean distance in px between where both send the corners."""
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], float)
    a, b = corners @ a_33.T, corners @ b_33.T
    return float(np.linalg.norm(a[:, :2] / a[:, 2:] - b[:, :2] / b[:, 2:], axis=1).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"before": [], "absolute": [], "relative": []}
    taken = 0
    for pair in PairFolder(arguments.data):
        grey = [
            cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for i in (pair.visible_HWC, pair.infrared_HWC)
        ]
        height, width = grey[0].shape
        true_33 = true_warp(rng, height, width)
        moved, _ = warp(grey[1], np.linalg.inv(true_33), (height, width))
        found, own = register_ecc(grey[0], moved), register_ecc(grey[0], grey[1])
        taken += found.taken
        errors["before"].append(corner_error(np.eye(3), true_33, height, width))
        errors["absolute"].append(corner_error(found.warp_33, true_33, height, width))
        errors["relative"].append(corner_error(found.warp_33, true_33 @ own.warp_33, height, width))
    result = {
        name: {
            "median_px": round(float(np.median(e)), 3),
            f"share_below_{LIMIT_PX}_px": round(float(np.mean(np.array(e) < LIMIT_PX)), 3),
        }
        for name, e in errors.items()
    }
    result["taken"] = {"share": round(taken / len(errors["before"]), 3)}
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
