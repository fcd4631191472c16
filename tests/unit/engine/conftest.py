"""Small pictures made in code and a task that needs no model."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.engine.task import TaskResult
from moevision.imaging.read import Picture


def _make_image(path, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)).save(path)
    return path


@dataclass
class InvertTask:
    """The negative: easy to check, and twice gives back the input."""

    name: str = "invert"
    before: object = None
    """Called with the picture first; the place to raise from."""

    def __call__(self, pictures: tuple[Picture, ...]) -> TaskResult:
        if self.before is not None:
            self.before(pictures[0])
        return TaskResult(
            replace(pictures[0], pixels_HWC=255 - pictures[0].pixels_HWC), {"mean": pictures[0].pixels_HWC.mean()}
        )


@pytest.fixture
def make_image():
    """`make_image(path, seed)` writes a 7x5 picture and the folders it needs."""
    return _make_image


@pytest.fixture
def invert():
    """The class of the fake task."""
    return InvertTask


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
