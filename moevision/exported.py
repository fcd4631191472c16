"""Loaded models as exported files, and exported files in the place of loaded models, whatever their task."""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import moevision
from moevision.checkpoint import ModelDescriptor, file_sha256, find_weights
from moevision.errors import UsageError, WeightsError
from moevision.export import Portable, Runner, cached_file, check_runtime, open_runner

SUFFIXES = (".onnx", ".xml", ".pt2")


class Exported(NamedTuple):
    """An opened file, and what it was made of.

    Attributes:
        runner: the file.
        descriptor: the model; of a file that was given, what it says of itself, without a network.
        open_form: opens the file of another form, made when first needed; None of a file that was given.
    """

    runner: Runner
    descriptor: ModelDescriptor
    open_form: Callable[[str], Runner] | None


def is_file(model: object) -> bool:
    """Whether what names a model names an exported file."""
    return isinstance(model, str | PathLike) and Path(model).suffix in SUFFIXES


def portable_of(weights: str | PathLike[str], descriptor: ModelDescriptor, form: str | None = None) -> Portable:
    """What is exported of a loaded model.

    Args:
        weights: what the descriptor was loaded from.
        descriptor: the model.
        form: one of those its task has, None = the one for other programs.

    Raises UsageError for a task that has none.
    """
    forms = _forms(descriptor.task)
    if not forms:
        raise UsageError(f"{weights}: {descriptor.task} models cannot be exported, all others can")
    form = form or next(iter(forms))
    facts = {
        "task": descriptor.task,
        "form": form,
        "model": descriptor.name,
        "version": moevision.__version__,
        "weights_sha256": _sha256(weights),
        "config": json.dumps(descriptor.config),
        "training": json.dumps(descriptor.training),
    }
    return forms[form](descriptor.model, {f"moevision.{name}": value for name, value in facts.items()})


def open_file(path: Path, task: str, runtime: str, *, bf16: bool) -> Exported:
    """A file from `moevision export`.

    Raises UsageError for a file of another task or form, WeightsError where it does not say enough of itself, and all
    that `open_runner` raises.
    """
    runner = open_runner(path, runtime, bf16=bf16)
    wanted = next(iter(_forms(task)))
    told, form = runner.facts.get("moevision.task"), runner.facts.get("moevision.form")
    if (told, form) != (task, wanted):
        raise UsageError(f"{path}: made for a {form} and the task {told}, not for a {wanted} and the task {task}")
    try:
        name, config, training = (runner.facts[f"moevision.{fact}"] for fact in ("model", "config", "training"))
        descriptor = ModelDescriptor(name, task, _nothing(), json.loads(config), json.loads(training))
    except (KeyError, ValueError):
        raise WeightsError(f"{path}: does not say what it was made of; export it again") from None
    return Exported(runner, descriptor, None)


def open_cached(weights: str | PathLike[str], descriptor: ModelDescriptor, runtime: str, *, bf16: bool) -> Exported:
    """The files of a loaded model, made when first needed and kept in the user's cache folder.

    Raises UsageError for a task that has none, and all that `open_runner` raises.
    """
    check_runtime(runtime, bf16=bf16)
    key = f"{descriptor.name}-{_sha256(weights)[:16]}-{moevision.__version__}"

    def open_form(form: str) -> Runner:
        path = cached_file(lambda: portable_of(weights, descriptor, form), f"{key}-{form}")
        return open_runner(path, runtime, bf16=bf16)

    return Exported(open_form(next(iter(_forms(descriptor.task)))), descriptor, open_form)


def _forms(task: str) -> dict[str, Callable[[Any, dict[str, str]], Portable]]:
    """By task; the first is the one for other programs."""
    if task == "restoration":
        from moevision.tasks.restoration.portable import picture_tile, whole_picture

        return {"picture": whole_picture, "tile": picture_tile}
    if task == "fusion":
        from moevision.tasks.fusion.portable import whole_pair

        return {"pair": whole_pair}
    if task == "segmentation":
        from moevision.tasks.segmentation.portable import any_picture

        return {"picture": any_picture}
    return {}


def _sha256(weights: str | PathLike[str]) -> str:
    return file_sha256(find_weights(str(weights))[0])


def _nothing() -> Any:
    from torch import nn

    return nn.Identity()
