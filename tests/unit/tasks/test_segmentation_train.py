"""Training of segmentation on pictures made here: it learns, resumes exactly, takes weights over."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moevision.api import load
from moevision.datasets.segmentation import LabelledFolder
from moevision.errors import UsageError, WeightsError
from moevision.tasks.segmentation import train as recipe
from moevision.tasks.segmentation.train import build, choose_active, split, take_over, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve pictures of a bright disc (class 1) on a dark ground (class 0)."""
    root = tmp_path_factory.mktemp("discs")
    for part in ("images", "labels"):
        (root / part).mkdir()
    (root / "classes.txt").write_text("ground\ndisc\n")
    rng = np.random.default_rng(0)
    for number in range(12):
        label = np.zeros((48, 64), np.uint8)
        cv2.circle(label, (int(rng.integers(12, 52)), int(rng.integers(12, 36))), 10, 1, -1)
        image = np.where(label[..., None] > 0, 220, 40) + rng.integers(-20, 20, (48, 64, 3))
        cv2.imwrite(str(root / "images" / f"{number:02d}.png"), image.astype(np.uint8))
        cv2.imwrite(str(root / "labels" / f"{number:02d}.png"), label)
    return root


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(recipe, "CROP_PX", 48)
    monkeypatch.setattr(recipe, "BATCH", 2)


def run(data, out, steps, **options):
    lines = []
    path = train(data, out, preset="test", steps=steps, start_from=None, workers=0, say=lines.append, **options)
    return path, lines


def save(state, path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def test_it_learns_to_tell_a_disc_from_the_ground(data, tmp_path):
    path, lines = run(data, tmp_path / "run", 200, learning_rate=5e-3)
    validation = [line for line in lines if line.startswith("validation")]
    assert float(validation[-1].split()[2]) > 80  # mIoU in percent; one class everywhere has below 50
    descriptor = load(path, device="cpu")
    assert descriptor.task == "segmentation"
    assert descriptor.model.config.classes == ("ground", "disc")


def test_an_interrupted_run_resumes_to_the_same_weights_bit_for_bit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "LoopConfig", _checkpointing(recipe.LoopConfig))
    unbroken, _ = run(data, tmp_path / "a", 4)
    choose, calls = recipe.choose_active, []

    def stop(model):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        choose(model)

    monkeypatch.setattr(recipe, "choose_active", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "b", 4)
    monkeypatch.setattr(recipe, "choose_active", choose)
    resumed, _ = run(data, tmp_path / "b", 4, resume=True)
    first, second = load_file(unbroken), load_file(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _checkpointing(make):
    return lambda **settings: make(**{**settings, "checkpoint_every": 2})


def test_the_last_pictures_are_kept_and_few_are_all_learned_from():
    assert split(list(range(40)), 0.1) == (list(range(36)), [36, 37, 38, 39])
    assert split(list(range(9)), 0.1) == (list(range(9)), [])
    assert split(list(range(40)), 0.0) == (list(range(40)), [])


def test_all_that_fits_is_taken_over_and_what_is_new_is_said(data, tmp_path):
    classes = LabelledFolder(data).classes
    torch.manual_seed(0)
    old, new = build("test", classes), build("test", classes)
    state = {name: t for name, t in old.state_dict().items() if not name.startswith("classify.")}
    save(state, tmp_path / "old.safetensors")
    assert take_over(new, tmp_path / "old.safetensors") == "started from old.safetensors; new: classify"
    ours = new.state_dict()
    assert all(torch.equal(ours[name], t) for name, t in state.items())
    assert not torch.equal(ours["classify.weight"], old.state_dict()["classify.weight"])


def test_weights_without_a_pyramid_and_damaged_ones_are_refused(data, tmp_path):
    net = build("test", LabelledFolder(data).classes)
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no pyramid"):
        take_over(net, tmp_path / "other.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(WeightsError, match="damaged"):
        take_over(net, tmp_path / "bad.safetensors")


def test_a_pyramid_that_begins_learned_keeps_its_first_stages(data, tmp_path):
    torch.manual_seed(3)
    save(build("test", LabelledFolder(data).classes).state_dict(), tmp_path / "start.safetensors")
    path = train(
        data, tmp_path / "run", preset="test", steps=2, start_from=tmp_path / "start.safetensors", workers=0,
        say=lambda line: None,
    )  # fmt: skip
    before, after = load_file(tmp_path / "start.safetensors"), load_file(path)
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert not [name for name in changed if name.startswith(("backbone.pyramid.stem", "backbone.pyramid.stages.1."))]
    assert [name for name in changed if name.startswith("backbone.pyramid.stages.4.")]


def test_steps_use_half_three_quarters_and_all_of_the_experts(data):
    net = build("test", LabelledFolder(data).classes)
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        choose_active(net)
        seen.add(net.backbone.stage16[0].ffn.router.selector.k)
    assert seen == {2, 3, 4}


def test_unknown_presets_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="no such preset"):
        train(data, tmp_path / "run", preset="huge")
