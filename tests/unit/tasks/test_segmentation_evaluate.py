"""Evaluation of segmentation: the JSON, the majority class, class lists in another order."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.datasets.classes import ClassList
from moevision.errors import InputError, UsageError
from moevision.tasks.segmentation.evaluate import evaluate

CLASSES = "0 sky 0 0 1\n1 road 0 0 2\n2 Car 0 0 3\n3 void 0 0 0\n"


def write(folder, labels):
    """Pictures whose red channel is the id of the class."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name, ids in labels.items():
        ids_HW = np.array(ids, np.uint8)
        Image.fromarray(np.repeat(ids_HW[..., None], 3, 2)).save(folder / "images" / f"{name}.png")
        Image.fromarray(ids_HW).save(folder / "labels" / f"{name}.png")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "classes.txt").write_text(CLASSES)
    write(tmp_path / "val", {"a": [[0, 0, 1, 3]], "b": [[1, 1, 1, 0]]})
    return tmp_path / "val"


def oracle(image_HWC):
    return image_HWC[..., 0] % 3


def all_sky(image_HWC):
    return np.zeros(image_HWC.shape[:2], np.uint8)


def test_the_result_has_the_keys_of_the_design_and_is_json(data):
    result = evaluate(data, oracle, model="oracle")
    assert list(result) == ["task", "model", "data", "n", "metrics", "per_item", "seconds", "version"]
    assert (result["task"], result["model"], result["data"], result["n"]) == ("segmentation", "oracle", str(data), 2)
    metrics = result["metrics"]
    keys = {"miou", "pixel_accuracy", "iou.sky", "iou.road", "iou.car", "miou_low", "miou_high", "baselines"}
    assert set(metrics) == keys
    assert metrics["miou"] == metrics["pixel_accuracy"] == metrics["iou.sky"] == metrics["iou.road"] == 1
    assert metrics["iou.car"] is None  # occurs nowhere
    assert result["per_item"] == [{"name": name, "miou": 1, "pixel_accuracy": 1} for name in "ab"]
    json.dumps(result, allow_nan=False)


def test_figures_are_of_the_pixels_of_all_pictures_together(data):
    metrics = evaluate(data, all_sky, model="sky")["metrics"]
    assert metrics["pixel_accuracy"] == pytest.approx(3 / 7, abs=1e-4)
    assert metrics["iou.sky"] == pytest.approx(3 / 7, abs=1e-4)
    assert metrics["miou"] == pytest.approx(3 / 14, abs=1e-4)
    assert metrics["miou_low"] <= metrics["miou"] <= metrics["miou_high"]


def test_the_majority_class_is_that_of_the_folder_where_there_are_no_training_labels(data):
    majority = evaluate(data, oracle, model="oracle")["metrics"]["baselines"]["majority"]
    assert majority["class"] == "road"
    assert majority["counted_in"] == str(data)
    assert majority["pixel_accuracy"] == pytest.approx(4 / 7, abs=1e-4)
    assert majority["miou"] == pytest.approx(4 / 7 / 2, abs=1e-4)


def test_the_majority_class_is_that_of_the_training_labels_beside_the_folder(tmp_path, data, monkeypatch):
    write(tmp_path / "train", {"c": [[0, 0, 0, 1], [3, 3, 3, 3]]})
    majority = evaluate(data, oracle, model="oracle")["metrics"]["baselines"]["majority"]
    assert majority["class"] == "sky"
    assert majority["counted_in"] == str(tmp_path / "train")
    same = evaluate(data, all_sky, model="sky")["metrics"]
    assert majority == {**{key: same[key] for key in majority if key in same}, "class": "sky",
                        "counted_in": str(tmp_path / "train")}  # fmt: skip
    monkeypatch.chdir(data)
    assert evaluate(Path("."), oracle, model="oracle")["metrics"]["baselines"]["majority"]["class"] == "sky"


def test_the_training_folder_itself_counts_its_own_labels(tmp_path, data):
    write(tmp_path / "train", {"c": [[0, 0, 0, 1]]})
    majority = evaluate(tmp_path / "train", oracle, model="oracle")["metrics"]["baselines"]["majority"]
    assert (majority["class"], majority["counted_in"]) == ("sky", str(tmp_path / "train"))


def test_training_labels_without_any_label_do_not_count(tmp_path, data):
    write(tmp_path / "train", {"c": [[3, 3]]})
    assert evaluate(data, oracle, model="o")["metrics"]["baselines"]["majority"]["counted_in"] == str(data)


def test_classes_of_the_model_may_stand_in_another_order_and_case(data):
    shuffled = ClassList(("CAR", "Sky", "Road"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    in_its_order = np.array([1, 2, 0, 0], np.uint8)
    result = evaluate(data, lambda image_HWC: in_its_order[image_HWC[..., 0]], model="m", classes=shuffled)
    assert result["metrics"]["miou"] == 1


def test_classes_that_differ_are_named(data):
    other = ClassList(("sky", "car", "tree", "bus"), ((1, 1, 1),) * 4)
    with pytest.raises(UsageError, match="only in forest: tree, bus; only in the data: road") as caught:
        evaluate(data, oracle, model="forest", classes=other)
    assert str(data) in str(caught.value)


def test_a_prediction_of_another_size_or_of_no_class_is_a_bug(data):
    with pytest.raises(ValueError, match="label of"):
        evaluate(data, lambda image_HWC: oracle(image_HWC)[:, 1:], model="m")
    with pytest.raises(ValueError, match="3 classes"):
        evaluate(data, lambda image_HWC: all_sky(image_HWC) + np.uint8(3), model="m")


def test_faulty_labels_are_refused(tmp_path, data):
    write(tmp_path / "bare", {"a": [[3, 3]]})
    with pytest.raises(UsageError, match="no pixel has a label"):
        evaluate(tmp_path / "bare", oracle, model="m")
    write(tmp_path / "odd", {"a": [[0, 9]]})
    with pytest.raises(InputError, match="id 9"):
        evaluate(tmp_path / "odd", oracle, model="m")


def test_camvid_is_read_and_road_is_its_majority():
    folder = Path(os.environ.get("MOEVISION_DATA", "")) / "segmentation" / "camvid" / "val"
    if not folder.is_dir():
        pytest.skip("MOEVISION_DATA does not name a folder with segmentation/camvid: real data is not shipped")
    result = evaluate(folder, lambda image_HWC: np.full(image_HWC.shape[:2], 3, np.uint8), model="road")
    assert result["n"] == 101
    assert len([key for key in result["metrics"] if key.startswith("iou.")]) == 11
    assert result["metrics"]["baselines"]["majority"]["class"] == "Road"
    assert result["metrics"]["baselines"]["majority"]["miou"] == result["metrics"]["miou"] < 0.03
