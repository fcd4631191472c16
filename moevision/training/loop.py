"""The training loop: AdamW, warm-up, plateau and cosine, clipping, EMA, exact resume, one progress line, CSV.

A recipe (`tasks/*/train.py`) brings the model, a function from (model, step) to named losses, and a validation
function; this file knows no task. Batches must be a function of the step number alone, then a resumed run repeats an
unbroken one bit for bit.
"""

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moevision.errors import UsageError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one run.

    Attributes:
        steps: length of the run and of the cosine.
        learning_rate, final_learning_rate, warmup_steps: linear warm-up, then cosine.
        plateau: fraction of the run up to which the peak rate is kept. The state at its end is saved as plateau.pt: a
            longer run goes on from there without having paid for the cool-down (Haegele et al., NeurIPS 2024).
        weight_decay, betas: AdamW's.
        clip_norm: gradient norm limit, applied after backward.
        ema_decay: of the averaged weights that are validated and shipped.
        validate_every, checkpoint_every, log_every: in steps.
        seed: of initialisation and data.
    """

    steps: int
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 300
    plateau: float = 0.0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    validate_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 50
    seed: int = 0


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Linear warm-up to `learning_rate`, plateau, then half a cosine down to `final_learning_rate` at `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    begin = max(config.warmup_steps, plateau_end(config))
    progress = max(0.0, (step - begin) / max(1, config.steps - begin))
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def plateau_end(config: LoopConfig) -> int:
    """Step at which the cool-down begins."""
    return round(config.plateau * config.steps)


def fit(
    model: nn.Module,
    losses_of: Callable[[nn.Module, int], dict[str, Tensor]],
    config: LoopConfig,
    out: Path,
    *,
    validate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    companion: nn.Module | None = None,
    rates: Mapping[str, float] | None = None,
    resume: bool = False,
    say: Callable[[str], None] = _LOG.info,
) -> nn.Module:
    """Train in place; returns a copy of the model with the averaged weights.

    Args:
        model: trained in place.
        losses_of: (model, step) -> named loss terms, already weighted; their sum is minimised.
        config: see LoopConfig.
        out: run folder: checkpoint.pt, plateau.pt, log.csv, validation.csv, config.json.
        validate: (averaged model, step) -> named numbers for validation.csv.
        companion: what the recipe keeps beside the model; its state is saved and resumed with it, and not trained.
        rates: by the beginning of a parameter's name, what its learning rate is multiplied by; 1 for all others.
        resume: continue from `out/checkpoint.pt`. `config.steps` may differ from the interrupted run's: the learning
            rate follows the new cosine from there.
        say: receives one progress line every `log_every` steps.

    Raises:
        UsageError: the folder holds a run and `resume` is off, or the reverse, or another network's run; a loss became
            NaN.
    """
    checkpoint = _open_run(out, config, resume)
    optimizer = torch.optim.AdamW(
        _groups(model, rates or {}), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay,
        fused=True,
    )  # fmt: skip
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_ema_with_warmup(config.ema_decay))
    companion = companion if companion is not None else nn.Module()
    start = _load(checkpoint, model, average, optimizer, companion) if resume else 0
    sums: dict[str, float] = {}
    clock, last_step = time.monotonic(), start
    for step in range(start, config.steps):
        model.train()
        terms = _step(model, losses_of, optimizer, step, config)
        average.update_parameters(model)
        sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            seconds = (time.monotonic() - clock) / (done - last_step)
            means = {name: value / (done - last_step) for name, value in sums.items()}
            _append(
                out / "log.csv", {"step": done, "lr": learning_rate_at(step, config), "s_per_step": seconds, **means}
            )
            say(_progress_line(done, config.steps, means, seconds))
            clock, last_step, sums = time.monotonic(), done, {}
        if validate is not None and (done % config.validate_every == 0 or done == config.steps):
            numbers = validate(average.module.eval(), done)
            _append(out / "validation.csv", {"step": done, **numbers})
            say("validation  " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
            clock, last_step, sums = time.monotonic(), done, {}
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(checkpoint, model, average, optimizer, companion, done)
        if done == plateau_end(config):
            _save(out / "plateau.pt", model, average, optimizer, companion, done)
    return average.module.eval()


def _open_run(out: Path, config: LoopConfig, resume: bool) -> Path:
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() != resume:
        raise UsageError(
            f"{out}: " + ("holds a run; add --resume or choose another folder" if not resume else "no run to resume")
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    return checkpoint


def _groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters by their rate; one group where all learn alike."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
        by_rate.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "rate": rate} for rate, parameters in by_rate.items()]


def _step(
    model: nn.Module,
    losses_of: Callable[[nn.Module, int], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    step: int,
    config: LoopConfig,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * learning_rate_at(step, config)
    torch.manual_seed(config.seed * 1_000_003 + step)  # the step alone decides every draw: resume is exact
    losses = losses_of(model, step)
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    if not torch.isfinite(norm):
        raise UsageError(f"step {step}: the loss or its gradient is not finite; lower the learning rate")
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}


def _ema_with_warmup(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        # Early averages forget quickly, so that the random start does not linger.
        weight = 1 - min(decay, (1 + float(num_averaged)) / (10 + float(num_averaged)))
        torch._foreach_lerp_(average, current, weight)

    return update


def _progress_line(done: int, steps: int, means: dict[str, float], seconds: float) -> str:
    left_s = round((steps - done) * seconds)
    terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
    return (
        f"{done}/{steps}  {terms}  {seconds:.2f} s/step  ETA {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
    )


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def _save(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, companion: nn.Module, step: int
) -> None:  # fmt: skip
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "companion": companion.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def _load(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, companion: nn.Module
) -> int:  # fmt: skip
    state = torch.load(path, map_location="cpu", weights_only=True)
    rates = [group["rate"] for group in optimizer.param_groups]
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError):  # whose text names every tensor
        raise UsageError(
            f"{path}: of a run with another network or recipe; resume with the options that it was begun with"
        ) from None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["rate"] = rate  # checkpoints of older versions have none
    companion.load_state_dict(state.get("companion", {}))  # checkpoints of older versions have none
    return int(state["step"])
