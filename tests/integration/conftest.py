"""The command line with a task that needs no weights."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
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


@dataclass(frozen=True)
class Demo:
    """A running `moevision demo`: its address, process and temporary folder."""

    url: str
    process: subprocess.Popen
    temporary: Path
    segmentation_model: Path

    def children(self):
        """Processes that it has started."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The page, started as a person would, with low limits and a tiny segmentation network."""
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    from moevision.checkpoint import save_model
    from moevision.tasks.segmentation.model import PRESETS, SegmentationConfig, SegmentationNet

    folder = tmp_path_factory.mktemp("demo")
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        palette = (120, 180, 250), (128, 64, 128), (0, 0, 142), (107, 142, 35)
        net = SegmentationNet(SegmentationConfig(PRESETS["test"](), ("Sky", "Road", "Car", "Tree, high"), palette))
        torch.nn.init.normal_(net.classify.weight, std=0.5)
    save_model(net, folder / "tiny.safetensors", task="segmentation", training={})
    (folder / "work").mkdir()
    (folder / "work" / "secret.txt").write_text("CANARY")
    (folder / "work" / ".env").write_text("CANARY")
    options = ["--device", "cpu", "--segmentation-model", str(folder / "tiny.safetensors")]
    options += ["--max-file-mb", "2", "--max-megapixels", "1.5", "--max-video-seconds", "12"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options += ["--port", str(free.getsockname()[1])]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "moevision", "demo", *options],
        cwd=folder / "work", env={**os.environ, "TMPDIR": str(folder), "GRADIO_SHARE": "True"}, text=True,
        stdout=subprocess.PIPE, stderr=(folder / "log").open("w"),
    )  # fmt: skip
    late = threading.Timer(180, process.kill)
    late.start()
    url = process.stdout.readline().strip()
    late.cancel()
    assert url, (folder / "log").read_text()
    yield Demo(url, process, folder, folder / "tiny.safetensors")
    process.terminate()
    assert process.wait(20) == 0
    assert not list(folder.glob("moevision-demo-*"))  # nothing of anybody is left
    assert "a request failed" not in (folder / "log").read_text()  # what is no fault of a visitor
