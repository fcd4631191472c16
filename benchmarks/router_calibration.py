"""How well calibrated the router of a trained restoration network is, and whether uncertainty awareness helps.

    python benchmarks/router_calibration.py WEIGHTS --data ROOT --json FILE --markdown FILE

One trained router weight W, several ways to turn it into probabilities (post hoc, nothing is retrained): linear, linear
with a fitted temperature (the control that uncertainty awareness must beat), MoFME's equation taken literally, its
repaired form, and exact moments; the sampled ones with M passes. Two questions, after MoFME (AAAI 2024):

Label: does the mean routing vector tell the weather? A multinomial probe is fitted on training photographs and judged
on held-out ones. Oracle: is the router as sure as it is right? Every expert in turn takes all tokens of one layer; the
expert with the least squared error on a token's pixels is that token's oracle; confidence is the largest probability.
Temperatures are fitted on half of the held-out photographs, all numbers come from the other half.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.api import build_model
from moevision.checkpoint import load_model
from moevision.datasets.mixture import RestorationMixture, synthetic_dev
from moevision.moe import (
    Context,
    ExactMomentScorer,
    LinearScorer,
    LiteralUncertaintyScorer,
    MoELayer,
    RepairedUncertaintyScorer,
    Routing,
    Scorer,
)
from moevision.tasks.restoration.calibration import BINS, Probe, calibration, fit_temperature, softmax
from moevision.tasks.restoration.model import PRESETS, RestorationNet
from moevision.tasks.restoration.weathers import WEATHERS

KINDS = ("clean", *WEATHERS)
SAMPLES = (1, 2, 5, 10, 20)
TOKEN_PX, MOMENT_SAMPLES = 8, 1000


@dataclass(frozen=True)
class Crops:
    """Degraded and clean crops, float32 in [0, 1]; `label_N` indexes KINDS, `photo_N` says which photograph."""

    x_NCHW: Tensor
    y_NCHW: Tensor
    label_N: np.ndarray
    photo_N: np.ndarray


# ---------------------------------------------------------------- scorers and routing


def scorer_arms(dropout: float) -> dict[str, Callable[[int, int], Scorer]]:
    """Name -> (D, E) -> scorer; the router weight is filled in by `with_weight`."""
    arms: dict[str, Callable[[int, int], Scorer]] = {
        "linear": LinearScorer,
        "exact": lambda dim, experts: ExactMomentScorer(dim, experts, dropout),
    }
    for samples in SAMPLES:
        arms[f"repaired M={samples}"] = lambda dim, experts, m=samples: RepairedUncertaintyScorer(
            dim, experts, dropout, m
        )
        arms[f"literal M={samples}"] = lambda dim, experts, m=samples: LiteralUncertaintyScorer(
            dim, experts, dropout, m
        )
    return arms


def with_weight(make: Callable[[int, int], Scorer], weight_ED: Tensor) -> Scorer:
    """A scorer of another kind with the trained weight."""
    scorer = make(weight_ED.shape[1], weight_ED.shape[0])
    scorer.weight = nn.Parameter(weight_ED.detach().clone())
    return scorer


class ForcedRouter(nn.Module):
    """Sends every item to one expert."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts, self.expert = num_experts, 0

    def forward(self, x_ND: Tensor, context: Context | None = None) -> Routing:
        """One slot, weight 1."""
        index_N1 = torch.full((x_ND.shape[0], 1), self.expert)
        probs_NE = F.one_hot(index_N1[:, 0], self.num_experts).to(x_ND.dtype)
        return Routing(index_N1, torch.ones_like(index_N1, dtype=x_ND.dtype), probs_NE.sum(0).long(), probs_NE)

    def auxiliary_losses(self, routing: Routing) -> dict[str, Tensor]:
        """None."""
        return {}


def moe_layers(net: nn.Module) -> dict[str, MoELayer]:
    """MoE layers by their name."""
    return {module.name: module for module in net.modules() if isinstance(module, MoELayer)}


@contextmanager
def routers_with(net: nn.Module, make: Callable[[int, int], Scorer]) -> Iterator[None]:
    """The network with another scorer around the same weight in every layer."""
    before = {layer: layer.router.scorer for layer in moe_layers(net).values()}
    try:
        for layer, scorer in before.items():
            layer.router.scorer = with_weight(make, scorer.weight)
        yield
    finally:
        for layer, scorer in before.items():
            layer.router.scorer = scorer


def batches(x_NCHW: Tensor, size: int = 16) -> Iterator[Tensor]:
    """Channels-last batches."""
    for part in x_NCHW.split(size):
        yield part.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- the two calibrations


def mean_routing(net: nn.Module, x_NCHW: Tensor) -> np.ndarray:
    """(N, layers * E): every layer's routing probabilities, averaged over each picture's tokens."""
    rows = []
    for x in batches(x_NCHW):
        context = Context()
        net(x, context)
        probs = [
            r.routing.probs_NE.view(len(x), -1, r.routing.probs_NE.shape[1]).mean(1) for r in context.records.values()
        ]
        rows.append(torch.cat(probs, 1).double().numpy())
    return np.concatenate(rows)


def label_calibration(net: nn.Module, train: Crops, test: Crops, dropout: float) -> dict[str, dict[str, float]]:
    """Probe from mean routing vector to weather, per scorer; the probe's own temperature-scaled form for linear too."""
    result = {}
    for name, make in scorer_arms(dropout).items():
        with routers_with(net, make):
            train_NF, test_NF = mean_routing(net, train.x_NCHW), mean_routing(net, test.x_NCHW)
        probs_NC = Probe(train_NF, train.label_N, len(KINDS))(test_NF)
        tuning_N, judged_N = halves(test.photo_N)
        result[name] = calibration(probs_NC[judged_N], test.label_N[judged_N])
        if name in ("linear", "exact"):
            logits_NC = np.log(probs_NC + 1e-12)
            temperature = fit_temperature(logits_NC[tuning_N], test.label_N[tuning_N])
            scaled = calibration(softmax(logits_NC[judged_N] / temperature), test.label_N[judged_N])
            result[f"{name} + temperature"] = {**scaled, "temperature": temperature}
    return result


def oracle_calibration(net: nn.Module, crops: Crops, layer: MoELayer, dropout: float) -> dict[str, dict[str, float]]:
    """Router probabilities against each token's best expert at one layer, per scorer."""
    x_ND = router_inputs(net, crops.x_NCHW, layer)
    loss_NE = forced_losses(net, crops, layer)
    oracle_N = loss_NE.argmin(1)
    tokens = len(oracle_N) // len(crops.photo_N)
    tuning_N, judged_N = halves(np.repeat(crops.photo_N, tokens))
    result = {}
    for name, make in scorer_arms(dropout).items():
        scorer = with_weight(make, layer.router.scorer.weight)
        logits_NE = torch.cat([scorer(part) for part in x_ND.split(4096)]).double().numpy()
        result[name] = calibration(softmax(logits_NE[judged_N]), oracle_N[judged_N])
        if name in ("linear", "exact"):
            temperature = fit_temperature(logits_NE[tuning_N], oracle_N[tuning_N])
            scaled = calibration(softmax(logits_NE[judged_N] / temperature), oracle_N[judged_N])
            result[f"{name} + temperature"] = {**scaled, "temperature": temperature}
    share_E = np.bincount(oracle_N, minlength=loss_NE.shape[1]) / len(oracle_N)
    gain = 1 - float(loss_NE.min(1).mean() / loss_NE.mean())
    result["(always the commonest oracle)"] = {"accuracy": float(share_E.max()), "oracle_gain": gain}
    return result


def router_inputs(net: nn.Module, x_NCHW: Tensor, layer: MoELayer) -> Tensor:
    """(N * tokens, D): what the layer's router sees while the network runs as trained."""
    seen: list[Tensor] = []
    hook = layer.router.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    for x in batches(x_NCHW):
        net(x)
    hook.remove()
    return torch.cat(seen)


def forced_losses(net: nn.Module, crops: Crops, layer: MoELayer) -> np.ndarray:
    """(N * tokens, E): squared error on a token's 8x8 pixels when one expert takes all tokens of the layer."""
    router, num_experts = layer.router, layer.experts.num_experts
    forced = ForcedRouter(num_experts)
    layer.router = forced  # type: ignore[assignment]
    columns = []
    for expert in range(num_experts):
        forced.expert = expert
        restored = torch.cat([net(x)[0] for x in batches(crops.x_NCHW)])
        error_N1HW = (restored - crops.y_NCHW).square().mean(1, keepdim=True)
        columns.append(F.avg_pool2d(error_N1HW, TOKEN_PX).flatten())
    layer.router = router
    return torch.stack(columns, 1).double().numpy()


def moment_errors(x_ND: Tensor, weight_ED: Tensor, dropout: float) -> dict[str, float]:
    """Monte-Carlo dropout against exact moments of the logits, relative, averaged over tokens and experts.

    `variance M=...`: mean |sampled - exact| / exact; `mean M=1000`: root mean square error over that of the logits.
    """
    x_ND, weight_ED = x_ND[:256].double(), weight_ED.detach().double()
    exact_NE = dropout / (1 - dropout) * (x_ND**2 @ (weight_ED**2).T)
    mean_NE = x_ND @ weight_ED.T
    errors = {}
    for samples in (*SAMPLES[1:], MOMENT_SAMPLES):
        scorer = RepairedUncertaintyScorer(weight_ED.shape[1], weight_ED.shape[0], dropout, samples)
        scorer.weight = nn.Parameter(weight_ED)
        logits_MNE = scorer.sampled_logits(x_ND)
        errors[f"variance M={samples}"] = float(((logits_MNE.var(0) - exact_NE).abs() / exact_NE).mean())
    difference_NE = logits_MNE.mean(0) - mean_NE
    errors[f"mean M={MOMENT_SAMPLES}"] = float(difference_NE.norm() / mean_NE.norm())
    return errors


def halves(photo_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (tuning, judged): photographs with even and odd number, so that no photograph is in both."""
    return photo_N % 2 == 0, photo_N % 2 == 1


# ---------------------------------------------------------------- data, report, command line


def training_crops(root: Path, per_kind: int, crop_px: int, seed: int) -> Crops:
    """Crops of the training photographs, equally many of each kind."""
    mixture, rng = RestorationMixture(root), np.random.default_rng(seed)
    pairs = [(mixture.sample(rng, kind, crop_px), label) for label, kind in enumerate(KINDS) for _ in range(per_kind)]
    return _crops([pair for pair, _ in pairs], [label for _, label in pairs], list(range(len(pairs))))


def held_out_crops(root: Path, per_photo: int, crop_px: int, seed: int) -> Crops:
    """Random crops of the held-out photographs, every kind of weather on every photograph."""
    rng, pairs, labels, photos = np.random.default_rng(seed + 1), [], [], []
    for label, kind in enumerate(KINDS):
        for photo, (x_HWC, y_HWC, _) in enumerate(synthetic_dev(root, kind)):
            for _ in range(per_photo):
                top, left = (int(rng.integers(length - crop_px + 1)) for length in x_HWC.shape[:2])
                window = np.s_[top : top + crop_px, left : left + crop_px]
                pairs.append((x_HWC[window] / np.float32(255), y_HWC[window] / np.float32(255)))
                labels.append(label)
                photos.append(photo)
    if not pairs:
        raise SystemExit(f"{root}: no held-out photographs (clean/kodak12_dev)")
    return _crops(pairs, labels, photos)


def _crops(pairs: list[tuple[np.ndarray, np.ndarray]], labels: list[int], photos: list[int]) -> Crops:
    x, y = (torch.from_numpy(np.stack([pair[side] for pair in pairs])).permute(0, 3, 1, 2).float() for side in (0, 1))
    return Crops(x, y, np.array(labels), np.array(photos))


def run(net: nn.Module, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    crop_px, begun = options.crop_px, time.perf_counter()
    train = training_crops(root, options.per_kind, crop_px, options.seed)
    test = held_out_crops(root, options.per_photo, crop_px, options.seed)
    # Layers whose tokens are the picture's 8x8 cells; those of the scene branch see a thumbnail.
    layers = moe_layers(net.backbone)  # type: ignore[arg-type]
    chosen = options.layers or list(layers)
    result: dict[str, Any] = {
        "label": label_calibration(net, train, test, options.dropout),
        "oracle": {},
        "moments": {},
    }
    for name in chosen:
        layer = layers[name]
        result["oracle"][name] = oracle_calibration(net, test, layer, options.dropout)
        inputs_ND = router_inputs(net, test.x_NCHW[:8], layer)
        result["moments"][name] = moment_errors(inputs_ND, layer.router.scorer.weight, options.dropout)
    result["oracle_mean"] = _mean_over_layers(result["oracle"])
    result["settings"] = {
        "crop_px": crop_px, "training_crops": len(train.label_N), "held_out_crops": len(test.label_N),
        "dropout": options.dropout, "seed": options.seed, "layers": chosen, "bins": BINS,
    }  # fmt: skip
    result["seconds"] = round(time.perf_counter() - begun, 1)
    return result


def _mean_over_layers(by_layer: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    tables = list(by_layer.values())
    return {
        arm: {key: float(np.mean([table[arm][key] for table in tables])) for key in tables[0][arm]} for arm in tables[0]
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Three tables."""
    lines = [f"{result['settings']}", ""]
    titles = {
        "label": "Label calibration (probe on mean routing vectors)",
        "oracle_mean": "Oracle calibration (mean of layers)",
    }
    for part, title in titles.items():
        lines += [
            f"## {title}",
            "",
            "| scorer | accuracy | confidence | ECE-15 | NLL | Brier |",
            "|---|---|---|---|---|---|",
        ]
        for arm, row in result[part].items():
            cells = [
                f"{row[key]:.4f}" if key in row else "" for key in ("accuracy", "confidence", "ece", "nll", "brier")
            ]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## Monte Carlo against exact moments (relative error)",
        "",
        "| layer | " + " | ".join(_moment_names(result)) + " |",
    ]
    lines.append("|---" * (1 + len(_moment_names(result))) + "|")
    for layer, row in result["moments"].items():
        lines.append(f"| {layer} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")
    return "\n".join(lines) + "\n"


def _moment_names(result: dict[str, Any]) -> list[str]:
    return list(next(iter(result["moments"].values())))


def main() -> None:
    """Load or build the network, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="?", help="weights file or name; without it an untrained --preset is used")
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with clean/ (and clean/kodak12_dev) and weather/"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--layers", nargs="*", help="names of the MoE layers for the oracle; default all")
    parser.add_argument("--per-kind", type=int, default=60, help="training crops of each weather")
    parser.add_argument("--per-photo", type=int, default=4, help="held-out crops of each photograph and weather")
    parser.add_argument("--crop-px", type=int, default=128, help="a multiple of 8")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    net: nn.Module
    if options.weights:
        net = load_model(options.weights, build_model).model
    else:
        net = RestorationNet(PRESETS[options.preset]()).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        result = {"weights": options.weights or f"untrained {options.preset}", **run(net, options.data, options)}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(to_markdown(result))
    print(to_markdown(result))
    print(f"{result['seconds']} s")


if __name__ == "__main__":
    main()
