"""The recipe of the all-weather restoration weights, top to bottom.

Data: clean photographs weathered on the fly and real haze pairs (`moevision.datasets.mixture`). Loss: RMS + L1 +
Fourier L1 relative to the damage done, + weather labels + expert balance. Crops grow during the run (Restormer's
progressive schedule): small crops first because they are cheap, large ones last because picture-wide statistics need
them.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from moevision.checkpoint import load_model, save_model
from moevision.datasets.mixture import RestorationMixture, dev_sets
from moevision.datasets.paired import PixelArray
from moevision.errors import UsageError, WeightsError
from moevision.moe import Context
from moevision.tasks.restoration.losses import fourier_error, l1_error, opacity_loss, relative, rms_error, weather_loss
from moevision.tasks.restoration.metrics import psnr
from moevision.tasks.restoration.model import PRESETS, RestorationConfig, RestorationNet
from moevision.tasks.restoration.weathers import WEATHERS
from moevision.training.batches import batches_of
from moevision.training.curves import draw_curves
from moevision.training.loop import LoopConfig, fit

_LOG = logging.getLogger(__name__)
RMS_WEIGHT, L1_WEIGHT, FOURIER_WEIGHT = 1.0, 0.25, 0.25
RESTORATION_WEIGHT = 0.2
WEATHER_WEIGHT = 0.08
OPACITY_WEIGHT = 0.15
PLATEAU = 0.4
LOSS_POWER = 0.5
# Share of samples whose weather the network is told: restoring and detecting need not wait for each other.
TOLD = 0.5
Judge = Callable[[Tensor, Tensor, Tensor], Tensor]
DevPictures = list[tuple[PixelArray, PixelArray, str]]  # (degraded, target, name)


@dataclass(frozen=True)
class Phase:
    """Crop and batch size from a fraction of the run on."""

    begins: float
    crop_px: int
    batch_size: int


PHASES = (Phase(0.0, 128, 4), Phase(0.45, 192, 2), Phase(0.7, 320, 1))


def phase_at(step: int, steps: int, phases: tuple[Phase, ...] = PHASES) -> Phase:
    """The phase that step belongs to."""
    return [phase for phase in phases if step >= phase.begins * steps][-1]


class _Batch(NamedTuple):
    x_BCHW: Tensor
    y_BCHW: Tensor
    opacity_B1HW: Tensor  # how much of the scene drops hide
    labels_BW: Tensor


def weather_labels(kinds: list[str]) -> Tensor:
    """Kinds -> (B, 4) of 0 and 1 in the order of WEATHERS; NaN where the kind does not tell (the user's own pairs)."""
    return torch.tensor(
        [[math.nan if kind == "pairs" else float(weather in kind.split("+")) for weather in WEATHERS] for kind in kinds]
    )


def train(
    data: Path, out: Path, *, preset: str = "small", seed: int = 0, steps: int = 60_000,
    resume: bool = False, learning_rate: float = 3e-4, workers: int = 1, start_from: Path | None = None,
    say: Callable[[str], None] = _LOG.info,
) -> Path:  # fmt: skip
    """Train and write `out/model.safetensors`; returns its path.

    Args:
        data: folder with `clean/` photographs and, optionally, `weather/` or `pairs/NAME/{input,gt}`.
        out: run folder (see `training.loop.fit`), which also receives curves.png and experts.json.
        preset: a key of PRESETS.
        seed: of initialisation and data.
        steps: optimiser steps.
        resume: continue an interrupted run exactly.
        learning_rate: peak of the schedule.
        workers: data processes.
        start_from: weights to begin with; parts of the preset they do not have start anew.
        say: receives progress lines.

    Raises:
        UsageError: missing data, unknown preset, unfit run folder. WeightsError: `start_from` cannot be loaded.
    """
    mixture = RestorationMixture(data)
    torch.manual_seed(seed)
    net = _build(preset, start_from, say)
    say(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    loop = LoopConfig(steps=steps, seed=seed, learning_rate=learning_rate, plateau=PLATEAU)
    validation = {name: list(pairs) for name, pairs in dev_sets(data).items()}
    average = optimise(net, mixture, loop, out, validation=validation, resume=resume, workers=workers, say=say)
    return _export(average, out, preset, loop)


def optimise(
    net: RestorationNet, mixture: RestorationMixture, loop: LoopConfig, out: Path, *,
    phases: tuple[Phase, ...] = PHASES, validation: dict[str, DevPictures] | None = None,
    resume: bool = False, workers: int = 1, judge: Judge | None = None, say: Callable[[str], None] = _LOG.info,
) -> nn.Module:  # fmt: skip
    """Train any RestorationNet by the recipe; returns a copy with the averaged weights.

    Args:
        net: trained in place.
        mixture: the training data.
        loop: length, seed and schedule.
        out: run folder (see `training.loop.fit`).
        phases: crop and batch sizes.
        validation: sets measured every `loop.validate_every` steps.
        resume: continue an interrupted run exactly.
        workers: data processes.
        judge: one more loss, of (restored, clean, degraded), all (B, 3, H, W): what else the result is to be good for.
        say: receives progress lines.
    """
    cv2.setNumThreads(0)  # a data process forked from a parent with OpenCV threads can deadlock
    draw = partial(_draw, mixture, phases, loop.steps)
    batches = batches_of(draw, loop, out, resume=resume, workers=workers)
    sets = validation or {}
    return fit(
        net,
        lambda model, step: _losses(model, next(batches), judge),
        loop,
        out,
        validate=(lambda model, step: _validate(model, sets, out)) if sets else None,
        resume=resume,
        say=say,
    )


def _build(preset: str, start_from: Path | None, say: Callable[[str], None]) -> RestorationNet:
    if preset not in PRESETS:
        raise UsageError(f"{preset}: no such preset; choose from {', '.join(PRESETS)}")
    net = RestorationNet(PRESETS[preset]())
    if start_from is not None:
        old = load_model(start_from, lambda _, config: RestorationNet(RestorationConfig.from_dict(config))).model
        try:
            new, foreign = net.load_state_dict(old.state_dict(), strict=False)
        except RuntimeError:
            new, foreign = [], ["tensors of another size"]
        if foreign:
            raise WeightsError(f"{start_from}: does not fit preset {preset} ({foreign[0]}); choose its own preset")
        say(f"started from {start_from}; new: {sorted({name.split('.')[0] for name in new}) or 'nothing'}")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _draw(
    mixture: RestorationMixture, phases: tuple[Phase, ...], steps: int, rng: np.random.Generator, step: int
) -> _Batch:
    phase = phase_at(step, steps, phases)
    *arrays, kinds = mixture.batch(rng, phase.batch_size, phase.crop_px)
    x_BCHW, y_BCHW, opacity_B1HW = map(torch.from_numpy, arrays)
    return _Batch(x_BCHW, y_BCHW, opacity_B1HW, weather_labels(kinds))


def _losses(model: nn.Module, batch: _Batch, judge: Judge | None = None) -> dict[str, Tensor]:
    x_BCHW, y_BCHW, opacity_B1HW, labels_BW = batch
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    context = Context()
    told_B1 = torch.rand(len(x_BCHW), 1) < TOLD
    restored_BCHW, logits_BW, opacity_B1hw = model(x_BCHW, context, labels_BW.masked_fill(~told_B1, math.nan))
    judged = {} if judge is None else {"judge": judge(restored_BCHW, y_BCHW, x_BCHW)}
    return judged | {
        "restoration": RESTORATION_WEIGHT * relative(_error(restored_BCHW, y_BCHW), _error(x_BCHW, y_BCHW), LOSS_POWER),
        "weather": WEATHER_WEIGHT * weather_loss(logits_BW, labels_BW),
        "opacity": OPACITY_WEIGHT * opacity_loss(opacity_B1hw, opacity_B1HW),
        "balance": torch.as_tensor(context.auxiliary_loss()),
    }


def _error(image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    return (
        RMS_WEIGHT * rms_error(image_BCHW, target_BCHW)
        + L1_WEIGHT * l1_error(image_BCHW, target_BCHW)
        + FOURIER_WEIGHT * fourier_error(image_BCHW, target_BCHW)
    )


@torch.inference_mode()
def _validate(model: nn.Module, sets: dict[str, DevPictures], out: Path) -> dict[str, float]:
    """PSNR of each dev set in dB; expert loads go to experts.json."""
    numbers: dict[str, float] = {}
    loads: dict[str, Tensor] = {}
    for name, pairs in sets.items():
        values = []
        for degraded_HWC, target_HWC, _ in pairs:
            context = Context()
            x = torch.from_numpy(degraded_HWC).permute(2, 0, 1)[None].float() / 255
            restored = model(x.contiguous(memory_format=torch.channels_last), context).restored_BCHW
            image_HWC = (restored[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            values.append(psnr(image_HWC, target_HWC))
            for layer, record in context.records.items():
                counts_E = record.routing.counts_E
                loads[layer] = loads[layer] + counts_E if layer in loads else counts_E
        numbers[name] = float(np.mean(values))
    shares = {layer: counts / counts.sum() for layer, counts in loads.items()}
    if shares:
        numbers["dead_experts"] = float(sum(int((share < 0.01).sum()) for share in shares.values()))
        report = {layer: [round(float(s), 4) for s in share] for layer, share in shares.items()}
        (out / "experts.json").write_text(json.dumps(report, indent=1) + "\n")
    return numbers


def _export(average: nn.Module, out: Path, preset: str, loop: LoopConfig) -> Path:
    path = out / "model.safetensors"
    training = {"preset": preset, "seed": loop.seed, "steps": loop.steps, "learning_rate": loop.learning_rate}
    save_model(average, path, task="restoration", training=training)
    draw_curves(out)
    return path
