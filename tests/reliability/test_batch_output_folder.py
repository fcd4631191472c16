"""Output folders that fill up or refuse to be written: a clear error, no partial file, inputs as they were."""

import errno
import hashlib
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moevision.cli.main import app
from moevision.engine.task import TaskResult


@pytest.fixture
def restore(tmp_path, monkeypatch):
    """`restore(*options)` on four pictures in `in`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for index in range(4):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)).save(f"in/{index}.png")
    api = types.ModuleType("moevision.api")
    api.list_models = list
    api.restoration_task = lambda **_: (
        lambda pictures: TaskResult(replace(pictures[0], pixels_HWC=255 - pictures[0].pixels_HWC))
    )
    monkeypatch.setitem(sys.modules, "moevision.api", api)
    return lambda *options: CliRunner().invoke(app, ["restore", "in", "-o", "out", *options])


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_disk_that_fills_up_ends_the_run_cleanly(restore, tmp_path, monkeypatch):
    before = hashes(tmp_path / "in")
    fsync, room = os.fsync, [5]

    def fill(descriptor):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    result = restore()
    monkeypatch.undo()
    assert result.exit_code == 3, result.stderr
    assert "No space left" in result.stderr
    assert "bug" not in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob(".*.part"))
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()
    assert hashes(tmp_path / "in") == before


def test_a_file_in_place_of_a_sub_folder_fails_that_picture_only(restore, tmp_path):
    (tmp_path / "in" / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "sub" / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    result = restore()
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 4
    assert (tmp_path / "out" / "sub").read_text() == "a file"


def test_a_folder_in_place_of_an_output_fails_that_picture_only(restore, tmp_path):
    (tmp_path / "out" / "1.png").mkdir(parents=True)
    result = restore("--on-exists", "overwrite")
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 3
    assert "1.png" in result.stderr
