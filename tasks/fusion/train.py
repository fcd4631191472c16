"""The recipe of the fusion weights, top to bottom.

Data: aligned pairs, `ir/` and `vis/` (`moevision.datasets.infrared_visible`); every VALIDATION_EVERY-th is kept for
validation. Loss: see `losses`; no labels. Modality balancing after AGM (ICCV 2023) is an option.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from moevision.checkpoint import save_model
from moevision.datasets.infrared_visible import PairCrops, PairFolder
from moevision.errors import UsageError
from moevision.moe import Context
from moevision.tasks.fusion import losses
from moevision.tasks.fusion.baselines import BASELINES
from moevision.tasks.fusion.metrics import METRICS, fusion_metrics
from moevision.tasks.fusion.model import PRESETS, FusionNet
from moevision.tasks.fusion.modulation import EVERY, ModalityBalance
from moevision.training.batches import batches_of
from moevision.training.curves import draw_curves
from moevision.training.loop import LoopConfig, fit

_LOG = logging.getLogger(__name__)
CROP_PX, BATCH = 128, 8
VALIDATION_EVERY = 9
WEIGHTS: dict[Callable[[Tensor, Tensor, Tensor], Tensor], float] = {
    losses.intensity_loss: 5.0,
    losses.gradient_loss: 6.0,
    losses.artefact_loss: 6.0,
    losses.structure_loss: 0.5,
    losses.difference_loss: 0.7,
    losses.fidelity_loss: 0.5,
    losses.edge_loss: 1.0,
    losses.contrast_loss: 4.0,
}
SALIENCE_WEIGHT = 0.1


def train(
    data: Path, out: Path, *, preset: str = "small", seed: int = 0, steps: int = 4000, resume: bool = False,
    learning_rate: float = 6e-4, balance_modalities: bool = False, workers: int = 1,
    say: Callable[[str], None] = _LOG.info,
) -> Path:  # fmt: skip
    """Train and write `out/model.safetensors`; returns its path.

    Args:
        data: folder with `ir/` and `vis/`.
        out: run folder (see `training.loop.fit`), which also receives curves.png.
        preset: a key of PRESETS.
        seed: of initialisation and data.
        steps: optimiser steps.
        resume: continue an interrupted run exactly.
        learning_rate: peak of the schedule.
        balance_modalities: slow down the encoder that runs ahead, see `modulation`.
        workers: data processes.
        say: receives progress lines.

    Raises:
        UsageError: missing data, unknown preset, unfit run folder.
    """
    if preset not in PRESETS:
        raise UsageError(f"{preset}: no such preset; choose from {', '.join(PRESETS)}")
    torch.manual_seed(seed)
    net = FusionNet(PRESETS[preset]()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    say(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    loop = LoopConfig(steps=steps, seed=seed, learning_rate=learning_rate, validate_every=500)
    balance = ModalityBalance() if balance_modalities else None
    average = optimise(net, data, loop, out, balance=balance, resume=resume, workers=workers, say=say)
    path = out / "model.safetensors"
    training = {"preset": preset, "seed": seed, "steps": steps, "learning_rate": learning_rate}
    if balance_modalities:
        training["balance_modalities"] = True
    save_model(average, path, task="fusion", training=training)
    draw_curves(out)
    return path


def optimise(
    net: FusionNet, data: Path, loop: LoopConfig, out: Path, *, balance: ModalityBalance | None = None,
    resume: bool = False, workers: int = 1, say: Callable[[str], None] = _LOG.info,
) -> nn.Module:  # fmt: skip
    """Train any FusionNet by the recipe; returns a copy with the averaged weights. Arguments as of `train`."""
    cv2.setNumThreads(0)  # a data process forked from a parent with OpenCV threads can deadlock
    pairs = list(PairFolder(data))
    held = pairs[::VALIDATION_EVERY]
    learned = [pair for number, pair in enumerate(pairs) if number % VALIDATION_EVERY] or pairs
    say(f"{len(learned)} pairs to learn from, {len(held)} to validate with")
    batches = batches_of(partial(_draw, PairCrops(learned)), loop, out, resume=resume, workers=workers)
    validation = PairCrops(held).images
    for name, rule in BASELINES.items():
        means = _means([fusion_metrics(rule(v, i), v, i) for v, i in validation])
        say(f"{name}  " + "  ".join(f"{metric} {value:.2f}" for metric, value in means.items()))
    if balance is not None:
        balance.attach(net)

    def losses_at(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch_B2HW = next(batches)
        if balance is not None and step % EVERY == 0:
            balance.update(model, *batch_B2HW.split(1, dim=1))
        return losses_of(model, batch_B2HW)

    return fit(
        net,
        losses_at,
        loop,
        out,
        validate=lambda model, step: _validate(model, validation),
        companion=balance,
        resume=resume,
        say=say,
    )


def losses_of(model: nn.Module, batch_B2HW: Tensor) -> dict[str, Tensor]:
    """Weighted loss terms by name."""
    visible, infrared = batch_B2HW.split(1, dim=1)
    context = Context()
    fused, _, salience = model(visible, infrared, context)
    terms = {f.__name__.removesuffix("_loss"): w * f(fused, visible, infrared) for f, w in WEIGHTS.items()}
    terms["salience"] = SALIENCE_WEIGHT * losses.salience_loss(salience, infrared)
    terms["balance"] = torch.as_tensor(context.auxiliary_loss())
    return terms


def _draw(crops: PairCrops, rng: np.random.Generator, step: int) -> Tensor:
    """(B, 2, crop, crop): visible and infrared."""
    return torch.from_numpy(crops.batch(rng, BATCH, CROP_PX))


@torch.inference_mode()
def _validate(model: nn.Module, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Means of METRICS, and of the visible weight."""
    rows, weights = [], []
    for visible_HW, infrared_HW in pairs:
        visible, infrared = (torch.from_numpy(x)[None, None].float() / 255 for x in (visible_HW, infrared_HW))
        fused, weight, _ = model(visible, infrared)
        fused_HW = (fused[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        rows.append(fusion_metrics(fused_HW, visible_HW, infrared_HW))
        weights.append(float(weight.mean()))
    return {**_means(rows), "visible_weight": float(np.mean(weights))}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.nanmean([row[metric] for row in rows])) for metric in METRICS}
