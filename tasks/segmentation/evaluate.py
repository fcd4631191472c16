"""`moevision evaluate segmentation`: intersection over union on a labelled folder, beside the majority class."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevision.datasets.classes import IGNORE, ClassList, some_of
from moevision.datasets.paired import list_images
from moevision.datasets.segmentation import LabelledFolder, read_label
from moevision.engine.task import as_json
from moevision.errors import UsageError
from moevision.tasks.segmentation.metrics import Confusion, confusion_of, miou_interval, scores_of

Image = NDArray[np.uint8]
Predict = Callable[[Image], Image]
"""(H, W, 3) uint8 RGB -> (H, W) uint8 class indices."""


def evaluate(data: Path, predict: Predict, *, model: str, classes: ClassList | None = None) -> dict[str, Any]:
    """Label every picture of `data/images` and compare with `data/labels`.

    Args:
        data: folder as of `datasets.segmentation.LabelledFolder`.
        predict: the model.
        model: its name, for the result.
        classes: those of its predictions, which the data must have too, in any order; None = as the data lists them.

    Returns:
        {"task", "model", "data", "n", "metrics": {"miou", "pixel_accuracy", "iou.<class>" ... over all pictures, null
        for a class that does not occur; "miou_low", "miou_high": 95 % by bootstrap over pictures; "baselines":
        {"majority": {the same without classes, "class", "counted_in": the folder where that class is the commonest}}},
        "per_item": [{"name", "miou", "pixel_accuracy"}], "seconds": of the model, "version"}.

    Raises:
        UsageError: the folder or its class list is faulty, no pixel has a label, or the classes are not the model's.
        InputError: a file cannot be read or does not fit the class list.
    """
    from moevision import __version__

    folder = LabelledFolder(data)
    names = folder.classes.names
    index_of_predicted = _translation(classes or folder.classes, folder.classes, model, data)
    found: list[Confusion] = []
    items: list[dict[str, Any]] = []
    seconds = 0.0
    for image_HWC, truth_HW, name in folder:
        begun = time.perf_counter()
        predicted_HW = predict(image_HWC)
        seconds += time.perf_counter() - begun
        found.append(confusion_of(index_of_predicted[predicted_HW], truth_HW, len(names)))
        scores = scores_of(found[-1], names)
        items.append({"name": name, **_rounded({key: scores[key] for key in ("miou", "pixel_accuracy")})})
    confusions_NKK = np.stack(found)
    if not confusions_NKK.any():
        raise UsageError(f"{data / 'labels'}: no pixel has a label; check {data} and its class list")
    metrics = {**_numbers(confusions_NKK, names), "baselines": {"majority": _majority(confusions_NKK, folder)}}
    return {
        "task": "segmentation",
        "model": model,
        "data": str(data),
        "n": len(items),
        "metrics": as_json(metrics),
        "per_item": as_json(items),
        "seconds": round(seconds, 3),
        "version": __version__,
    }


def _translation(ours: ClassList, theirs: ClassList, model: str, data: Path) -> Image:
    """(256,): class index of the model -> of the data, IGNORE for what is none. Raises UsageError."""
    index_of = {name.casefold(): index for index, name in enumerate(theirs.names)}
    of_model = {name.casefold() for name in ours.names}
    differences = [
        f"only in {where}: {some_of(names)}"
        for where, names in (
            (model, [name for name in ours.names if name.casefold() not in index_of]),
            ("the data", [name for name in theirs.names if name.casefold() not in of_model]),
        )
        if names
    ]
    if differences:
        raise UsageError(
            f"{data}: other classes than the model's ({'; '.join(differences)}); use a model of its classes"
        )
    table = np.full(256, IGNORE, np.uint8)
    table[: len(ours.names)] = [index_of[name.casefold()] for name in ours.names]
    return table


def _majority(confusions_NKK: Confusion, folder: LabelledFolder) -> dict[str, Any]:
    """What naming every pixel by the commonest class scores: of the training labels beside the folder, else its own."""
    truth_NK = confusions_NKK.sum(2)
    count_K, source = truth_NK.sum(0), folder.root
    training = folder.parent / "train"
    if folder.root.resolve() != training.resolve() and (training / "labels").is_dir():
        counted = np.zeros(256, np.int64)
        for path in list_images(training / "labels"):
            counted += np.bincount(read_label(path, folder.classes).ravel(), minlength=256)
        if counted[: len(count_K)].any():
            count_K, source = counted[: len(count_K)], training
    majority = int(count_K.argmax())
    constant_NKK = np.zeros_like(confusions_NKK)
    constant_NKK[:, :, majority] = truth_NK
    names = folder.classes.names
    numbers = {key: value for key, value in _numbers(constant_NKK, names).items() if not key.startswith("iou.")}
    return {**numbers, "class": names[majority], "counted_in": str(source)}


def _numbers(confusions_NKK: Confusion, names: tuple[str, ...]) -> dict[str, float]:
    low, high = miou_interval(confusions_NKK)
    return _rounded({**scores_of(confusions_NKK.sum(0), names), "miou_low": low, "miou_high": high})


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
