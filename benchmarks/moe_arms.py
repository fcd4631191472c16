"""MoFME with the uncertainty-aware router against a conventional MoE and a dense FFN: same recipe, steps and seeds.

    python benchmarks/moe_arms.py --data ROOT --out benchmarks/records/DATE-moe-arms

The arms differ in the feed-forward part of the attention blocks alone; everything else, the data stream included, is
the same for the same seed. Runs are short (--steps): they compare how the arms learn, not how good they become. Their
weights are kept in --runs as NAME-SEED.safetensors, for `downstream.py`.
With --start-from everything but the feed-forward parts begins with trained weights, and those begin anew in every arm,
so that a short run ends where restoration is good for something.
Pictures are the development sets and `clean/kodak12_dev` weathered with fixed seeds. Differences are paired by picture
after a mean over seeds; the interval is a bootstrap over pictures (95 %), stratified by set. Single seeds stand beside
it, since a bootstrap over pictures does not see what another seed would change.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moevision.api import load
from moevision.backbone.config import MoEConfig
from moevision.checkpoint import save_model
from moevision.datasets.mixture import RestorationMixture, dev_sets, synthetic_dev
from moevision.tasks.restoration.metrics import psnr
from moevision.tasks.restoration.model import PRESETS, RestorationNet
from moevision.tasks.restoration.train import Phase, optimise
from moevision.training.loop import LoopConfig

ARMS = {
    "MoFME + uncertainty-aware router": MoEConfig(experts="film", scorer="exact"),
    "MoFME + linear router": MoEConfig(experts="film", scorer="linear"),
    "conventional MoE": MoEConfig(experts="ffn", scorer="linear"),
    "dense FFN": MoEConfig(experts="dense"),
}
FILES = dict(zip(ARMS, ("mofme", "mofme-linear", "moe", "dense"), strict=True))
REFERENCE = next(iter(ARMS))
KINDS = ("rain", "drops", "snow", "haze")
RESAMPLES = 10_000
Pictures = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def held_out(root: Path, longest_px: int) -> dict[str, Pictures]:
    """Centre cuts of the development pictures, by set."""
    sets: dict[str, list[Any]] = {name: list(pairs) for name, pairs in dev_sets(root).items()}
    sets |= {f"kodak12_{kind}": list(synthetic_dev(root, kind)) for kind in KINDS}
    return {name: [tuple(_centre(i, longest_px) for i in row[:2]) for row in rows] for name, rows in sets.items()}  # type: ignore[misc]


def _centre(image_HWC: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    top, left = (max(0, (length - longest_px) // 2) for length in image_HWC.shape[:2])
    return np.ascontiguousarray(image_HWC[top : top + longest_px, left : left + longest_px])


@torch.inference_mode()
def psnr_by_set(net: nn.Module, sets: dict[str, Pictures]) -> dict[str, list[float]]:
    """PSNR in dB of every picture."""
    return {name: [psnr(_restore(net, x), y) for x, y in pictures] for name, pictures in sets.items()}


def _restore(net: nn.Module, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    x_BCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].float() / 255
    restored_CHW = net(x_BCHW.contiguous(memory_format=torch.channels_last))[0][0]
    return (restored_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def begin_with_trunk(net: nn.Module, weights: str) -> None:
    """Trained weights for all but the feed-forward parts, which keep theirs."""
    trained = load(weights, device="cpu").model.state_dict()
    trunk = {name: tensor for name, tensor in trained.items() if ".ffn." not in name}
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items() if ".ffn." not in name}
    if shapes != {name: tensor.shape for name, tensor in trunk.items()}:
        raise SystemExit(f"--start-from {weights}: of another preset")
    net.load_state_dict(trunk, strict=False)


def train_arm(
    arm: str, seed: int, mixture: RestorationMixture, options: argparse.Namespace
) -> tuple[nn.Module, dict[str, float]]:
    """The averaged network of one short run, its size and its cost."""
    torch.manual_seed(seed)
    net = RestorationNet(PRESETS[options.preset]().with_moe(ARMS[arm]))
    if options.start_from:
        begin_with_trunk(net, options.start_from)
    name = f"{FILES[arm]}-{seed}"
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loop = LoopConfig(options.steps, seed=seed, warmup_steps=100, ema_decay=0.99, log_every=200)
    phases = (Phase(0.0, options.crop_px, options.batch_size),)
    begun = time.perf_counter()
    average = optimise(
        net, mixture, loop, options.runs / name, phases=phases, say=lambda line: print(name, line, flush=True)
    )
    training = {"preset": options.preset, "seed": seed, "steps": options.steps}
    save_model(average, options.runs / f"{name}.safetensors", task="restoration", training=training)
    parameters = sum(p.numel() for p in net.parameters())
    return average, {"parameters": parameters, "seconds": round(time.perf_counter() - begun, 1)}


def interval(differences: dict[str, NDArray[np.float64]], rng: np.random.Generator) -> tuple[float, float, float]:
    """(mean, low, high) of the mean over sets of the mean over pictures; pictures are redrawn within their set."""
    mean = float(np.mean([values.mean() for values in differences.values()]))
    draws = np.mean([rng.choice(values, (RESAMPLES, len(values))).mean(1) for values in differences.values()], axis=0)
    return mean, *(float(q) for q in np.quantile(draws, (0.025, 0.975)))


def compare(scores: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    """Reference minus every other arm: over all sets (equal weight) and set by set."""
    rng, result = np.random.default_rng(0), {}
    means = {arm: {name: np.mean([run[name] for run in runs], 0) for name in runs[0]} for arm, runs in scores.items()}
    for arm in scores:
        if arm == REFERENCE:
            continue
        gaps = {name: means[REFERENCE][name] - means[arm][name] for name in means[arm]}
        by_seed = [
            float(np.mean([np.mean(ours[name]) - np.mean(theirs[name]) for name in ours]))
            for ours, theirs in zip(scores[REFERENCE], scores[arm], strict=True)
        ]
        result[arm] = {
            "all": interval(gaps, rng),
            "by_seed": by_seed,
            "by_set": {name: interval({name: values}, rng) for name, values in gaps.items()},
        }
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """Two tables: what every arm reaches, and the differences with their intervals."""
    names = list(result["identity"])
    lines = [
        f"Settings: {result['settings']}",
        "",
        "| arm | parameters | s | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
        "| identity | | | " + " | ".join(f"{np.mean(result['identity'][name]):.2f}" for name in names) + " |",
    ]
    for arm, runs in result["scores"].items():
        cells = [f"{np.mean([np.mean(run[name]) for run in runs]):.2f}" for name in names]
        cost = result["cost"][arm]
        lines.append(f"| {arm} | {cost['parameters']:,} | {cost['seconds']:.0f} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{REFERENCE} minus (dB, mean of sets; 95 % interval over pictures):",
        "",
        "| arm | difference | interval | single seeds | verdict |",
        "|---|---|---|---|---|",
    ]
    for arm, row in result["differences"].items():
        mean, low, high = row["all"]
        same_sign = len({value > 0 for value in row["by_seed"]}) == 1
        verdict = ("better" if mean > 0 else "worse") if (low > 0 or high < 0) and same_sign else "no difference seen"
        seeds = ", ".join(f"{value:+.2f}" for value in row["by_seed"])
        lines.append(f"| {arm} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {seeds} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train every arm with every seed, measure, write `arms.json` and `arms.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/moe-arms"), help="checkpoints; must not exist")
    parser.add_argument("--arms", nargs="+", choices=list(FILES.values()), default=list(FILES.values()))
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--start-from", help="a model of the preset")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--crop-px", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--longest-px", type=int, default=256, help="side of the centre cuts that are measured")
    options = parser.parse_args()
    if FILES[REFERENCE] not in options.arms:
        parser.error(f"--arms: {FILES[REFERENCE]} must be among them, the others are compared with it")
    mixture, sets = RestorationMixture(options.data), held_out(options.data, options.longest_px)
    scores: dict[str, list[dict[str, list[float]]]] = {arm: [] for arm in ARMS if FILES[arm] in options.arms}
    cost: dict[str, dict[str, float]] = {}
    for seed in options.seeds:  # arms in turn, so that all see the same state of the machine
        for arm in scores:
            net, cost[arm] = train_arm(arm, seed, mixture, options)
            scores[arm].append(psnr_by_set(net, sets))
    result = {
        "settings": {
            key: getattr(options, key) for key in ("preset", "start_from", "steps", "crop_px", "batch_size", "seeds")
        },
        "identity": {name: [psnr(x, y) for x, y in pictures] for name, pictures in sets.items()},
        "scores": scores,
        "cost": cost,
        "differences": compare(scores),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "arms.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "arms.md").write_text(to_markdown(result))
    print(to_markdown(result))


if __name__ == "__main__":
    main()
