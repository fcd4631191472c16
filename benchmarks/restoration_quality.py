"""Quality of a restoration model on the development sets, with the trivial baselines: JSON files and a markdown table.

    python benchmarks/restoration_quality.py restoration-small --data ROOT --out benchmarks/records/DATE-restoration

ROOT is laid out like the training data: `weather/*_dev` pairs and `clean/kodak12_dev` photographs, which are weathered
with fixed seeds (`moevision datasets synthesize --seed 2026`). Every row is `moevision evaluate restoration` on one
folder; with --told it is told the folder's weather, and the files are named NAME-told.json and table-told.md.
"""

import argparse
import json
import tempfile
from pathlib import Path

from moevision.api import restoration_task
from moevision.datasets.synthesize import write_pairs
from moevision.tasks.restoration.evaluate import evaluate

# Set -> what a user who is asked would answer.
RECORDED = {"sots_indoor_haze_dev": "haze", "rainstreak_sirr10_dev": "rain", "raindrop_2pairs_dev": "drops"}
SYNTHETIC = ("rain", "drops", "snow", "haze", "haze+rain", "haze+snow", "rain+drops", "clean")


def table(results: dict[str, dict]) -> str:
    """One markdown row per set: PSNR / SSIM of identity, dark channel and the model."""
    lines = ["| set (pictures) | identity | dark channel | model |", "|---|---|---|---|"]
    for name, result in results.items():
        rows = [*result["metrics"]["baselines"].values(), result["metrics"]]
        cells = " | ".join(f"{row['psnr']:.2f} / {row['ssim']:.3f}" for row in rows)
        lines.append(f"| {name} ({result['n']}) | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--told", action="store_true", help="tell the model each set's weather, as --weather does")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: (options.data / "weather" / name, weather) for name, weather in RECORDED.items()}
        for kind in SYNTHETIC:
            folders[f"kodak12_{kind}_dev"] = Path(scratch) / kind, kind
            write_pairs(options.data / "clean" / "kodak12_dev", Path(scratch) / kind, kind)
        mark = "-told" if options.told else ""
        for name, (folder, weather) in folders.items():
            if options.told and weather == "clean":
                continue  # told that there is nothing, the model returns the input: not a measurement
            task = restoration_task(model=options.model, weather=weather.split("+") if options.told else None)
            results[name] = {**evaluate(folder, task), "data": name}
            (options.out / f"{name}{mark}.json").write_text(json.dumps(results[name], indent=1) + "\n")
            print(name, {key: results[name]["metrics"][key] for key in ("psnr", "ssim")}, flush=True)
    (options.out / f"table{mark}.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
