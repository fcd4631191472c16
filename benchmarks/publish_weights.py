"""Put a trained model.safetensors into weights/: file, manifest entry and model card, in one step.

    python benchmarks/publish_weights.py runs/x/model.safetensors restoration-small --evaluations a.json b.json \
        --command "moevision train restoration ..." --data-note "..."

The evaluations are outputs of `moevision evaluate TASK --json`; nothing is measured here.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

from moevision.api import build_model
from moevision.checkpoint import load_model
from moevision.tasks.anomaly.calibration import SiteCalibration
from moevision.tasks.fusion.metrics import METRICS

WEIGHTS = Path(__file__).parent.parent / "weights"
LIMIT_BYTES = 10_000_000
# By task, or by name where a model differs from the others of its task.
LIMITS = {
    "restoration": (
        "Raindrops: large or bright ones stay; a clear photograph may be taken for one with faint drops.",
        "The thinnest haze outdoors is not recognised; tell it with --weather haze.",
        "Dark or very dense fog can come back too dark.",
        "Bright veils of rain are only partly removed.",
        "Several weathers at once were a twentieth of the training; a part of them stays (see the table).",
        "Trained on synthetic rain, drops and snow and on indoor haze; strong real weather is only partly removed.",
        "Opaque occlusion (large drops, thick flakes) destroys detail; it comes back smooth, not invented.",
        "Dense haze over noise or JPEG blocks amplifies them.",
    ),
    "fusion": (
        "Trained on 152 road scenes of one camera pair; deep night was made by darkening the visible picture.",
        "Pairs must show the same view: --register ecc mends a shift and a turn, nothing mends parallax.",
        "What is brighter wins: a hot sky or road hides what the visible picture shows of it.",
        "Noise of a very dark visible picture is kept where the infrared one shows nothing.",
    ),
    "anomaly": (
        "Trained on 13 clips (3.4 minutes) of one walkway; another camera needs its own calibration (anomaly-fit).",
        "A still camera is assumed: what pans, shakes or zooms changes the whole picture and is not scored.",
        "Only what moves is looked at: a thing that was left behind is seen while it is put down, not later.",
        "What is as large, as fast and looks as what is normal is not found; who people are does not matter to it.",
        "The calibration that is shipped rests on 47 seconds of footage: its threshold for alarms an hour is a guess.",
    ),
    "segmentation": (
        "Knows streets as one car's camera saw them in one town, by day: 367 pictures of 480x360, eleven classes.",
        "Something else (indoors, nature, aerial pictures) is still given one of the eleven classes.",
        "Poles, signs and what is far away are the least certain; what is thinner than four pixels is often missed.",
        "Weather costs it much, and --restore auto gives only a little of that back: segmentation-camvid-weather.",
    ),
    "restoration-street": (
        "Made for what segmentation-camvid sees: of other photographs restoration-small makes the better pictures.",
        "Learned on the streets of CamVid's training pictures among others; its weather is synthetic.",
        "Large drops stay as ghosts. Where there is no street, a hazy sky may come back dark and blotched.",
        "No wet road, no snow on the ground, no headlights, no night.",
    ),
    "segmentation-camvid-weather": (
        "Knows streets as one car's camera saw them in one town, by day: 367 pictures of 480x360, eleven classes.",
        "Something else (indoors, nature, aerial pictures) is still given one of the eleven classes.",
        "Poles, signs and what is far away are the least certain; what is thinner than four pixels is often missed.",
        "Its weather is synthetic: no wet road, no snow on the ground, no headlights, no night.",
        "In clear pictures it is a little worse than segmentation-camvid.",
    ),
}
SUMMARY = {
    "restoration": "All-weather restoration (rain, raindrops, snow, haze) with one set of weights",
    "fusion": "Fusion of an infrared and a visible picture",
    "anomaly": "Prediction of the next frame through sparse filters and an encoder of how things look: what does not "
    "belong in a video",
    "segmentation": "Eleven street classes for every pixel",
    "restoration-street": "Rain, snow, haze and drops out of pictures from a car, for segmentation-camvid to look at",
    "segmentation-camvid-weather": "Eleven street classes for every pixel, in rain, snow, haze and behind drops, too",
}


def entry_of(source: Path, name: str, evaluations: list[Path], command: str, data_note: str) -> dict:
    """The manifest entry of a weights file."""
    data = source.read_bytes()
    if len(data) > LIMIT_BYTES:
        raise SystemExit(f"{source}: {len(data)} bytes, more than the {LIMIT_BYTES} that may be shipped")
    descriptor = load_model(source, build_model)
    metrics = {}
    for path in evaluations:
        result = json.loads(path.read_text())
        if result.get("weather") is not None:
            raise SystemExit(f"{path}: the model was told the weather; a card shows what it does unasked")
        measured = {key: value for key, value in result["metrics"].items() if key != "against"}
        metrics[path.stem] = {"n": result["n"], **measured}
    return {
        "name": name,
        "file": f"{name}.safetensors",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "task": descriptor.task,
        "params": sum(p.numel() for p in descriptor.model.parameters()),
        "training": {**descriptor.training, "command": command, "data": data_note},
        "metrics": metrics,
        "limits": list(LIMITS.get(name, LIMITS[descriptor.task])),
        "license": "Apache-2.0",
    }


def restoration_quality(metrics: dict) -> list[str]:
    """The lines of the card's quality section."""
    rows = [
        f"| {name} ({m['n']}) | {m['baselines']['identity']['psnr']:.2f} / {m['baselines']['identity']['ssim']:.3f} "
        f"| {m['baselines']['dark_channel']['psnr']:.2f} / {m['baselines']['dark_channel']['ssim']:.3f} "
        f"| **{m['psnr']:.2f} / {m['ssim']:.3f}** | {m['psnr_y']:.2f} / {m['ssim_y']:.3f} |"
        for name, m in metrics.items()
    ]
    return [
        "PSNR in dB / SSIM, uint8, whole picture, RGB; last column on luma. Identity and the dark-channel prior "
        "are the trivial baselines. Sets named `*_dev` were used to choose settings.",
        "",
        "| set (pictures) | identity | dark channel | this model | luma |",
        "|---|---|---|---|---|",
        *rows,
    ]


def fusion_quality(metrics: dict) -> list[str]:
    """The lines of the card's quality section."""
    rows = []
    for name, measured in metrics.items():
        for arm, row in {"this model": measured, **measured["baselines"]}.items():
            cells = " | ".join(f"{row[metric]:.3f}" for metric in METRICS)
            rows.append(f"| {name} ({measured['n']}) | {arm} | {cells} |")
    return [
        "Means over pairs in the convention of CDDFuse's evaluator (grey uint8; MI in nats; SSIM and VIF summed over "
        "both sources; Nabf lower is better). Average and pixel-max are the trivial baselines. Settings were chosen on "
        "validation pairs, but how night is made was changed after a look at the night pictures of `msrs_test_subset`.",
        "",
        f"| set (pairs) | method | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 2) + "|",
        *rows,
    ]


def anomaly_quality(metrics: dict) -> list[str]:
    """The lines of the card's quality section."""
    rows = []
    for name, measured in metrics.items():
        product = {key: measured[key] for key in ("p0", "p1")}
        arms = {"product score": product, **measured["baselines"]}
        arms |= {f"{stream} alone": row for stream, row in measured["streams"].items()}
        for arm, row in arms.items():
            p0, p1 = row["p0"], row["p1"]
            cells = f"{100 * p0['micro_auc']:.2f} | {100 * p0['micro_auc_low']:.1f} to {100 * p0['micro_auc_high']:.1f}"
            rows.append(f"| {name} ({measured['n']}) | {arm} | {cells} | {100 * p1['micro_auc']:.2f} |")
    return [
        "Frame AUC in percent over all frames of the clips (micro), with a bootstrap interval over clips. P0 is "
        "honest: causal, nothing taken from the clip; P1 is the papers': every clip stretched to 0..1 and smoothed "
        "with its future. `mb` (frame difference and flow) and `frame_difference` are the trivial baselines.",
        "",
        "| set (clips) | score | P0 | 95 % interval | P1 |",
        "|---|---|---|---|---|",
        *rows,
    ]


def segmentation_quality(metrics: dict) -> list[str]:
    """The lines of the card's quality section."""
    rows = []
    for name, measured in metrics.items():
        for arm, row in {"this model": measured, **measured["baselines"]}.items():
            interval = f"{100 * row['miou_low']:.1f} to {100 * row['miou_high']:.1f}"
            cells = f"{100 * row['miou']:.1f} | {interval} | {100 * row['pixel_accuracy']:.1f}"
            rows.append(f"| {name} ({measured['n']}) | {arm} | {cells} |")
    first = next(iter(metrics.values()))
    classes = {key.removeprefix("iou."): value for key, value in first.items() if key.startswith("iou.")}
    listed = ", ".join(f"{name} {100 * value:.0f}" for name, value in classes.items() if value is not None)
    return [
        "Intersection over union in percent, the mean over classes (mIoU), pixels counted over all pictures; intervals "
        "by bootstrap over pictures, too narrow because frames of one drive are alike. `majority` is the commonest "
        "class everywhere.",
        "",
        "| set (pictures) | method | mIoU | 95 % interval | pixel accuracy |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"By class: {listed}.",
    ]


QUALITY = {
    "restoration": restoration_quality,
    "fusion": fusion_quality,
    "anomaly": anomaly_quality,
    "segmentation": segmentation_quality,
}


def card_of(entry: dict) -> str:
    """The model card: what it is, how good, how made, where it fails."""
    training, task = entry["training"], entry["task"]
    return "\n".join(
        [
            f"# {entry['name']}",
            "",
            f"{SUMMARY.get(entry['name'], SUMMARY[task])}: "
            f"{entry['params']:,} parameters, {entry['bytes']:,} bytes, float32 safetensors, Apache-2.0.",
            "",
            "## Quality",
            *QUALITY[task](entry["metrics"]),
            "",
            "## Training",
            f"`{training['command']}` (seed {training['seed']}, {training['steps']} steps).",
            "",
            f"Data: {training['data']}",
            "",
            "## Limits",
            *(f"- {limit}" for limit in entry["limits"]),
            "",
        ]
    )


def main() -> None:
    """Copy the file, replace the manifest entry of that name, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("name")
    parser.add_argument("--evaluations", type=Path, nargs="+", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--data-note", required=True)
    options = parser.parse_args()
    entry = entry_of(options.source, options.name, options.evaluations, options.command, options.data_note)
    shutil.copyfile(options.source, WEIGHTS / entry["file"])
    if entry["task"] == "anomaly":  # what is normal where it was trained
        site = SiteCalibration.read(options.source.with_suffix(".site.json"))
        replace(site, model=entry["name"]).write((WEIGHTS / entry["file"]).with_suffix(".site.json"))
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    others = [other for other in manifest["models"] if other["name"] != entry["name"]]
    manifest["models"] = sorted([*others, entry], key=lambda one: one["name"])
    (WEIGHTS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (WEIGHTS / f"{entry['name']}.md").write_text(card_of(entry))
    print(f"{entry['name']}: {entry['params']:,} parameters, {entry['bytes']:,} bytes")


if __name__ == "__main__":
    main()
