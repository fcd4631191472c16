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
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from anomaly_arms_measure import Record, copy_error, filter_macs, measure_clip, read_test_clips, report_experts
from anomaly_arms_table import COPIED, REFERENCE, numbers_of, report_of, to_markdown

from moevision.datasets.video import Clip
from moevision.tasks.anomaly.appearance import CHANNELS
from moevision.tasks.anomaly.model import PRESETS, MemoryOutConfig, MemoryOutNet
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
SEEDS = (0, 1, 2)
LEARNING_RATE = 2e-3
ENCODER = "anomaly-ped2"


def config_of(arm: str) -> MemoryOutConfig:
    """The network of an arm; the frozen encoder takes no part in the prediction and is left out."""
    return replace(PRESETS["small"](), **{"encoder": False, **ARMS[arm]})


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
