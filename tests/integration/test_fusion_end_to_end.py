"""Fusion from training to fused files, on a few made pairs."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import moevision
from moevision.cli.main import app
from moevision.errors import UsageError
from moevision.tasks.fusion import train as fusion_train
from moevision.tasks.fusion.metrics import METRICS
from moevision.tasks.fusion.train import train

runner = CliRunner()


@pytest.fixture
def data(tmp_path):
    """ir/ and vis/ with three pairs of 150 x 140."""
    rng = np.random.default_rng(0)
    for part in ("ir", "vis"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for i in range(3):
            blocks = np.kron(rng.integers(0, 255, (14, 15, 3)), np.ones((10, 10, 1))).astype(np.uint8)
            blocks = blocks[..., :1].repeat(3, 2) if part == "ir" else blocks
            cv2.imwrite(str(tmp_path / "data" / part / f"{i}.png"), blocks)
    return tmp_path / "data"


@pytest.fixture
def weights(data, tmp_path):
    return train(data, tmp_path / "run", preset="test", steps=2, workers=0)


@pytest.mark.parametrize("balance", [False, True])
def test_a_run_repeats_exactly_and_an_interrupted_one_goes_on_exactly(data, tmp_path, balance, monkeypatch):
    monkeypatch.setattr(fusion_train, "EVERY", 3)  # measured at steps 0 and 3: what lies between must be kept
    options = {"preset": "test", "workers": 0, "balance_modalities": balance}
    whole = train(data, tmp_path / "a", steps=5, **options)
    again = train(data, tmp_path / "b", steps=5, **options)
    assert all(torch.equal(t, load_file(again)[name]) for name, t in load_file(whole).items())
    train(data, tmp_path / "d", steps=2, **options)
    resumed = train(data, tmp_path / "d", steps=5, resume=True, **options)
    assert all(torch.equal(t, load_file(resumed)[name]) for name, t in load_file(whole).items())
    with pytest.raises(UsageError, match="holds a run"):
        train(data, tmp_path / "a", preset="test", steps=4, workers=0)
    with pytest.raises(UsageError, match="no such preset"):
        train(data, tmp_path / "c", preset="huge", steps=4, workers=0)


def test_evaluation_writes_every_metric_the_baselines_and_peers_with_intervals(data, weights, tmp_path):
    result_file = tmp_path / "result.json"
    command = ["evaluate", "fusion", "--data", data, "--model", weights, "--json", result_file, "--peer", data / "vis"]
    measured = runner.invoke(app, [str(word) for word in command])
    assert measured.exit_code == 0, measured.output
    result = json.loads(result_file.read_text())
    assert {"task", "model", "data", "n", "metrics", "per_item", "seconds", "version"} <= set(result)
    assert result["task"] == "fusion"
    assert result["n"] == len(result["per_item"]) == 3
    assert set(METRICS) <= set(result["metrics"])
    assert set(result["metrics"]["baselines"]) == {"average", "pixel_max", "vis"}
    for intervals in result["metrics"]["against"].values():
        assert all(low <= high for low, high in intervals.values())
    assert result["metrics"]["baselines"]["average"]["nabf"] <= 0.01


def test_a_peer_that_lacks_a_picture_is_refused(data, weights, tmp_path):
    (tmp_path / "peer").mkdir()
    command = ["evaluate", "fusion", "--data", data, "--model", weights, "--peer", tmp_path / "peer"]
    refused = runner.invoke(app, [str(word) for word in command])
    assert refused.exit_code == 2
    assert "must have fused every pair" in refused.output


def test_command_and_python_give_the_same_picture(data, weights, tmp_path):
    out = tmp_path / "out"
    command = ["fuse", data / "ir", data / "vis", "-o", out, "--model", weights, "--precision", "fp32"]
    done = runner.invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    fused = moevision.fuse(data / "ir" / "1.png", data / "vis" / "1.png", model=weights, precision="fp32")
    written = cv2.cvtColor(cv2.imread(str(out / "1.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(fused, written)
    arrays = [cv2.imread(str(data / part / "1.png"), cv2.IMREAD_COLOR_RGB) for part in ("ir", "vis")]
    assert np.array_equal(moevision.fuse(*arrays, model=weights, precision="fp32"), fused)


def test_wrong_weights_and_wrong_options_are_one_line(data, weights):
    with pytest.raises(UsageError, match="a fusion model; choose one for restoration"):
        moevision.restore(data / "vis" / "1.png", model=weights)
    with pytest.raises(UsageError, match="a restoration model; choose one for fusion"):
        moevision.fuse(data / "ir" / "1.png", data / "vis" / "1.png", model="restoration-small")
    with pytest.raises(UsageError, match="--register"):
        moevision.fuse(data / "ir" / "1.png", data / "vis" / "1.png", model=weights, register="magic")


def test_two_videos_become_one(data, weights, tmp_path):
    pytest.importorskip("av")
    from fractions import Fraction

    from moevision.imaging.video import VideoWriter, read_frames

    for part in ("ir", "vis"):
        with VideoWriter(tmp_path / f"{part}.mp4", Fraction(10)) as writer:
            for _ in range(3):
                writer.write(cv2.imread(str(data / part / "0.png")))
    command = [
        "fuse",
        tmp_path / "ir.mp4",
        tmp_path / "vis.mp4",
        "-o",
        tmp_path / "o.mp4",
        "--video",
        "--model",
        weights,
    ]
    done = runner.invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    assert len(list(read_frames(tmp_path / "o.mp4"))) == 3
    again = runner.invoke(app, [str(word) for word in command])
    assert again.exit_code == 2
    assert "exists already" in again.output
