"""Batches that are killed or interrupted leave whole files only, and can be continued."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.engine.ledger import LEDGER_NAME

DRIVER = Path(__file__).with_name("batch_driver.py")
COUNT = 24
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.fixture
def batch(tmp_path):
    """A folder of pictures, with sub-folders."""
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        path = tmp_path / "in" / f"{index % 4}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(path, compress_level=1)
    return tmp_path


def start(folder, *options, seconds=0.0, output="out"):
    command = [sys.executable, str(DRIVER), "restore", "in", "-o", output, *options]
    environment = os.environ | {"FAKE_SECONDS": str(seconds)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(folder):
    path = folder / "out" / LEDGER_NAME
    return path.read_bytes().count(b'"done"') if path.exists() else 0


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.png")
    }


def assert_all_whole(folder):
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.load()


def test_killed_batches_lose_and_tear_nothing(batch):
    before = hashes(batch / "in")
    start(batch, output="reference").communicate(timeout=120)
    rng = random.Random(0)
    kills = 0
    for _ in range(4):
        process = start(batch, "--resume", seconds=0.005)
        goal = finished(batch) + rng.randrange(1, 8)
        wait_for(process, lambda goal=goal: finished(batch) >= goal)
        wait_for(process, lambda: rng.random() < 0.2)  # not always at the same point of the next picture
        process.kill()
        process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
        assert_all_whole(batch / "out")
    assert kills >= 2
    redone = start(batch, "--resume")
    output, log = redone.communicate(timeout=120)
    assert redone.returncode == 0, log
    assert hashes(batch / "out") == hashes(batch / "reference")
    assert hashes(batch / "in") == before
    assert not list((batch / "out").rglob("*.part"))
    starts = (batch / "out" / LEDGER_NAME).read_bytes().count(b'"writing"')
    assert starts <= COUNT + kills, "at most one picture is done again per kill"
    assert len(output.splitlines()) < COUNT, "what was finished is not done again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_stops_soon_says_so_and_can_go_on(batch, number):
    process = start(batch, "--report", "r.json", seconds=0.3)
    wait_for(process, lambda: finished(batch) >= 2)
    began = time.monotonic()
    process.send_signal(number)
    output, log = process.communicate(timeout=120)
    assert process.returncode == 130, log
    assert time.monotonic() - began < 10
    assert "interrupted: " in log
    assert "Traceback" not in log
    done = finished(batch)
    assert done == len(output.splitlines()) == len(hashes(batch / "out"))
    assert not list((batch / "out").rglob("*.part"))
    assert_all_whole(batch / "out")
    report = json.loads((batch / "r.json").read_text())
    assert report["exit_code"] == 130
    assert report["counts"] == {"done": done, "unstarted": COUNT - done}
    resumed = start(batch, "--resume")
    output, log = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, log
    assert len(output.splitlines()) == COUNT - done


def test_two_runs_on_one_folder_do_not_mix(batch):
    first = start(batch, seconds=0.3)
    wait_for(first, lambda: finished(batch) >= 1)
    second = start(batch, "--on-exists", "overwrite")
    _, log = second.communicate(timeout=120)
    assert second.returncode == 2, log
    assert "another run is writing" in log
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert_all_whole(batch / "out")


def test_leftovers_of_a_killed_run_are_cleared_away(batch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (batch / "out" / "1").mkdir(parents=True)
    leftover = batch / "out" / "1" / f".001.png.{dead.pid}.part"
    foreign = batch / "out" / "1" / "precious.part"
    for path in (leftover, foreign):
        path.write_bytes(b"half")
    process = start(batch)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert not leftover.exists()
    assert foreign.exists()
