"""Weights files: round trip, and every kind of damage refused with one line."""

import json
import pickle

import pytest
import torch

from moevision import checkpoint
from moevision.api import build_model
from moevision.checkpoint import find_weights, load_model, read_manifest, save_model
from moevision.errors import WeightsError
from moevision.tasks.restoration.model import PRESETS, RestorationNet


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(RestorationNet(PRESETS["test"]()), path, task="restoration", training={"seed": 0})
    return path


def test_a_saved_model_loads_from_the_file_alone(weights):
    torch.manual_seed(0)
    original = RestorationNet(PRESETS["test"]())
    descriptor = load_model(weights, build_model)
    assert (descriptor.task, descriptor.name, descriptor.training) == ("restoration", "model", {"seed": 0})
    assert not descriptor.model.training
    for name, tensor in descriptor.model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_a_shipped_file_with_one_flipped_byte_is_refused(weights, tmp_path, monkeypatch):
    import hashlib

    entry = {"name": "x", "file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"models": [entry]}))
    monkeypatch.setattr(checkpoint, "weights_folder", lambda: tmp_path)
    assert load_model("x", build_model).name == "x"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        load_model("x", build_model)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(weights, keep):
    data = weights.read_bytes()
    weights.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(WeightsError, match=str(weights)):
        load_model(weights, build_model)


def test_mutated_headers_never_raise_anything_but_a_weights_error(weights):
    original = weights.read_bytes()
    generator, refused = torch.Generator().manual_seed(0), []
    for _ in range(200):
        data = bytearray(original)
        position = int(torch.randint(0, 3000, (1,), generator=generator))
        data[position] = int(torch.randint(0, 256, (1,), generator=generator))
        weights.write_bytes(data)
        try:
            assert load_model(weights, build_model).task == "restoration"
        except WeightsError as error:
            refused.append(str(error).splitlines())
    assert refused
    assert all(len(lines) == 1 for lines in refused)


def test_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(WeightsError, match=r"pickle|not a moevision weights file"):
            load_model(tmp_path / name, build_model)
    assert not (tmp_path / "marker").exists()


def test_weights_of_another_program_or_a_newer_format_are_refused(weights, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(WeightsError, match="not a moevision weights file"):
        load_model(foreign, build_model)
    monkeypatch.setattr(checkpoint, "FORMAT", "0")
    with pytest.raises(WeightsError, match="newer"):
        load_model(weights, build_model)


def test_unknown_names_and_missing_files_say_what_there_is(tmp_path):
    with pytest.raises(WeightsError, match="no such model; shipped are"):
        find_weights("restoration-huge")
    with pytest.raises(WeightsError, match="no such weights file"):
        find_weights(tmp_path / "none.safetensors")


def test_every_shipped_model_matches_its_manifest_entry_and_loads():
    entries = read_manifest()
    assert entries
    for entry in entries:
        path = checkpoint.weights_folder() / entry["file"]
        assert path.stat().st_size == entry["bytes"] <= 10_000_000
        assert (checkpoint.weights_folder() / f"{entry['name']}.md").is_file()
        descriptor = load_model(entry["name"], build_model)
        assert descriptor.task == entry["task"]
        assert descriptor.size.tile_multiple_px == (16 if entry["task"] == "segmentation" else 8)
        assert sum(p.numel() for p in descriptor.model.parameters()) == entry["params"]
