"""Small videos made in code, what is fitted to them, and the commands."""

import csv
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from moevision.checkpoint import save_model
from moevision.cli.main import app
from moevision.imaging.sources import VideoSource
from moevision.imaging.video import Frame, VideoWriter
from moevision.tasks.anomaly.model import PRESETS, MemoryOutNet

ALL = ["events.json", "heat.mp4", "scores.csv", "scores.png"]
SIZE_HW = 48, 64
PASSES = range(30, 45)  # the frames of yard.mp4 in which something large and fast crosses
# As a person would start it, but in a background shell, too, which has its children ignore an interrupt.
DRIVER = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
DRIVER += "from moevision.cli.main import main; main()"


def picture(number, seed=0, size_hw=SIZE_HW, fast=()):
    """A walker of 6 x 10 px, 1 px a frame, on a noisy ground; in the frames of `fast` something else, 6 px a frame."""
    width = size_hw[1]
    rng = np.random.default_rng((seed, number))
    ground = np.kron(np.random.default_rng(7).integers(60, 120, (6, 8)), np.ones((8, 8)))
    ground = np.resize(ground, size_hw) + rng.integers(-2, 3, size_hw)
    left = (number + 11 * seed) % (width - 6)
    ground[10:20, left : left + 6] = 220
    if number in fast:
        left = 6 * (number - fast[0]) % (width - 14)
        ground[24:40, left : left + 14] = 250
    return np.repeat(ground.astype(np.uint8)[..., None], 3, axis=2)


def write_video(path, count=50, seed=0, *, size_hw=SIZE_HW, fast=(), rate=10, times_s=None):
    with VideoWriter(path, Fraction(rate)) as writer:
        for number in range(count):
            writer.write(picture(number, seed, size_hw, fast), None if times_s is None else times_s[number])
    return path


def write_pictures(folder, sizes):
    folder.mkdir()
    for number, size_hw in enumerate(sizes):
        Image.fromarray(picture(number, 5, size_hw)).save(folder / f"f{number}.png")
    return folder


def moevision_cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = moevision_cli(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(result, code, *words):
    """That the command said what is wrong in one line, which has the words, and nothing as a result."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = (x for x in result.stderr.splitlines() if x.startswith(("moevision: error: ", "failed: ")))
    assert all(word in line for word in words), line
    assert "bug" not in line
    assert result.stdout == ""


def rows(folder):
    with (Path(folder) / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(folder):
    return json.loads((Path(folder) / "events.json").read_text("utf-8"))


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Two normal recordings, their calibrations without and with a network, yard.mp4 with something unusual."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(2):
        write_video(folder / f"normal-{seed}.mp4", seed=seed)
        torch.manual_seed(seed)
        weights = folder / ("net.safetensors" if seed == 0 else "other.safetensors")
        save_model(MemoryOutNet(PRESETS["test"]()), weights, task="anomaly", training={})
    write_video(folder / "yard.mp4", 60, 2, fast=PASSES)
    normal = [folder / "normal-0.mp4", folder / "normal-1.mp4"]
    done("anomaly-fit", *normal, "-o", folder / "site.json", "--model", "none", "--quiet")
    fit = ["anomaly-fit", *normal, "-o", folder / "net.json", "--model", folder / "net.safetensors"]
    done(*fit, "--precision", "fp32", "--quiet")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The current folder, with links to what `made` holds; a test may add to it."""
    monkeypatch.chdir(tmp_path)
    for path in made.iterdir():
        os.link(path, path.name)
    return tmp_path


class Endless(VideoSource):
    """A camera that always shows the same."""

    is_live = True

    def __init__(self):
        super().__init__("camera:7", None)
        self._start()

    def _read(self):
        return Frame(picture(0), 0.0)

    def close(self):
        pass
