"""Batches that are a function of seed and step alone: a resumed run then repeats an unbroken one bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from moevision.training.loop import LoopConfig

T = TypeVar("T")
Draw = Callable[[np.random.Generator, int], T]
"""(generator, step) -> batch. Data processes receive it, so it must be picklable: a function, or a partial of one."""


class Batches(Dataset[T], Generic[T]):
    """Batch number -> batch."""

    def __init__(self, draw: Draw[T], steps: int, seed: int) -> None:
        self.draw, self.steps, self.seed = draw, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> T:
        return self.draw(np.random.default_rng((self.seed, step)), step)


def batches_of(draw: Draw[T], loop: LoopConfig, out: Path, *, resume: bool = False, workers: int = 1) -> Iterator[T]:
    """The batches of a run in order, drawn in other processes; of a resumed one those that are left.

    Args:
        draw: see Draw.
        loop: length and seed.
        out: run folder (see `training.loop.fit`).
        resume: begin where its checkpoint ends.
        workers: data processes; 0 draws in this one.
    """
    batches = Batches(draw, loop.steps, loop.seed)
    order = range(_first_step(out) if resume else 0, loop.steps)
    return iter(DataLoader(batches, None, sampler=order, num_workers=workers, prefetch_factor=8 if workers else None))


def _first_step(out: Path) -> int:
    checkpoint = out / "checkpoint.pt"
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["step"]) if checkpoint.exists() else 0
