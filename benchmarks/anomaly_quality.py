"""Quality of anomaly models on UCSD Ped2, one or several training seeds, and alarms on a scene none of them has seen.

    python benchmarks/anomaly_quality.py runs/s0/model.safetensors runs/s1/model.safetensors --data VAD --out DIR

VAD holds `ucsd_ped2` and `pets_vtest`. Writes `moevision evaluate anomaly` of every model as JSON, `table.md`, and
`pets.json`: a calibration fitted on the first half of the video, and the events that the second half gives at a setting
of six false alarms an hour, with the exact Poisson interval of their rate. `experts.json`: how evenly they are used.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from moevision.api import load
from moevision.datasets.video import ClipFolder, read_clip
from moevision.imaging.sources import RecordedSource, open_source
from moevision.imaging.video import Frame, read_frames
from moevision.moe import Context
from moevision.tasks.anomaly.detector import AnomalyDetector
from moevision.tasks.anomaly.evaluate import evaluate
from moevision.tasks.anomaly.fit import fit_site
from moevision.tasks.anomaly.metrics import poisson_interval
from moevision.tasks.anomaly.model import FRAMES
from moevision.tasks.anomaly.motion import working_size
from moevision.tasks.anomaly.predict import detect
from moevision.tasks.anomaly.train import held_out

ALARMS_PER_HOUR = 6.0


def rows_of(result: dict) -> dict[str, dict]:
    """The scores of one evaluation by their names in the table."""
    metrics = result["metrics"]
    product = {key: metrics[key] for key in ("p0", "p1")}
    alone = {f"{name} alone": row for name, row in metrics["streams"].items()}
    return {
        "product": product,
        **alone,
        "mb": metrics["baselines"]["mb"],
        "frame_difference": metrics["baselines"]["frame_difference"],
    }


def table(results: list[dict]) -> str:
    """Mean over seeds with every seed's value, in percent; intervals are of the first seed's clips."""
    lines = [
        "| score | P0 micro AUC | 95 % interval | P0 macro | P1 micro AUC | P1 macro |",
        "|---|---|---|---|---|---|",
    ]
    every = [rows_of(result) for result in results]
    for name in every[0]:
        rows = [one[name] for one in every]
        cells = [_seeds([row[p][key] for row in rows]) for p, key in (("p0", "micro_auc"), ("p0", "macro_auc"))]
        cells += [_seeds([row["p1"][key] for row in rows]) for key in ("micro_auc", "macro_auc")]
        low, high = (100 * rows[0]["p0"][f"micro_auc_{end}"] for end in ("low", "high"))
        lines.append(f"| {name} | {cells[0]} | {low:.1f} to {high:.1f} | {cells[1]} | {cells[2]} | {cells[3]} |")
    return "\n".join(lines) + "\n"


def _seeds(values: list[float]) -> str:
    shown = [f"{100 * value:.2f}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"{100 * np.mean(values):.2f} ({', '.join(shown)})"


def half(path: Path, second: bool) -> RecordedSource:
    """The first or second half of a video as a source of its own."""
    with open_source(str(path)) as source:
        count = sum(1 for _ in source)

    def frames() -> Iterator[Frame]:
        with open_source(str(path)) as source:
            for number, frame in enumerate(source):
                if (number >= count // 2) == second:
                    yield frame

    with open_source(str(path)) as source:
        fps = source.fps
    return RecordedSource(f"{path.name}, {'second' if second else 'first'} half", fps, frames())


def pets(model: str, path: Path) -> dict:
    """Events on the second half of a normal video, at six false alarms an hour by the first half."""
    descriptor = load(model)
    site = fit_site([lambda: half(path, second=False)], descriptor, model=descriptor.name)
    threshold = site.threshold_for_rate(ALARMS_PER_HOUR)
    with half(path, second=True) as source:
        found = detect(source, AnomalyDetector(site, descriptor), threshold)
    hours = (found.times_s[-1] - found.times_s[0]) / 3600
    low, high = poisson_interval(len(found.events), hours)
    return {
        "asked_per_hour": ALARMS_PER_HOUR,
        "threshold": threshold._asdict(),
        "fitted_minutes": round(60 * site.hours, 2),
        "watched_minutes": round(60 * hours, 2),
        "events": len(found.events),
        "events_per_hour": round(len(found.events) / hours, 1),
        "events_per_hour_95": [round(low, 1), round(high, 1)],
        "disturbed_frames": found.disturbed,
    }


@torch.inference_mode()
def experts(model: str, data: Path) -> dict[str, dict]:
    """How evenly the routed filters are used on the clips kept from training: dead ones, least and most, entropy."""
    net = load(model).model
    paths = ClipFolder(data / "train").paths
    kept = held_out(path.stem for path in paths)
    counts: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.stem in kept:
            clip = read_clip(path, working_size(next(read_frames(path)).pixels_HWC.shape[:2]))
            for start in range(0, len(clip) - FRAMES, 10):
                context = Context()
                net(torch.from_numpy(clip[start : start + FRAMES].astype(np.float32))[None] / 127.5 - 1, context)
                for name, record in context.records.items():
                    counts[name] = counts.get(name, 0) + record.routing.counts_E
    report = {}
    for name, counts_E in counts.items():
        share_E = counts_E.double() / counts_E.sum()
        entropy = -(share_E * share_E.clamp_min(1e-12).log()).sum() / np.log(len(share_E))
        report[name] = {
            "dead": int((counts_E == 0).sum()),
            "least": round(float(share_E.min()), 4),
            "most": round(float(share_E.max()), 4),
            "entropy": round(float(entropy), 4),
        }
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, model in enumerate(arguments.models):
        results.append(evaluate(arguments.data / "ucsd_ped2", load(model)))
        results[-1]["data"] = "ucsd_ped2"
        (arguments.out / f"ped2_{number}.json").write_text(json.dumps(results[-1], indent=1) + "\n")
        (arguments.out / "table.md").write_text(table(results))
    print(table(results))
    usage = experts(arguments.models[0], arguments.data / "ucsd_ped2")
    (arguments.out / "experts.json").write_text(json.dumps(usage, indent=1) + "\n")
    print(usage)
    scene = pets(arguments.models[0], arguments.data / "pets_vtest" / "vtest.mp4")
    (arguments.out / "pets.json").write_text(json.dumps(scene, indent=1) + "\n")
    print(scene)


if __name__ == "__main__":
    main()
