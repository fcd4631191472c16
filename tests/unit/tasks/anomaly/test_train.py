"""The recipe of the anomaly weights on a few made clips of a few small frames."""

import csv
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from moevision.api import load
from moevision.checkpoint import save_model
from moevision.errors import InputError, UsageError, WeightsError
from moevision.imaging.video import VideoWriter
from moevision.tasks.anomaly import train as recipe
from moevision.tasks.anomaly.appearance import AppearanceEncoder
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutNet
from moevision.tasks.anomaly.train import (
    fine_tune,
    held_out,
    losses_of,
    optimise,
    prediction_error,
    read_training_clips,
    train,
    validate,
)
from moevision.training.batches import Batches
from moevision.training.loop import LoopConfig

HEIGHT, WIDTH = 32, 48


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two crops of 32 px instead of sixteen of 96, and no picture of the curves."""
    monkeypatch.setattr(recipe, "BATCH", 2)
    monkeypatch.setattr(recipe, "CROP_PX", 32)
    monkeypatch.setattr(recipe, "draw_curves", lambda out: None)


def clip(count=10, seed=0, height=HEIGHT, width=WIDTH):
    """A bright square moves over a still texture: (T, H, W)."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(60, 140, (1, height, width), np.uint8), count, 0)
    for number in range(count):
        left = 2 * (number + seed) % (width - 16)
        frames[number, 8:24, left : left + 16] = 230
    return frames


def new_network(seed=0, **changes):
    torch.manual_seed(seed)
    return MemoryOutNet(replace(PRESETS["test"](), **changes))


def tensors_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal(first, second):
    """Bit for bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def pictures(folder, frames):
    """A folder of pictures: a source that needs no decoder."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "start.safetensors"
    net = new_network()
    torch.nn.init.normal_(net.head.weight, std=0.01)
    save_model(net, path, task="anomaly", training={})
    return path


# Training


def run(out, *, resume=False, stop_at=None, steps=5, workers=0):
    def say(line):
        if stop_at is not None and line.startswith(f"{stop_at}/"):
            raise KeyboardInterrupt

    loop = LoopConfig(steps, learning_rate=1e-2, warmup_steps=2, checkpoint_every=2, validate_every=4, log_every=1)
    net = new_network()
    clips = {f"{n}": clip(seed=n) for n in range(3)}
    average = optimise(net, clips, loop, out, resume=resume, workers=workers, say=say)
    return tensors_of(average), tensors_of(net)


def test_an_interrupted_run_resumes_to_the_weights_of_an_unbroken_one_bit_for_bit(tmp_path):
    unbroken = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_at=3)
    resumed = run(tmp_path / "b", resume=True)
    for first, second in zip(unbroken, resumed, strict=True):
        assert_equal(first, second)
    assert any(not torch.equal(tensor, new_network().state_dict()[name]) for name, tensor in unbroken[0].items())


def test_data_processes_change_nothing(tmp_path):
    for first, second in zip(run(tmp_path / "a", steps=2), run(tmp_path / "b", steps=2, workers=1), strict=True):
        assert_equal(first, second)


def test_a_batch_is_a_function_of_seed_and_step():
    crops = recipe.MovingCrops([clip(), clip(14, 1)], FRAMES + 1)
    draw = partial(recipe._draw, crops)
    batches = Batches(draw, 10, 3)
    assert torch.equal(batches[4], Batches(draw, 99, 3)[4])
    assert not torch.equal(batches[4], batches[5])
    assert not torch.equal(batches[4], Batches(draw, 10, 4)[4])
    assert batches[4].shape == (2, FRAMES + 1, 32, 32)


def test_the_network_learns_to_predict_better_than_the_last_frame(tmp_path):
    clips = {f"{n}": clip(12, seed=n) for n in range(4)}
    loop = LoopConfig(15, learning_rate=2e-2, warmup_steps=2, validate_every=15, log_every=15)
    optimise(new_network(), clips, loop, tmp_path / "run", workers=0, say=lambda line: None)
    (row,) = csv.DictReader((tmp_path / "run" / "validation.csv").open())
    assert float(row["psnr"]) > float(row["copy_psnr"])


def test_losses_are_weighted_and_named():
    batch = torch.from_numpy(clip(FRAMES + 1)).float()[None] / 127.5 - 1
    terms = losses_of(new_network(), batch)
    assert set(terms) == {"prediction", "motion", "balance"}
    copied = 100 * float((batch[:, -1] - batch[:, -2]).square().mean())
    assert float(terms["prediction"].detach()) == pytest.approx(copied, rel=1e-5)
    assert float(terms["motion"].detach()) == pytest.approx(copied, rel=1e-5)  # it stays behind everywhere
    assert terms["balance"] > 0
    assert losses_of(new_network(num_experts=0), batch)["balance"] == 0


def test_a_new_network_is_as_good_as_the_last_frame_and_fast_motion_is_harder():
    numbers = validate(new_network().eval(), [clip(20), clip(20, 1)])
    assert numbers["psnr"] == pytest.approx(numbers["copy_psnr"], abs=1e-3)
    assert 0.5 < numbers["fast_auc"] <= 1


@torch.inference_mode()
def test_the_error_of_the_prediction_is_squared_and_in_grey_levels():
    frames_THW = clip(FRAMES + 1)
    wanted = (frames_THW[-1].astype(float) - frames_THW[-2]) ** 2
    np.testing.assert_allclose(prediction_error(new_network().eval(), frames_THW), wanted, rtol=1e-3, atol=1e-2)


def test_validation_of_clips_in_which_nothing_moves_or_that_are_short_does_not_fail():
    still = np.repeat(clip(1), 12, 0)
    for clips in ([still], [clip(FRAMES + 1)], [clip(FRAMES)], []):
        assert set(validate(new_network().eval(), clips)) == {"psnr", "copy_psnr", "fast_auc"}


def test_every_fifth_clip_is_held_out():
    names = [f"{n:02}" for n in range(16)]
    assert held_out(reversed(names)) == {"04", "09", "14"}
    assert held_out(names[:4]) == set()


def test_held_out_clips_are_not_learned_from(tmp_path, monkeypatch):
    seen, lines = [], []
    monkeypatch.setattr(recipe, "MovingCrops", lambda clips, frames: seen.extend(clips) or _Stop())
    clips = {f"{n}": clip(seed=n) for n in range(6)}
    with pytest.raises(ZeroDivisionError):
        optimise(new_network(), clips, LoopConfig(1), tmp_path / "run", workers=0, say=lines.append)
    assert [next(n for n in range(6) if clips[f"{n}"] is one) for one in seen] == [0, 1, 2, 3, 5]
    assert lines == ["5 clips to learn from, 1 to validate with"]


class _Stop:
    def batch(self, *_):
        raise ZeroDivisionError


@pytest.fixture
def data(tmp_path):
    """Five clips of one camera, the second larger than the first."""
    pytest.importorskip("av")
    (tmp_path / "data" / "train").mkdir(parents=True)
    for n in range(5):
        frames = clip(seed=n) if n != 1 else clip(seed=n, height=2 * HEIGHT, width=2 * WIDTH)
        with VideoWriter(tmp_path / "data" / "train" / f"{n}.mp4", Fraction(10)) as writer:
            for frame in frames:
                writer.write(np.repeat(frame[..., None], 3, 2))
    return tmp_path / "data"


def test_training_writes_weights_that_load_and_say_where_they_come_from(data, tmp_path):
    lines = []
    path = train(data, tmp_path / "run", preset="test", seed=3, steps=2, workers=0, say=lines.append)
    assert path == tmp_path / "run" / "model.safetensors"
    descriptor = load(path)
    assert (descriptor.task, descriptor.config) == ("anomaly", PRESETS["test"]().to_dict())
    assert descriptor.training == {"preset": "test", "seed": 3, "steps": 2, "learning_rate": 2e-3}
    assert {"log.csv", "validation.csv", "checkpoint.pt"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert any("4 clips to learn from, 1 to validate" in line for line in lines)
    with pytest.raises(UsageError, match="--resume"):
        train(data, tmp_path / "run", preset="test", steps=2, workers=0)
    longer = train(data, tmp_path / "run", preset="test", seed=3, steps=3, workers=0, resume=True)
    assert load(longer).training["steps"] == 3


def test_training_clips_have_one_size(data):
    clips = read_training_clips(data)
    assert {name: one.shape for name, one in clips.items()} == {str(n): (10, HEIGHT, WIDTH) for n in range(5)}


def test_what_cannot_be_trained_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match=r"huge: no such preset.*test"):
        train(data, tmp_path / "run", preset="huge")
    with pytest.raises(UsageError, match="no such folder"):
        train(tmp_path / "nothing", tmp_path / "run", preset="test")
    with pytest.raises(UsageError, match="no run to resume"):
        train(data, tmp_path / "run", preset="test", workers=0, resume=True)
    assert not (tmp_path / "run").exists()


# The encoder of other weights


def test_the_encoder_is_taken_over_and_stays_as_it_is(data, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "looking", lambda: replace(PRESETS["test"](), encoder=True))
    torch.manual_seed(7)
    encoder = AppearanceEncoder()
    save_file(encoder.state_dict(), tmp_path / "alone.safetensors")
    save_file({f"encoder.{k}": v for k, v in encoder.state_dict().items()}, tmp_path / "inside.safetensors")
    for name in ("alone", "inside"):
        path = train(
            data, tmp_path / name, preset="looking", steps=2, workers=0, encoder=tmp_path / f"{name}.safetensors"
        )
        found = {k.removeprefix("encoder."): v for k, v in load_file(path).items() if k.startswith("encoder.")}
        assert_equal(found, dict(encoder.state_dict()))


def test_weights_without_an_encoder_are_refused(data, tmp_path, weights, monkeypatch):
    monkeypatch.setitem(PRESETS, "looking", lambda: replace(PRESETS["test"](), encoder=True))
    for encoder, reason in ((weights, "holds no appearance encoder"), ("unheard-of", "no such model")):
        with pytest.raises(WeightsError, match=reason):
            train(data, tmp_path / "run", preset="looking", steps=1, workers=0, encoder=encoder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "of another shape"])
def test_a_damaged_encoder_is_refused_in_one_line(data, tmp_path, monkeypatch, damage):
    monkeypatch.setitem(PRESETS, "looking", lambda: replace(PRESETS["test"](), encoder=True))
    path = tmp_path / "encoder.safetensors"
    tensors = AppearanceEncoder().state_dict()
    save_file(tensors if damage == "truncated" else {"stem.weight": torch.zeros(3)}, path)
    if damage != "of another shape":
        path.write_bytes(b"no weights at all" if damage == "garbage" else path.read_bytes()[:-100])
    with pytest.raises(WeightsError) as caught:
        train(data, tmp_path / "run", preset="looking", steps=1, workers=0, encoder=path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# Fine-tuning


def test_fine_tuning_writes_weights_that_load_and_returns_what_it_kept(tmp_path, weights):
    sources = [pictures(tmp_path / f"{n}", clip(seed=n)) for n in range(3)]
    out, lines = tmp_path / "tuned.safetensors", []
    kept = fine_tune(sources, str(weights), out, steps=3, seed=5, fps=12.5, say=lines.append)
    assert kept == sources[-1:]
    descriptor = load(out)
    assert descriptor.config == load(weights).config
    assert descriptor.training == {"from": str(weights), "steps": 3, "seed": 5}
    before, after = load_file(weights), load_file(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert any("2 clips to learn from" in line for line in lines)
    fine_tune(sources, str(weights), tmp_path / "again.safetensors", steps=3, seed=5, fps=12.5)
    assert_equal(after, load_file(tmp_path / "again.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0", "1", "2", "again.safetensors", "start.safetensors", "tuned.safetensors",
    ]  # fmt: skip


def test_fine_tuning_keeps_a_fifth_and_learns_from_all_others(tmp_path, weights, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "MovingCrops", lambda clips, frames: seen.extend(clips) or _Stop())
    sources = [pictures(tmp_path / f"{n:02}", clip(6, seed=n)) for n in range(11)]
    with pytest.raises(ZeroDivisionError):
        fine_tune(sources, str(weights), tmp_path / "a.safetensors", steps=1, fps=12.5)
    assert len(seen) == 9
    for n, one in enumerate(seen):
        assert np.array_equal(one, clip(6, seed=n))


def test_fine_tuning_reads_no_more_frames_a_second_than_are_analysed(tmp_path, weights, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "MovingCrops", lambda clips, frames: seen.extend(clips) or _Stop())
    monkeypatch.setattr(recipe, "MOST_FRAMES", 14)
    long, short = clip(40), clip(12, 1)
    sources = [pictures(tmp_path / name, frames) for name, frames in (("a", long), ("b", short), ("c", short))]
    with pytest.raises(ZeroDivisionError):
        fine_tune(sources, str(weights), tmp_path / "a.safetensors", steps=1, fps=25.0)
    np.testing.assert_array_equal(seen[0], long[::2][:7])
    np.testing.assert_array_equal(seen[1], short[::2])


def test_fine_tuning_does_not_touch_an_encoder(tmp_path):
    net = new_network(encoder=True)
    save_model(net, tmp_path / "start.safetensors", task="anomaly", training={})
    sources = [pictures(tmp_path / f"{n}", clip(8, seed=n)) for n in range(2)]
    fine_tune(sources, str(tmp_path / "start.safetensors"), tmp_path / "a.safetensors", steps=2, fps=12.5)
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[f"encoder.{name}"], t) for name, t in net.encoder.state_dict().items())


def test_what_cannot_be_fine_tuned_on_is_refused(tmp_path, weights):
    out = tmp_path / "a.safetensors"
    good, short = pictures(tmp_path / "good", clip()), pictures(tmp_path / "short", clip(FRAMES))
    for sources in ([], [good]):
        with pytest.raises(UsageError, match="at least two recordings"):
            fine_tune(sources, str(weights), out, steps=1)
    with pytest.raises(InputError, match=r"4 frames: at least 5"):
        fine_tune([short, good], str(weights), out, steps=1, fps=12.5)
    with pytest.raises(InputError, match="missing"):
        fine_tune([str(tmp_path / "missing.mp4"), good], str(weights), out, steps=1)
    with pytest.raises(WeightsError, match="no such model"):
        fine_tune([good, good], "unheard-of", out, steps=1)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="not a moevision weights file"):
        fine_tune([good, good], str(tmp_path / "foreign.safetensors"), out, steps=1, fps=12.5)
    with pytest.raises(WeightsError, match="fusion"):
        fine_tune([good, good], "fusion-small", out, steps=1, fps=12.5)
    assert not out.exists()


def test_a_live_source_is_not_fine_tuned_on(tmp_path, weights, monkeypatch):
    class Live:
        is_live, size_hw = True, (HEIGHT, WIDTH)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(recipe, "open_source", lambda text, fps: Live())
    with pytest.raises(InputError, match=r"camera:0: is live.*record"):
        fine_tune(["camera:0", "camera:1"], str(weights), tmp_path / "a.safetensors", steps=1)
