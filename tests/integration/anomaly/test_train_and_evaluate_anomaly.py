"""`moevision evaluate anomaly` and `train anomaly`."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from .conftest import PASSES, SIZE_HW, done, moevision_cli, refused, write_video

pytest.importorskip("av")

# Evaluation and training


@pytest.fixture
def data(here):
    """train/ with two clips, test/ with two of which the frames of PASSES are abnormal, labels.npz."""
    for part in ("train", "test"):
        Path("set", part).mkdir(parents=True)
    for seed in range(2):
        os.link(f"normal-{seed}.mp4", f"set/train/0{seed}.mp4")
        write_video(here / f"set/test/0{seed}.mp4", 50, 3 + seed, fast=PASSES)
    labels_T = np.isin(np.arange(50), PASSES).astype(np.uint8)
    np.savez("set/labels.npz", **{"00": labels_T, "01": labels_T})
    return Path("set")


@pytest.mark.parametrize("masked", [False, True])
def test_evaluation_writes_both_protocols_beside_the_baselines(data, masked):
    if masked:
        mask_THW = np.zeros((50, *SIZE_HW), bool)
        for number in PASSES:
            left = 6 * (number - PASSES[0]) % (SIZE_HW[1] - 14)
            mask_THW[number, 24:40, left : left + 14] = True
        packed = np.packbits(mask_THW, axis=-1)
        np.savez(data / "pixel_masks_packbits.npz", **{"00": packed, "01": packed})
    result = done("evaluate", "anomaly", "--data", data, "--model", "net.safetensors", "--json", "r/e.json")
    written = json.loads(Path("r/e.json").read_text())
    assert {"task", "model", "data", "n", "metrics", "per_item", "version"} <= set(written)
    assert (written["task"], written["model"], written["n"]) == ("anomaly", "net", 2)
    metrics = written["metrics"]
    assert set(metrics["baselines"]) == {"mb", "frame_difference"}
    for numbers in (metrics, metrics["baselines"]["mb"], metrics["baselines"]["frame_difference"]):
        for protocol in ("p0", "p1"):
            assert {"micro_auc", "macro_auc"} <= set(numbers[protocol])
            assert 0.7 < numbers[protocol]["micro_auc"] <= 1, "what crosses is large and fast"
    assert ({"pointing_game", "rbdc", "tbdc"} <= set(metrics)) == masked
    assert [(item["name"], item["frames"], item["abnormal_frames"]) for item in written["per_item"]] == [
        ("00", 50, len(PASSES)),
        ("01", 50, len(PASSES)),
    ]
    printed = dict(line.split() for line in result.stdout.splitlines())
    keys = {"p0.micro_auc", "p0.macro_auc", "p1.micro_auc"}
    keys |= {f"baselines.{name}.p0.micro_auc" for name in ("mb", "frame_difference")}
    assert keys <= set(printed)
    assert float(printed["p0.micro_auc"]) == pytest.approx(metrics["p0"]["micro_auc"], abs=1e-4)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("labels.npz", "set/labels.npz: cannot be read"),
        ("test", "set/test: no such folder"),
        ("train", "set/train: no such folder"),
        ("01", "set/labels.npz: no labels for 01"),
    ],
)
def test_evaluation_without_a_part_of_the_set_is_one_line(data, lost, words):
    if lost == "01":
        np.savez(data / "labels.npz", **{"00": np.zeros(50, np.uint8)})
    elif (data / lost).is_dir():
        shutil.rmtree(data / lost)
    else:
        (data / lost).unlink()
    result = moevision_cli("evaluate", "anomaly", "--data", data, "--model", "net.safetensors", "--json", "e.json")
    refused(result, 2, words)
    assert not Path("e.json").exists()


def test_a_trained_network_can_be_calibrated(data):
    command = ["train", "anomaly", "--data", data, "--preset", "test"]
    result = done(*command, "-o", "run", "--steps", "2")
    assert result.stdout == "run/model.safetensors\n"
    done("anomaly-fit", "normal-0.mp4", "-o", "run/site.json", "--model", "run/model.safetensors")
    refused(moevision_cli(*command, "-o", "run"), 2, "run: holds a run")
    refused(moevision_cli("train", "anomaly", "--data", "nowhere", "-o", "r", "--preset", "test"), 2, "nowhere/train")
    refused(moevision_cli(*command, "-o", "r", "--preset", "huge"), 2, "no such preset; choose from test, small")
