"""Video pairs: paired by time, steady gates, whole files or none. Every video is made in code."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError, MissingExtraError
from moevision.imaging import video
from moevision.imaging.picture import picture_from_array
from moevision.imaging.video import VideoWriter, frame_rate, read_frames
from moevision.moe import PooledScorer
from moevision.tasks.fusion.model import PRESETS, FusionNet
from moevision.tasks.fusion.predict import FusionTask
from moevision.tasks.fusion.video import KEPT, Steadiness, _paired, fuse_video

pytest.importorskip("av")


def task():
    torch.manual_seed(0)
    net = FusionNet(PRESETS["test"]()).eval()
    for gate in (*net.local_gates, net.global_gate):
        torch.nn.init.normal_(gate.router.scorer.logits.weight, std=1.0)
    return FusionTask(ModelDescriptor("test", "fusion", net, net.config.to_dict(), {}), device=torch.device("cpu"))


def write(path, frames, rate=10):
    with VideoWriter(path, Fraction(rate)) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def still(seed, count=8, noise=2.0, height=48, width=64):
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), 4)
    base = np.repeat(cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX)[..., None], 3, 2)
    return [np.clip(base + rng.normal(0, noise, base.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def test_frames_come_back_nearly_as_written_with_their_times_and_rate(tmp_path):
    frames = still(0, 5)
    path = write(tmp_path / "a.mp4", frames, 8)
    back = list(read_frames(path))
    assert frame_rate(path) == 8
    assert [round(frame.time_s, 3) for frame in back] == [0, 0.125, 0.25, 0.375, 0.5]
    for frame, written in zip(back, frames, strict=True):
        assert np.abs(frame.pixels_HWC.astype(int) - written).mean() < 6


def test_odd_sizes_are_made_even_by_repeating_the_edge(tmp_path):
    path = write(tmp_path / "a.mkv", [np.full((35, 51, 3), 90, np.uint8)] * 2)
    assert next(read_frames(path)).pixels_HWC.shape == (36, 52, 3)


def test_a_failure_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="other size"):
        write(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)])
    with pytest.raises(InputError, match="not a video name"):
        write(tmp_path / "a.png", [])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_is_one_line(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    for path in (tmp_path / "a.mp4", tmp_path / "gone.mp4"):
        with pytest.raises(InputError, match="cannot be read as a video"):
            next(read_frames(path))


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"moevision\[video\]"):
        video.require_av()


def test_frames_are_paired_with_the_nearest_in_time_and_dropped_if_it_is_far(tmp_path):
    slow = write(tmp_path / "ir.mp4", [np.full((32, 32, 3), 20 * i, np.uint8) for i in range(5)], 5)
    fast = write(tmp_path / "vis.mp4", [np.full((32, 32, 3), 20 * i, np.uint8) for i in range(10)], 10)
    found = [None if thermal is None else round(thermal.time_s, 2) for thermal, _ in _paired(slow, fast)]
    assert found == [0, None, 0.2, None, 0.4, None, 0.6, None, 0.8, None]


def test_a_still_scene_keeps_its_weights_and_the_result_has_the_visible_form(tmp_path):
    infrared, visible = write(tmp_path / "ir.mp4", still(1)), write(tmp_path / "vis.mp4", still(2))
    facts = fuse_video(task(), infrared, visible, tmp_path / "out.mp4")
    assert facts["frames"] == 8
    assert facts["dropped"] == facts["cuts"] == 0
    assert facts["largest_step"] <= 0.05
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 8
    assert frame_rate(tmp_path / "out.mp4") == 10
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_cut_forgets_what_was_before_and_a_drift_does_not(tmp_path):
    steady = Steadiness(rate=0.25)
    dark, bright = (np.full((16, 16, 3), value, np.uint8) for value in (20, 220))
    assert not steady.watch(dark)
    assert steady.context().statistic("pooled", lambda: torch.zeros(1, 2)).tolist() == [[0, 0]]
    assert not steady.watch(dark)
    assert steady.context().statistic("pooled", lambda: torch.ones(1, 2)).tolist() == [[0.25, 0.25]]
    assert steady.context().statistic("other", lambda: torch.ones(1, 2)).tolist() == [[1, 1]]
    assert steady.watch(bright)
    assert steady.context().statistic("pooled", lambda: torch.ones(1, 2)).tolist() == [[1, 1]]


def test_the_task_is_as_before_after_a_video_also_when_it_fails(tmp_path):
    fuser = task()
    before = fuser.new_context
    (tmp_path / "bad.mp4").write_bytes(b"x")
    with pytest.raises(InputError):
        fuse_video(fuser, tmp_path / "bad.mp4", tmp_path / "bad.mp4", tmp_path / "out.mp4")
    assert fuser.new_context is before
    assert not (tmp_path / "out.mp4").exists()


def test_experts_stay_until_another_is_better_by_a_margin_and_are_forgotten_at_a_cut():
    fusion, steadiness = task(), Steadiness()
    fusion.new_context = steadiness.context
    pair = [picture_from_array(frame) for frame in (still(1, 1)[0], still(2, 1)[0])]
    fusion(tuple(pair))
    gate = fusion.model.global_gate
    with torch.inference_mode():
        logits_E = gate.router.scorer(steadiness.mean_BF)[0]
    logits_E = logits_E.clone()
    worst, second = int(logits_E.argmin()), float(logits_E.topk(2).values[1])

    def chosen_with_the_worst_raised_to(logit):
        with torch.no_grad():
            gate.router.scorer.logits.bias[worst] += (logit - float(logits_E[worst])) / PooledScorer.SCALE
        logits_E[worst] = logit
        fusion(tuple(pair))
        return fusion.new_context().before["global"].routing.index_NK[0].tolist()

    assert worst not in chosen_with_the_worst_raised_to(second + KEPT / 2), "the better one now, but not by enough"
    assert worst in chosen_with_the_worst_raised_to(second + 2 * KEPT)
    black = np.zeros((48, 64, 3), np.uint8)
    steadiness.watch(black)
    assert steadiness.watch(255 - black)
    assert fusion.new_context().before == {}
