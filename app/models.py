"""The networks of one server: each is loaded when it is first asked for, and works for one request at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moevision.app.settings import Settings
from moevision.engine.names import shown
from moevision.errors import InputError, UsageError

if TYPE_CHECKING:
    from moevision.checkpoint import ModelDescriptor
    from moevision.engine.task import TaskResult
    from moevision.imaging.picture import Picture
    from moevision.tasks.anomaly.calibration import Threshold
    from moevision.tasks.anomaly.detector import AnomalyDetector
    from moevision.tasks.restoration.predict import RestorationTask
    from moevision.tasks.segmentation.predict import Segmentation

_MOST_LOADED = 4  # the ones used last


class Models:
    """What the tabs run; see the module. The results are those of `moevision.api`.

    Raises:
        UsageError, WeightsError: the settings name a model of another task, or none.

    Attributes:
        offered: by task what a visitor may choose: labels, the first of which is the default, and what they stand for.
        videos: held while a video is worked on.
    """

    def __init__(self, settings: Settings) -> None:
        self._device = settings.device
        self.offered = {
            "restoration": _choices("restoration", settings.restoration_models),
            "fusion": _choices("fusion", settings.fusion_models),
            "segmentation": _choices("segmentation", settings.segmentation_models),
        }
        self.videos = threading.Lock()
        self._lock = threading.Lock()  # tasks are not made to be called twice at the same time
        self._loaded: OrderedDict[str, ModelDescriptor] = OrderedDict()

    def warm(self) -> None:
        """Import what a first request would wait for; that request waits for the rest of it."""
        with self._lock:
            import moevision.tasks.restoration.predict  # noqa: F401  (brings torch)

    def restore(
        self, picture: Picture, strength: float, weather: Collection[str] | None, *, experts_map: bool = False,
        label: str | None = None,
    ) -> TaskResult:  # fmt: skip
        """As `api.restore`, with what was detected. Raises InputError for a label that is not offered, as all do."""
        with self._lock:
            return self._restoration(label, strength, weather, experts_map=experts_map)((picture,))

    def fuse(self, infrared: Picture, visible: Picture, *, register: bool, label: str | None = None) -> TaskResult:
        """As `api.fuse`, with the map of weights."""
        with self._lock:
            from moevision.api import fusion_task

            how = "ecc" if register else "none"
            task = fusion_task(model=self._descriptor("fusion", label), device=self._device, register=how)
            return task((infrared, visible))

    def segment(self, picture: Picture, *, restore_first: bool, label: str | None = None) -> Segmentation:
        """As `api.segment`."""
        with self._lock:
            from moevision.api import segmentation_task

            task = segmentation_task(model=self._descriptor("segmentation", label), device=self._device)
            task.restore_first = self._restoration(None, 1.0, None) if restore_first else None
            return task.segment(picture)

    def detector(self, site: Path | None, false_alarms_per_hour: float) -> tuple[AnomalyDetector, Threshold]:
        """As `api.anomaly_detector`: a new one for every video, for it remembers what it saw."""
        with self._lock:
            from moevision.api import anomaly_detector

            return anomaly_detector(site=site, device=self._device, false_alarms_per_hour=false_alarms_per_hour)

    def _restoration(
        self, label: str | None, strength: float, weather: Collection[str] | None, *, experts_map: bool = False
    ) -> RestorationTask:
        from moevision.api import restoration_task

        return restoration_task(
            model=self._descriptor("restoration", label), device=self._device, strength=strength, weather=weather,
            experts_map=experts_map,
        )  # fmt: skip

    def _descriptor(self, task: str, label: str | None) -> ModelDescriptor:
        from moevision.api import load

        choices = self.offered[task]
        if label is not None and label not in choices:  # never a path: what labels stand for was decided at the start
            raise InputError(f"no such model here; choose one of {', '.join(choices)}")
        model = choices[next(iter(choices)) if label is None else label]
        descriptor = self._loaded.pop(model, None) or load(model, device=self._device)
        self._loaded[model] = descriptor
        if len(self._loaded) > _MOST_LOADED:
            self._loaded.popitem(last=False)
        return descriptor


def _choices(task: str, named: Sequence[str]) -> dict[str, str]:
    """Labels and models: first those that were named, then the shipped ones. Imports nothing heavy."""
    from moevision.api import list_models
    from moevision.checkpoint import read_task

    shipped = [str(entry["name"]) for entry in list_models() if entry["task"] == task]
    choices: dict[str, str] = {}
    for model in dict.fromkeys([*named, *shipped]):
        if (found := read_task(model)) != task:
            raise UsageError(f"--{task}-model {shown(model)}: a {found} model; name a {task} model")
        stem = label = model if model in shipped else shown(Path(model).stem)
        number = 2
        while label in choices:
            label, number = f"{stem} ({number})", number + 1
        choices[label] = model
    return choices
