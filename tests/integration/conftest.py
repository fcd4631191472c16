"""The command line with a task that needs no weights."""

import base64
import io
import json
import re
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moevision.cli.main import app
from moevision.engine.task import TaskResult
from moevision.imaging.picture import Picture


@dataclass
class FakeApi:
    """Stands in for `moevision.api`: its task gives the negative, and remembers what it was asked for."""

    requests: list = field(default_factory=list)
    before: object = None
    """Called with every picture; the place to raise from."""
    models: list = field(default_factory=lambda: [{"name": "restoration-small", "sha256": "0" * 64}])

    def list_models(self):
        return self.models

    def restoration_task(self, **options):
        self.requests.append(options)

        def task(pictures):
            if self.before is not None:
                self.before(pictures[0])
            return TaskResult(replace(pictures[0], pixels_HWC=255 - pictures[0].pixels_HWC), {"weather": "haze"})

        return task

    def fusion_task(self, **options):
        self.requests.append(options)

        def task(pictures):
            infrared, visible = pictures
            if self.before is not None:
                self.before(visible)
            mean = (infrared.pixels_HWC // 2) + (visible.pixels_HWC // 2)
            return TaskResult(
                replace(visible, pixels_HWC=mean), {"visible_weight": 0.5}, {"weights": Picture(mean[:, :, :1])}
            )

        return task


@pytest.fixture
def fake_api(monkeypatch):
    api = FakeApi()
    module = types.ModuleType("moevision.api")
    module.list_models = api.list_models
    module.restoration_task = api.restoration_task
    module.fusion_task = api.fusion_task
    monkeypatch.setitem(sys.modules, "moevision.api", module)
    return api


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with in/a.png, in/b.jpg and in/sub/c.png."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("in/a.png", "in/b.jpg", "in/sub/c.png")):
        write_image(name, seed)
    return tmp_path


def write_image(path, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def image():
    """`image(path, seed)` writes a small picture."""
    return write_image


@pytest.fixture
def page_of():
    """`page_of("r.html")`: the data of a report's page, and of every row its thumbnails as PIL images."""

    def parts(path):
        text = Path(path).read_text("utf-8")
        data, thumbnails = (
            re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)[1] for name in ("data", "thumbnails")
        )
        images = [
            [Image.open(io.BytesIO(base64.b64decode(one))) for one in line.split()] for line in thumbnails.split("\n")
        ]
        return json.loads(data), images

    return parts


@pytest.fixture
def cli(fake_api):
    """`cli("restore", "a.png", "-o", "out")` runs a command in this process."""

    def invoke(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def tree():
    """`tree("out")`: the files below a folder and their bytes, the ledger left out."""

    def listing(root):
        paths = sorted(path for path in Path(root).rglob("*") if path.is_file() and "ledger" not in path.name)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    return listing
