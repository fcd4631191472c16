"""What the sparse filters of the anomaly network are worth: the same recipe and budget with other filters.

    python benchmarks/anomaly_arms.py --data UCSD_PED2 --steps N --out DIR [--arms a b ...] [--seeds 0 1 2]
    python benchmarks/anomaly_arms.py --table --out DIR

Every (arm, seed) is written to `DIR/ARM-SEED.json` and skipped where that is there, so that processes with different
--seeds can run side by side. The process that completes the study writes `arms.json` and `arms.md`, as --table does.

Arms: "sparse" as shipped (16 experts); "none", "ffn" and "sparse-residual" in the place of its filters; "shared-only",
"8-experts" and "32-experts" with so many routed ones; "semantic" with the mean features of the frozen encoder in the
place of the null token, and the loss that asks to describe them. "copied frame" is no network: it predicts the last
frame.

Measures, of the averaged weights:
    validation  on the training clips kept from learning, see `tasks.anomaly.train.validate`.
    AUC         micro, on the test clips, of the highest box of the squared error and of its mean over the frame; P0 and
                P1 as in `tasks.anomaly.metrics`. Every --every-th frame is predicted and smoothing counts those alone,
                so that with 2, the default, its windows are twice as long in time as in `moevision evaluate`.
    PSNR gap    in moving places of normal test frames, less in the abnormal pixels of abnormal ones, in dB: the larger,
                the more a network lets pass what is normal and nothing else. The places differ in kind, so that a gap
                means something beside that of the copied frame only.
    experts     on the clips kept from learning: those never chosen, entropy of use as a share of log E, and mean linear
                CKA between the outputs of two experts of a layer on the same tokens (1 = one is a turned and scaled
                copy of the other), beside that of a fresh bank, which never learned.
    cost        parameters; multiply-adds of one filter a token without biases, for the chosen experts and as they are
                run, which is all of them.

"sparse minus": per seed on the same clips, mean over seeds. The 95 % interval is a bootstrap over test clips; it does
not see what other seeds would change, so that "better" and "worse" ask for one sign in all seeds, too. Nothing is
chosen by the test clips.
"""

import argparse
import csv
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.datasets.video import Clip, ClipFolder, read_clip, read_labels, read_masks
from moevision.imaging.video import read_frames
from moevision.moe import Context, MoELayer, SparseFilterExperts
from moevision.tasks.anomaly.appearance import CHANNELS
from moevision.tasks.anomaly.metrics import ClipScores, ScoringProtocol, frame_metrics, honest, published
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutConfig, MemoryOutNet
from moevision.tasks.anomaly.motion import box_means, highest, working_size
from moevision.tasks.anomaly.train import encoder_state, held_out, optimise, prediction_error, read_training_clips
from moevision.training.loop import LoopConfig

ARMS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "none": {"filter": "none"},
    "ffn": {"filter": "ffn"},
    "sparse-residual": {"filter": "sparse-residual"},
    "shared-only": {"num_experts": 0},
    "8-experts": {"num_experts": 8},
    "32-experts": {"num_experts": 32},
    "semantic": {"semantic_dim": CHANNELS, "encoder": True},
}
REFERENCE, COPIED = "sparse", "copied frame"
SEEDS = (0, 1, 2)
LEARNING_RATE = 2e-3
ENCODER = "anomaly-ped2"
RESAMPLES = 2000
TOKENS = 2000  # of a layer, for CKA
WATCHED_EVERY = 10  # frames between those in which experts are watched

Record = dict[str, Any]
Error = NDArray[np.float32]
ErrorOf = Callable[[Clip], Error]
"""FRAMES + 1 frames -> squared error in grey levels of what was expected of the last, (H, W)."""
Statistic = Callable[[Sequence[Record]], float]
"""The records of some clips, of `measure_clip`, to a number."""


@dataclass(frozen=True)
class LabelledClip:
    """Frames, labels (1 = abnormal) and abnormal pixels of a test clip at the working size."""

    name: str
    frames_THW: Clip
    label_T: NDArray[np.uint8]
    mask_THW: NDArray[np.bool_]


# --- one arm ---


def config_of(arm: str) -> MemoryOutConfig:
    """The network of an arm; the frozen encoder takes no part in the prediction and is left out."""
    return replace(PRESETS["small"](), **{"encoder": False, **ARMS[arm]})


def filter_macs(config: MemoryOutConfig) -> dict[str, int]:
    """Multiply-adds of one filter a token: of the chosen experts with router and shared one, and as they are run."""
    one, routed = 2 * config.dim * config.rank, config.num_experts
    if config.filter == "none":
        return {"chosen": 0, "run": 0}
    if config.filter == "ffn":
        return {"chosen": one * (config.k + 1), "run": one * (config.k + 1)}
    chosen = config.k if routed else 0
    return {"chosen": config.dim * routed + one * (chosen + 1), "run": config.dim * routed + one * (routed + 1)}


def train_arm(arm: str, seed: int, steps: int, clips: dict[str, Clip]) -> tuple[MemoryOutNet, dict[str, float]]:
    """The averaged network of one run by the recipe, and its validation."""
    torch.manual_seed(seed)
    net = MemoryOutNet(config_of(arm)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if net.encoder is not None:
        net.encoder.load_state_dict(encoder_state(ENCODER))
    never, warmup = steps + 1, min(200, steps // 5)
    loop = LoopConfig(steps, LEARNING_RATE, warmup_steps=warmup, validate_every=never, seed=seed)
    say = partial(print, f"{arm}-{seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        average = cast("MemoryOutNet", optimise(net, clips, loop, run, workers=1, say=say))
        with (run / "validation.csv").open(newline="") as file:  # the loop validates at the end, whatever it was told
            *_, last = csv.DictReader(file)
    return average, {name: float(last[name]) for name in ("psnr", "copy_psnr", "fast_auc")}


def read_test_clips(data: Path) -> list[LabelledClip]:
    """The test clips with their labels and pixel masks."""
    paths = ClipFolder(data / "test").paths
    source_hw = next(iter(read_frames(paths[0]))).pixels_HWC.shape[:2]
    size_hw = working_size(source_hw)
    labels, masks = read_labels(data), read_masks(data, source_hw[1])
    if missing := [path.stem for path in paths if path.stem not in masks]:
        raise SystemExit(f"{data}: no pixel masks for {', '.join(missing)}")
    return [
        LabelledClip(p.stem, read_clip(p, size_hw), labels[p.stem], _resized_masks(masks[p.stem], size_hw))
        for p in paths
    ]


def _resized_masks(mask_THW: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    width_height = size_hw[::-1]
    resized = [cv2.resize(m.view(np.uint8), width_height, interpolation=cv2.INTER_NEAREST) for m in mask_THW]
    return np.stack(resized) > 0


def copy_error(frames_THW: Clip) -> Error:
    """Of the last frame but one as a prediction of the last."""
    return (frames_THW[-1].astype(np.float32) - frames_THW[-2]) ** 2


def moving_places(frames_THW: Clip) -> NDArray[np.bool_]:
    """Where the last frame differs from the one before: the places whose PSNR `tasks.anomaly.train.validate` tells."""
    return np.asarray(cv2.boxFilter(copy_error(frames_THW), -1, (16, 16)) > 25)


@torch.inference_mode()
def measure_clip(clip: LabelledClip, error_of: ErrorOf, every: int) -> Record:
    """Labels and scores of every `every`-th frame, and [sum of squares, pixels] of "normal" and "abnormal" places."""
    labels, box_max, frame_mean = [], [], []
    sums = {"normal": np.zeros(2), "abnormal": np.zeros(2)}
    for t in range(FRAMES, len(clip.frames_THW), every):
        seen_THW, abnormal = clip.frames_THW[t - FRAMES : t + 1], bool(clip.label_T[t])
        error_HW = error_of(seen_THW)
        place_HW = clip.mask_THW[t] if abnormal else moving_places(seen_THW)
        sums["abnormal" if abnormal else "normal"] += error_HW[place_HW].sum(dtype=np.float64), place_HW.sum()
        labels.append(int(abnormal))
        box_max.append(_short(highest(box_means(error_HW))))
        frame_mean.append(_short(error_HW.mean(dtype=np.float64)))
    places = {side: [_short(squares), int(pixels)] for side, (squares, pixels) in sums.items()}
    return {"name": clip.name, "labels": labels, "box_max": box_max, "frame_mean": frame_mean, **places}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


# --- its experts ---


@torch.inference_mode()
def report_experts(net: MemoryOutNet, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """By layer with routed experts: `dead`, `entropy`, `cka` and `fresh_cka`."""
    layers = [module for module in net.filters.modules() if isinstance(module, MoELayer)]
    counts, tokens = watch(net, layers, clips) if layers else ({}, {})
    report = {}
    for layer in layers:
        share_E = counts[layer.name].double() / counts[layer.name].sum()
        entropy = torch.special.entr(share_E).sum() / math.log(len(share_E))
        torch.manual_seed(0)
        fresh = SparseFilterExperts(len(share_E), net.config.dim, net.config.rank, net.config.k)
        report[layer.name] = {
            "dead": int((counts[layer.name] == 0).sum()),
            "entropy": round(float(entropy), 4),
            "cka": round(mean_linear_cka(layer.experts.all(tokens[layer.name])), 4),
            "fresh_cka": round(mean_linear_cka(fresh.all(tokens[layer.name])), 4),
        }
    return report


def watch(
    net: MemoryOutNet, layers: Sequence[MoELayer], clips: Sequence[Clip]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer: how often each expert was chosen (E,), and about TOKENS of the tokens that went in, drawn (N, D)."""
    starts = [(clip, first) for clip in clips for first in range(0, len(clip) - FRAMES, WATCHED_EVERY)]
    generator = torch.Generator().manual_seed(0)
    counts: dict[str, Tensor] = {}
    tokens: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        x_ND = inputs[0].flatten(0, -2)
        drawn = torch.randint(len(x_ND), (math.ceil(TOKENS / len(starts)),), generator=generator)
        tokens[cast("MoELayer", layer).name].append(x_ND[drawn])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    for clip, first in starts:
        context = Context()
        net(torch.from_numpy(clip[first : first + FRAMES].astype(np.float32))[None] / 127.5 - 1, context)
        for layer in layers:
            chosen_E = context.records[layer.name].routing.counts_E
            counts[layer.name] = counts.get(layer.name, torch.zeros_like(chosen_E)) + chosen_E
    for hook in hooks:
        hook.remove()
    return counts, {name: torch.cat(parts) for name, parts in tokens.items()}


def mean_linear_cka(y_NED: Tensor) -> float:
    """Mean over pairs of experts of the linear CKA (Kornblith et al., ICML 2019) of what they make of N tokens."""
    experts, dim = y_NED.shape[1:]
    y_NF = (y_NED - y_NED.mean(0)).flatten(1)
    products_EDED = (y_NF.T @ y_NF).view(experts, dim, experts, dim)
    alike_EE = products_EDED.square().sum((1, 3))
    own_E = alike_EE.diagonal().sqrt()
    cka_EE = alike_EE / torch.outer(own_E, own_E)
    return float((cka_EE.sum() - cka_EE.trace()) / (experts * (experts - 1)))


# --- the study ---


def run(options: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"data": options.data.name, "steps": options.steps, "every": options.every}
    wanted = [(arm, seed) for seed in options.seeds for arm in options.arms]  # seeds in turn: early ones are complete
    todo = [one for one in wanted if not path_of(options.out, *one).exists()]
    require_settings(
        [json.loads(path_of(options.out, *one).read_text()) for one in wanted if one not in todo], settings
    )
    if not todo:
        return
    clips, test = read_training_clips(options.data), read_test_clips(options.data)
    kept = [clips[name] for name in sorted(held_out(clips))]
    if not path_of(options.out, COPIED, 0).exists():
        copied = [measure_clip(clip, copy_error, options.every) for clip in test]
        write(path_of(options.out, COPIED, 0), {"settings": settings, "validation": {}, "clips": copied})
    for arm, seed in todo:
        began = time.perf_counter()
        net, validation = train_arm(arm, seed, options.steps, clips)
        trained = time.perf_counter()
        record = {
            "settings": settings,
            "parameters": sum(p.numel() for p in net.parameters()),
            "filter_macs": filter_macs(net.config),
            "validation": validation,
            "experts": report_experts(net, kept),
            "clips": [measure_clip(clip, partial(prediction_error, net), options.every) for clip in test],
        }
        ended = time.perf_counter()
        record["seconds"] = {"train": round(trained - began, 1), "measure": round(ended - trained, 1)}
        write(path_of(options.out, arm, seed), record)
        print(f"{arm}-{seed}", record["seconds"], numbers_of(record), flush=True)


def path_of(out: Path, arm: str, seed: int) -> Path:
    """The record of an arm; that of the copied frame has no seed."""
    return out / ("copied.json" if arm == COPIED else f"{arm}-{seed}.json")


def write(path: Path, record: Record) -> None:
    """The whole file or none: another process may look."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record) + "\n")
    part.replace(path)


def require_settings(records: Sequence[Record], settings: dict[str, Any]) -> None:
    """Arms of another budget cannot be compared."""
    for record in records:
        if record["settings"] != settings:
            raise SystemExit(f"--out holds a study with {record['settings']}, not {settings}; choose another folder")


# --- the table ---


def micro_auc(clips: Sequence[Record], score: str, protocol: ScoringProtocol) -> float:
    """Of one of the scores, 0 to 1."""
    scores = [ClipScores(c["name"], np.array(c[score]), np.array(c["labels"], np.uint8)) for c in clips]
    return frame_metrics(scores, protocol)["micro_auc"]


def psnr_db(clips: Sequence[Record], side: str) -> float:
    """In the "normal" or "abnormal" places of all clips together; NaN where there are none."""
    squares, pixels = np.sum([clip[side] for clip in clips], axis=0)
    return float(10 * np.log10(255**2 * pixels / squares)) if pixels else math.nan


def psnr_gap_db(clips: Sequence[Record]) -> float:
    """How much better normal places are predicted than abnormal ones."""
    return psnr_db(clips, "normal") - psnr_db(clips, "abnormal")


STATISTICS: dict[str, Statistic] = {
    "p0_box": partial(micro_auc, score="box_max", protocol=honest),
    "p1_box": partial(micro_auc, score="box_max", protocol=published),
    "p0_mean": partial(micro_auc, score="frame_mean", protocol=honest),
    "p1_mean": partial(micro_auc, score="frame_mean", protocol=published),
    "psnr_normal": partial(psnr_db, side="normal"),
    "psnr_abnormal": partial(psnr_db, side="abnormal"),
    "psnr_gap": psnr_gap_db,
}
COMPARED = ("p0_box", "p1_box", "psnr_gap", "psnr_normal")
TITLES = {
    "psnr": "validation PSNR",
    "fast_auc": "fast AUC",
    "p0_box": "P0 box",
    "p1_box": "P1 box",
    "p0_mean": "P0 frame mean",
    "p1_mean": "P1 frame mean",
    "psnr_normal": "PSNR normal",
    "psnr_abnormal": "PSNR abnormal",
    "psnr_gap": "PSNR gap",
}


def numbers_of(record: Record) -> dict[str, float]:
    """The numbers of one model by their names in TITLES."""
    numbers = {**record["validation"], **{name: of(record["clips"]) for name, of in STATISTICS.items()}}
    return {name: round(value, 4) for name, value in numbers.items()}


def compare(records: dict[str, list[Record]]) -> dict[str, dict[str, Record]]:
    """The reference minus every other arm, by statistic: mean over seeds, 95 % interval, single seeds, verdict."""
    count = len(records[REFERENCE][0]["clips"])
    draws_RN = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    # The order of a draw does not matter, and few clips make few different draws.
    different_UN, which_R = np.unique(np.sort(draws_RN, axis=1), axis=0, return_inverse=True)
    draws = [np.arange(count), *different_UN]

    def values_SV(arm: str, of: Statistic) -> NDArray[np.float64]:
        """Of all clips, then of every draw."""
        return np.array([[of([r["clips"][n] for n in draw]) for draw in draws] for r in records[arm]])

    report: dict[str, dict[str, Record]] = {arm: {} for arm in records if arm != REFERENCE}
    for name in COMPARED:
        ours_SV = values_SV(REFERENCE, STATISTICS[name])
        for arm, row in report.items():
            gain_SV = ours_SV - values_SV(arm, STATISTICS[name])  # the copied frame has one record for all seeds
            drawn_R = gain_SV[:, 1:].mean(0)[which_R.ravel()]
            low, high = np.nanpercentile(drawn_R, (2.5, 97.5))  # NaN: draws of one class only
            row[name] = _difference(gain_SV[:, 0], float(low), float(high))
    return report


def _difference(by_seed_S: NDArray[np.float64], low: float, high: float) -> Record:
    one_sign = bool((by_seed_S > 0).all() or (by_seed_S < 0).all())
    seen = one_sign and (low > 0 or high < 0)
    return {
        "mean": round(float(by_seed_S.mean()), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "by_seed": by_seed_S.round(4).tolist(),
        "verdict": ("better" if low > 0 else "worse") if seen else "no difference seen",
    }


def report_of(records: dict[str, list[Record]]) -> Record:
    """What `arms.json` holds."""
    arms: dict[str, Record] = {}
    for arm, rows in records.items():
        numbers = [numbers_of(row) for row in rows]
        arms[arm] = {
            "parameters": rows[0].get("parameters", 0),
            "filter_macs": rows[0].get("filter_macs", {"chosen": 0, "run": 0}),
            "seconds": [row.get("seconds") for row in rows],
            "numbers": {name: [one[name] for one in numbers] for name in TITLES if name in numbers[0]},
            "experts": [row.get("experts", {}) for row in rows],
        }
    return {"settings": records[REFERENCE][0]["settings"], "arms": arms, "sparse_minus": compare(records)}


def to_markdown(report: Record) -> str:
    """Three tables: the arms, their experts, and the differences. AUC in percent, PSNR in dB."""
    names = list(TITLES)
    lines = [
        f"Settings: {report['settings']}. AUC in percent, PSNR in dB; mean (single seeds).",
        "",
        *_row("arm", "parameters", "multiply-adds chosen / run", *TITLES.values()),
        "|---" * (3 + len(names)) + "|",
    ]
    for arm, part in report["arms"].items():
        cells = [_seeds(part["numbers"][name], name) if name in part["numbers"] else "" for name in names]
        macs = f"{part['filter_macs']['chosen']:,} / {part['filter_macs']['run']:,}"
        lines += _row(arm, f"{part['parameters']:,}", macs, *cells)
    lines += ["", *_row("arm", "experts never chosen, of all layers", "entropy", "CKA", "CKA fresh"), "|---" * 5 + "|"]
    for arm, part in report["arms"].items():
        if any(part["experts"]):
            layers = [list(one.values()) for one in part["experts"]]
            dead = ", ".join(str(sum(layer["dead"] for layer in one)) for one in layers)
            means = [
                _seeds([float(np.mean([layer[key] for layer in one])) for one in layers], key)
                for key in ("entropy", "cka", "fresh_cka")
            ]
            lines += _row(arm, dead, *means)
    lines += [
        "",
        f"{REFERENCE} minus:",
        "",
        *_row("arm", "of", "difference", "95 % interval", "single seeds", REFERENCE),
    ]
    lines += ["|---" * 6 + "|"]
    for arm, part in report["sparse_minus"].items():
        for name, row in part.items():
            low, high = (_shown(value, name, "+") for value in row["interval_95"])
            seeds = ", ".join(_shown(value, name, "+") for value in row["by_seed"])
            lines += _row(
                arm, TITLES[name], _shown(row["mean"], name, "+"), f"{low} to {high}", seeds, row["verdict"]
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _shown(value: float, name: str, sign: str = "") -> str:
    percent = name == "fast_auc" or name.startswith(("p0_", "p1_"))
    return f"{100 * value if percent else value:{sign}.2f}"


def _seeds(values: Sequence[float], name: str) -> str:
    shown = [_shown(value, name) for value in values]
    return shown[0] if len(shown) == 1 else f"{_shown(float(np.mean(values)), name)} ({', '.join(shown)})"


def write_table(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """`arms.json` and `arms.md`, if all records are there."""
    wanted = {arm: [path_of(out, arm, seed) for seed in seeds] for arm in arms} | {COPIED: [path_of(out, COPIED, 0)]}
    if missing := [path.name for paths in wanted.values() for path in paths if not path.exists()]:
        print(f"no table yet, missing: {' '.join(missing)}")
        return
    records = {arm: [json.loads(path.read_text()) for path in paths] for arm, paths in wanted.items()}
    every = [record for rows in records.values() for record in rows]
    require_settings(every, every[0]["settings"])
    records[COPIED][0]["validation"] = {"psnr": records[REFERENCE][0]["validation"]["copy_psnr"]}
    report = report_of(records)
    (out / "arms.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "arms.md").write_text(to_markdown(report))
    print(to_markdown(report))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--every", type=int, default=2, help="test frames between those that are predicted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing, write the table of --arms and --seeds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table:
        if REFERENCE not in options.arms:
            parser.error(f"the table compares with {REFERENCE}: add it to --arms")
        write_table(options.out, options.arms, options.seeds)
        return
    if options.data is None or options.steps is None:
        parser.error("--data and --steps are needed to train")
    run(options)
    write_table(options.out, list(ARMS), SEEDS)


if __name__ == "__main__":
    main()
