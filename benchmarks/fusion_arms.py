"""What the experts and gates of the fusion network are worth: the same recipe with other parts, three seeds each.

    python benchmarks/fusion_arms.py --data roadscene_train --steps 300 --out benchmarks/records/DATE-fusion-arms

Arms: "moe" as shipped; "dense", one expert as wide as the chosen ones together, for both regions and the decoder, that
sees both modalities; "random gate", experts drawn per picture with equal weights, also in use; "uniform gate", all
experts with equal weights; "balanced", as shipped with `--balance-modalities` (AGM). Measured on the pairs that
training keeps for validation. An arm wins a metric where the mean over seeds is better; intervals are of the paired
difference over pictures (bootstrap), averaged over seeds. "gates" says what the gates of "moe" chose on those pairs.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from moevision.datasets.infrared_visible import PairCrops, PairFolder
from moevision.moe import Context, ConvExperts, Router, Routing, Scorer, Selector, SoftAll, TopK
from moevision.tasks.fusion.metrics import LOWER_IS_BETTER, METRICS, fusion_metrics
from moevision.tasks.fusion.model import PRESETS, FusionConfig, FusionNet
from moevision.tasks.fusion.modulation import ModalityBalance
from moevision.tasks.fusion.train import VALIDATION_EVERY, optimise
from moevision.training.loop import LoopConfig

SEEDS = (0, 1, 2)
RESAMPLES = 5000


class Undecided(Scorer):
    """Equal logits for every expert, whatever the picture."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> zeros (N, E)."""
        return x_ND.new_zeros(len(x_ND), self.num_experts, dtype=torch.float32)


class RandomK(Selector):
    """k experts drawn for every item, with equal weights; in evaluation from a fixed seed."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, logits_NE: Tensor) -> Routing:
        """(N, E) -> Routing."""
        generator = None if self.training else torch.Generator().manual_seed(int(torch.initial_seed()) % 1000)
        order_NE = torch.rand(logits_NE.shape, generator=generator)
        routing = TopK(self.k)(order_NE)
        equal_NK = torch.full_like(routing.weight_NK, 1 / self.k)
        return Routing(routing.index_NK, equal_NK, routing.counts_E, logits_NE.softmax(1))


def moe() -> FusionNet:
    """As shipped."""
    return FusionNet(PRESETS["small"]())


def dense() -> FusionNet:
    """One expert each; 1.5 and 2 times as wide, which costs what the chosen ones cost together."""
    config = PRESETS["small"]()
    one = FusionConfig(config.backbone, 0, 0, 1, 1, 1, 1, balance_weight=0.0)
    net = FusionNet(one)
    c2, c4, _ = config.backbone.stage_channels
    net.local_experts = ConvExperts(2, c4, 3 * c4, c4)
    net.global_experts = ConvExperts(1, c2, 6 * c2, 12)
    nn.init.zeros_(net.global_experts.w2)
    nn.init.zeros_(net.global_experts.b2)
    return net


def with_gates(selector: Callable[[int], Selector]) -> FusionNet:
    """As shipped, but for gates that do not look."""
    net = moe()
    for gate in (*net.local_gates, net.global_gate):
        old = gate.router
        gate.router = Router(Undecided(old.scorer.num_experts), selector(old.selector.k))
    return net


ARMS: dict[str, Callable[[], FusionNet]] = {
    "moe": moe,
    "dense": dense,
    "random gate": lambda: with_gates(RandomK),
    "uniform gate": lambda: with_gates(lambda k: SoftAll()),
    "balanced": moe,
}


@torch.inference_mode()
def measure(net: nn.Module, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
    """METRICS of every validation pair."""
    rows = []
    for visible_HW, infrared_HW in pairs:
        visible, infrared = (torch.from_numpy(x)[None, None].float() / 255 for x in (visible_HW, infrared_HW))
        fused = net(visible, infrared).fused_B1HW[0, 0].clamp(0, 1)
        rows.append(fusion_metrics((fused * 255).round().to(torch.uint8).numpy(), visible_HW, infrared_HW))
    return rows


@torch.inference_mode()
def gates_of(net: nn.Module, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, object]]:
    """Per gate: the share of pairs that get each expert, and the mean weight of the first choice (0.5 = no opinion)."""
    chosen: dict[str, list[Routing]] = {}
    for pair in pairs:
        context = Context()
        net(*(torch.from_numpy(x)[None, None].float() / 255 for x in pair), context)
        for name, record in context.records.items():
            if record.routing.index_NK.shape[0] == 1:
                chosen.setdefault(name, []).append(record.routing)
    return {
        name: {
            "share_of_pairs": (torch.stack([r.counts_E for r in routings]).double().mean(0)).round(decimals=3).tolist(),
            "first_weight": round(float(torch.stack([r.weight_NK.max() for r in routings]).mean()), 3),
        }
        for name, routings in chosen.items()
    }


def compare(results: dict[str, dict[int, list[dict[str, float]]]]) -> dict[str, dict[str, dict[str, object]]]:
    """Per arm and metric its mean, and how much "moe" is better: mean and 95 % interval."""
    report: dict[str, dict[str, dict[str, object]]] = {}
    rng = np.random.default_rng(0)
    for arm, by_seed in results.items():
        report[arm] = {}
        for metric in METRICS:
            sign = -1 if metric in LOWER_IS_BETTER else 1
            values_SP = np.array([[row[metric] for row in rows] for rows in by_seed.values()])
            moe_SP = np.array([[row[metric] for row in results["moe"][seed]] for seed in by_seed])
            gain_P = (sign * (moe_SP - values_SP)).mean(0)
            draws = gain_P[rng.integers(len(gain_P), size=(RESAMPLES, len(gain_P)))].mean(1)
            report[arm][metric] = {
                "mean": round(float(values_SP.mean()), 4),
                "by_seed": values_SP.mean(1).round(4).tolist(),
                "moe_better_by": round(float(gain_P.mean()), 4),
                "interval_95": np.percentile(draws, (2.5, 97.5)).round(4).tolist(),
            }
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = PairCrops(list(PairFolder(arguments.data))[::VALIDATION_EVERY]).images
    results: dict[str, dict[int, list[dict[str, float]]]] = {arm: {} for arm in ARMS}
    arguments.out.mkdir(parents=True, exist_ok=True)
    gates: dict[int, dict[str, dict[str, object]]] = {}
    for seed in SEEDS:
        for arm, build in ARMS.items():
            torch.manual_seed(seed)
            net = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            never = arguments.steps + 1
            loop = LoopConfig(arguments.steps, 6e-4, warmup_steps=50, validate_every=never, seed=seed)
            balance = ModalityBalance() if arm == "balanced" else None
            with tempfile.TemporaryDirectory() as folder:
                average = optimise(net, arguments.data, loop, Path(folder) / "run", balance=balance)
            results[arm][seed] = measure(average, pairs)
            if arm == "moe":
                gates[seed] = gates_of(average, pairs)
            means = {m: round(float(np.mean([r[m] for r in results[arm][seed]])), 3) for m in METRICS}
            print(seed, arm, means, flush=True)
        report = {"steps": arguments.steps, "arms": compare(results), "gates": gates}
        (arguments.out / "arms.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
