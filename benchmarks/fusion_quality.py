"""Quality of a fusion model on the test sets, beside the trivial rules and published networks; and its gates.

    python benchmarks/fusion_quality.py fusion-small --data ROOT --out benchmarks/records/DATE-fusion

ROOT holds `roadscene_test`, `tno25_test` and `msrs_test_subset`, each with `ir/` and `vis/`. Writes `moevision evaluate
fusion` of each as JSON, `table.md`, `tiling.json`, `gates.json`: how the visible weight follows the light, and
`still.json`: how much gates and visible weight change from frame to frame where nothing but noise does.

The rows of published networks are means of their released weights' results on the same files by an evaluator that
reproduces the same golden figures (tests/unit/tasks/test_fusion_metrics.py). They were measured once, apart from this
script, and are written down here; their pictures are not at hand, so there is no paired interval for them.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from moevision.api import fusion_task
from moevision.datasets.infrared_visible import PairFolder
from moevision.imaging.picture import picture_from_array
from moevision.tasks.fusion.evaluate import evaluate
from moevision.tasks.fusion.metrics import LOWER_IS_BETTER, METRICS
from moevision.tasks.fusion.video import Steadiness

SETS = ("roadscene_test", "tno25_test", "msrs_test_subset")
# EN SD SF AG MI SCD VIF Qabf SSIM Nabf
PEERS = {
    "roadscene_test": {
        "SeAFusion": (7.066, 42.23, 12.590, 4.871, 2.215, 1.632, 0.642, 0.529, 1.375, 0.025),
        "IFCNN": (7.097, 39.18, 14.555, 5.651, 1.952, 1.613, 0.620, 0.546, 1.375, 0.038),
        "DenseFuse": (6.638, 28.51, 7.510, 2.866, 2.008, 1.416, 0.572, 0.383, 1.478, 0.000),
        "DATFuse": (6.724, 32.27, 11.315, 4.000, 2.619, 1.288, 0.625, 0.519, 1.376, 0.009),
        "TarDAL": (7.171, 47.39, 10.806, 3.932, 2.144, 1.552, 0.542, 0.401, 1.378, 0.021),
    },
    "tno25_test": {
        "SeAFusion": (6.879, 38.47, 10.798, 4.280, 1.985, 1.676, 0.662, 0.512, 1.357, 0.029),
        "IFCNN": (6.888, 38.40, 13.732, 5.280, 1.499, 1.742, 0.620, 0.493, 1.343, 0.055),
        "DenseFuse": (6.422, 26.10, 6.904, 2.662, 1.608, 1.541, 0.575, 0.357, 1.458, 0.000),
        "DATFuse": (6.577, 29.65, 10.085, 3.741, 2.356, 1.449, 0.698, 0.508, 1.328, 0.017),
        "TarDAL": (6.824, 45.27, 8.591, 3.047, 1.859, 1.519, 0.529, 0.318, 1.323, 0.027),
    },
    "msrs_test_subset": {
        "SeAFusion": (6.714, 47.05, 11.736, 4.048, 2.533, 1.776, 0.871, 0.626, 1.332, 0.019),
        "IFCNN": (6.175, 35.77, 13.353, 4.471, 1.402, 1.516, 0.622, 0.529, 1.306, 0.031),
        "DenseFuse": (6.052, 27.13, 6.648, 2.318, 1.935, 1.349, 0.632, 0.353, 1.373, 0.000),
        "DATFuse": (6.560, 40.05, 11.433, 3.783, 2.651, 1.590, 0.841, 0.593, 1.186, 0.016),
        "TarDAL": (5.508, 26.43, 7.214, 2.065, 1.541, 0.879, 0.385, 0.180, 0.988, 0.016),
    },
}
EXPOSURES = (1.0, 0.6, 0.35, 0.2, 0.1, 0.05)
DARKENED_SCENES = 20
STILL_SCENES, STILL_FRAMES, STILL_NOISE = 10, 25, 4.0  # of 255, in both cameras


def table(results: dict[str, dict]) -> str:
    """One markdown row per set and method, and on how many metrics the model is better than it."""
    lines = [f"| set | method | {' | '.join(METRICS)} | model better on |", "|---" * (len(METRICS) + 3) + "|"]
    for name, result in results.items():
        ours = result["metrics"]
        rows = {"moevision": ours, **ours["baselines"]}
        rows |= {peer: dict(zip(METRICS, values, strict=True)) for peer, values in PEERS[name].items()}
        for method, row in rows.items():
            cells = " | ".join(f"{row[m]:.3f}" if row[m] < 10 else f"{row[m]:.2f}" for m in METRICS)
            wins = "" if method == "moevision" else f"{sum(better(ours, row, m) for m in METRICS)} of 10"
            lines.append(f"| {name} | {method} | {cells} | {wins} |")
    return "\n".join(lines) + "\n"


def better(ours: dict[str, float], theirs: dict[str, float], metric: str) -> bool:
    """To the three decimals that the published rows have."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return sign * (round(ours[metric], 3) - round(theirs[metric], 3)) > 0


def gates(root: Path, model: str) -> dict:
    """Visible weight as the visible picture is darkened, and by night against by day (two independent bootstraps)."""
    task = fusion_task(model=model, precision="fp32")
    scenes, slopes = [], []
    for pair in list(PairFolder(root / "roadscene_test"))[:DARKENED_SCENES]:
        infrared = picture_from_array(pair.infrared_HWC)
        weights = []
        for exposure in EXPOSURES:
            dark = picture_from_array(np.rint(pair.visible_HWC * exposure).astype(np.uint8))
            weights.append(task((infrared, dark)).facts["visible_weight"])
        scenes.append(weights)
        slopes.append(spearman(np.arange(len(EXPOSURES)), np.array(weights)))
    found = {"night": [], "day": []}
    for pair in PairFolder(root / "msrs_test_subset"):
        result = task((picture_from_array(pair.infrared_HWC), picture_from_array(pair.visible_HWC)))
        found["night" if pair.name.endswith("N") else "day"].append(result.facts["visible_weight"])
    rng = np.random.default_rng(0)
    night, day = (np.array(found[k])[rng.integers(len(found[k]), size=(5000, len(found[k])))].mean(1) for k in found)
    return {
        "exposures": EXPOSURES,
        "visible_weight_by_exposure": np.mean(scenes, axis=0).round(4).tolist(),
        "spearman_mean": round(float(np.mean(slopes)), 4),
        "spearman_each": np.round(slopes, 3).tolist(),
        "visible_weight_night": found["night"],
        "visible_weight_day": found["day"],
        "day_minus_night": round(float(np.mean(found["day"]) - np.mean(found["night"])), 4),
        "day_minus_night_95": np.percentile(day - night, (2.5, 97.5)).round(4).tolist(),
    }


def tiled_against_whole(root: Path, model: str) -> dict:
    """Largest difference, of 255, between tiles and the whole of a pair enlarged to 2048x1280, in float32."""
    pair = PairFolder(root / "roadscene_test")[0]
    infrared, visible = (
        picture_from_array(cv2.resize(image, (2048, 1280), interpolation=cv2.INTER_CUBIC))
        for image in (pair.infrared_HWC, pair.visible_HWC)
    )
    whole, tiled = (fusion_task(model=model, precision="fp32", tile_px=t)((infrared, visible)) for t in (0, None))
    difference = whole.picture.pixels_HWC.astype(int) - tiled.picture.pixels_HWC
    return {"tiles": tiled.facts["tiles"], "largest_difference": int(np.abs(difference).max())}


def still(root: Path, model: str) -> dict:
    """Largest change a frame of any expert's gate weight and of the visible weight, over scenes that stand still."""
    largest = {"gate": 0.0, "visible_weight": 0.0}
    pairs = [p for name in ("roadscene_test", "msrs_test_subset") for p in PairFolder(root / name)]
    rng = np.random.default_rng(0)
    for pair in pairs[:: len(pairs) // STILL_SCENES][:STILL_SCENES]:
        task = fusion_task(model=model, precision="fp32")
        task.new_context = Steadiness().context
        before: dict[str, float] | None = None
        for _ in range(STILL_FRAMES):
            noisy = [
                picture_from_array(np.clip(x + rng.normal(0, STILL_NOISE, (*x.shape[:2], 1)), 0, 255).astype(np.uint8))
                for x in (pair.infrared_HWC, pair.visible_HWC)
            ]
            facts = task((noisy[0], noisy[1])).facts
            now = {f"{gate}.{e}": w for gate, shares in facts["experts"].items() for e, w in shares.items()}
            now["visible_weight"] = facts["visible_weight"]
            if before is not None:
                for key in now.keys() | before.keys():
                    kind = key if key == "visible_weight" else "gate"
                    largest[kind] = max(largest[kind], abs(now.get(key, 0.0) - before.get(key, 0.0)))
            before = now
    return {"scenes": STILL_SCENES, "frames": STILL_FRAMES, "noise_of_255": STILL_NOISE, "largest_change": largest}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; values of `b` may tie."""
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    for value in np.unique(b):
        ranks[1][b == value] = ranks[1][b == value].mean()
    return float(np.corrcoef(*ranks)[0, 1]) if np.ptp(b) > 0 else 0.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in SETS:
        results[name] = evaluate(arguments.data / name, fusion_task(model=arguments.model))
        results[name]["data"] = name
        (arguments.out / f"{name}.json").write_text(json.dumps(results[name], indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(results))
    print(table(results))
    tiling = tiled_against_whole(arguments.data, arguments.model)
    (arguments.out / "tiling.json").write_text(json.dumps(tiling, indent=1) + "\n")
    print(tiling)
    steady = still(arguments.data, arguments.model)
    (arguments.out / "still.json").write_text(json.dumps(steady, indent=1) + "\n")
    print(steady)
    measured = gates(arguments.data, arguments.model)
    (arguments.out / "gates.json").write_text(json.dumps(measured, indent=1) + "\n")
    print({key: value for key, value in measured.items() if key not in ("spearman_each",)})


if __name__ == "__main__":
    main()
