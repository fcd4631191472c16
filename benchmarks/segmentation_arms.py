"""What experts and ImageNet are worth in segmentation: the same recipe with other parts, three seeds each.

    python benchmarks/segmentation_arms.py --data CAMVID --pyramid pyramid.safetensors --steps 400 --out DIR

Arms: "moe" as shipped, 4 of 8 experts; "dense", one FFN that does the work of the four; "scratch", the experts without
learned weights to begin with. The pyramid is that of `convert_pyramid.py`. Learned on train, measured on val, which
chose nothing here. Every (arm, seed) is written to `DIR/ARM-SEED.json` and skipped where that is there. The interval is
of "moe" minus the arm: paired bootstrap over pictures, the mean over seeds.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from moevision.datasets.segmentation import Labelled, LabelledFolder
from moevision.tasks.segmentation.metrics import confusion_of, scores_of
from moevision.tasks.segmentation.model import SegmentationNet
from moevision.tasks.segmentation.train import build, optimise, take_over
from moevision.training.loop import LoopConfig

ARMS = {"moe": ("small", True), "dense": ("small-dense", True), "scratch": ("small", False)}
SEEDS = (0, 1, 2)
RESAMPLES = 2000


@torch.inference_mode()
def confusions(net: SegmentationNet, items: list[Labelled]) -> np.ndarray:
    """(N, K, K) on whole pictures."""
    found = []
    for item in items:
        x_1CHW = torch.from_numpy(item.image_HWC).permute(2, 0, 1)[None].float() / 255
        ids_HW = net(x_1CHW)[0].argmax(0).numpy().astype(np.uint8)
        found.append(confusion_of(ids_HW, item.label_HW, len(net.config.classes)))
    return np.stack(found)


def run(arm: str, seed: int, data: Path, pyramid: Path, steps: int) -> dict:
    """Train one arm and measure it."""
    preset, learned = ARMS[arm]
    folder = LabelledFolder(data / "train")
    torch.manual_seed(seed)
    net = build(preset, folder.classes)
    if learned:
        take_over(net, pyramid)
    loop = LoopConfig(
        steps, 1e-3, warmup_steps=min(200, steps // 5), weight_decay=0.01, validate_every=steps + 1, seed=seed,
        ema_decay=0.99,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as run_folder:
        average = optimise(
            net, list(folder), loop, Path(run_folder) / "run", kept=[], learned_pyramid=learned,
            say=lambda line: print(f"{arm}-{seed}", line, flush=True),
        )  # fmt: skip
    found_NKK = confusions(average, list(LabelledFolder(data / "val", data / "classes.txt")))
    return {
        "steps": steps,
        "parameters": sum(p.numel() for p in net.parameters()),
        "scores": scores_of(found_NKK.sum(0), folder.classes.names),
        "confusions": found_NKK.tolist(),
    }


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[float]:
    """95 % interval of the mean over seeds of our mIoU less theirs, by bootstrap over pictures."""
    rng = np.random.default_rng(0)
    names = [str(k) for k in range(ours[0].shape[1])]
    draws = []
    for _ in range(RESAMPLES):
        n = rng.integers(len(ours[0]), size=len(ours[0]))
        gains = [
            scores_of(a[n].sum(0), names)["miou"] - scores_of(b[n].sum(0), names)["miou"]
            for a, b in zip(ours, theirs, strict=True)
        ]
        draws.append(np.mean(gains))
    return [round(float(v), 4) for v in np.percentile(draws, (2.5, 97.5))]


def table(results: dict[str, list[dict]]) -> str:
    """One line an arm."""
    stacks = {arm: [np.array(r["confusions"]) for r in rows] for arm, rows in results.items()}
    lines = ["| arm | parameters | mIoU, % (seeds) | moe less the arm, 95 % |", "|---|---|---|---|"]
    for arm, rows in results.items():
        values = [100 * row["scores"]["miou"] for row in rows]
        low, high = (100 * v for v in difference(stacks["moe"][: len(rows)], stacks[arm]))
        seeds = ", ".join(f"{v:.2f}" for v in values)
        lines.append(
            f"| {arm} | {rows[0]['parameters']:,} | {np.mean(values):.2f} ({seeds}) | {low:+.2f} to {high:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pyramid", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            path = arguments.out / f"{arm}-{seed}.json"
            if not path.exists():
                found = run(arm, seed, arguments.data, arguments.pyramid, arguments.steps)
                path.write_text(json.dumps(found) + "\n")
            results.setdefault(arm, []).append(json.loads(path.read_text()))
            print(arm, seed, round(results[arm][-1]["scores"]["miou"], 4), flush=True)
    if "moe" in results:
        (arguments.out / "arms.md").write_text(table(results))
        print(table(results))


if __name__ == "__main__":
    main()
