"""Training, evaluation and data commands on a few made pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from moevision.cli.main import app
from moevision.tasks.restoration.train import phase_at, train, weather_labels

runner = CliRunner()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "clean"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = np.kron(rng.integers(0, 255, (10, 12, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        Image.fromarray(blocks).save(folder / f"{i}.png")
    return folder.parent


def test_a_short_run_repeats_exactly_and_its_weights_evaluate(data, tmp_path):
    first = train(data, tmp_path / "a", preset="test", steps=4, workers=0)
    again = train(data, tmp_path / "b", preset="test", steps=4, workers=0)
    tensors, others = load_file(first), load_file(again)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    pairs = tmp_path / "pairs"
    synthesize = ["datasets", "synthesize", "--data", str(data / "clean"), "-o", str(pairs), "--weather", "haze"]
    made = runner.invoke(app, synthesize)
    assert made.exit_code == 0, made.output
    result_file = tmp_path / "result.json"
    measured = runner.invoke(
        app, ["evaluate", "restoration", "--data", str(pairs), "--model", str(first), "--json", str(result_file)]
    )
    assert measured.exit_code == 0, measured.output
    result = json.loads(result_file.read_text())
    assert {"task", "model", "data", "n", "metrics", "per_item", "seconds", "version"} <= set(result)
    assert result["n"] == 3
    assert {"psnr", "ssim", "psnr_y", "ssim_y"} <= set(result["metrics"])
    assert set(result["metrics"]["baselines"]) == {"identity", "dark_channel"}


def test_weights_can_be_the_start_of_another_run(data, tmp_path):
    first = train(data, tmp_path / "a", preset="test", steps=2, workers=0)
    said = []
    train(data, tmp_path / "b", preset="test", steps=2, workers=0, start_from=first, say=said.append)
    assert any("started from" in line and "nothing" in line for line in said)


def test_synthesis_is_the_same_for_the_same_seed_and_refuses_a_used_folder(data, tmp_path):
    arguments = ["datasets", "synthesize", "--data", str(data / "clean"), "--weather", "rain", "--seed", "7"]
    for name in ("a", "b"):
        assert runner.invoke(app, [*arguments, "-o", str(tmp_path / name)]).exit_code == 0
    for path in (tmp_path / "a" / "input").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "input" / path.name).read_bytes()
    assert runner.invoke(app, [*arguments, "-o", str(tmp_path / "a")]).exit_code != 0


def test_crops_grow_during_a_run_and_labels_follow_the_weather():
    crops = [phase_at(step, 100).crop_px for step in range(100)]
    assert crops == sorted(crops)
    assert crops[0] < crops[-1]
    labels = weather_labels(["haze", "clean", "haze+rain", "rain+noise", "pairs"])
    assert labels[:4].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert labels[4].isnan().all()
