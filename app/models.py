"""The networks of one server: each is loaded when it is first asked for, once, and works for one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from moevision.app.settings import Settings
from moevision.errors import WeightsError

if TYPE_CHECKING:
    from moevision.checkpoint import ModelDescriptor
    from moevision.engine.task import TaskResult
    from moevision.imaging.picture import Picture
    from moevision.tasks.anomaly.calibration import Threshold
    from moevision.tasks.anomaly.detector import AnomalyDetector
    from moevision.tasks.restoration.predict import RestorationTask
    from moevision.tasks.segmentation.predict import Segmentation, SegmentationTask


class Models:
    """What the tabs run; see the module. The results are those of `moevision.api`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.videos = threading.Lock()  # held while a video is worked on
        self._lock = threading.Lock()  # tasks are not made to be called twice at the same time
        self._loaded: dict[str, ModelDescriptor] = {}
        self._segmentation: SegmentationTask | None = None

    def warm(self) -> None:
        """Import what a first request would wait for; that request waits for the rest of it."""
        with self._lock:
            import moevision.tasks.restoration.predict  # noqa: F401  (brings torch)

    def restore(self, picture: Picture, strength: float, weather: Collection[str] | None) -> TaskResult:
        """As `api.restore`, with what was detected."""
        with self._lock:
            return self._restoration(strength, weather)((picture,))

    def fuse(self, infrared: Picture, visible: Picture, *, register: bool) -> TaskResult:
        """As `api.fuse`, with the map of weights."""
        with self._lock:
            from moevision.api import fusion_task

            model = self._descriptor(self._settings.fusion_model)
            task = fusion_task(model=model, device=self._settings.device, register="ecc" if register else "none")
            return task((infrared, visible))

    def segment(self, picture: Picture, *, restore_first: bool) -> Segmentation:
        """As `api.segment`."""
        with self._lock:
            from moevision.api import segmentation_task

            if self._segmentation is None:
                model = self._descriptor(self._settings.segmentation_model)
                self._segmentation = segmentation_task(model=model, device=self._settings.device)
            self._segmentation.restore_first = self._restoration(1.0, None) if restore_first else None
            return self._segmentation.segment(picture)

    def detector(self, site: Path | None, false_alarms_per_hour: float) -> tuple[AnomalyDetector, Threshold]:
        """As `api.anomaly_detector`: a new one for every video, for it remembers what it saw."""
        with self._lock:
            from moevision.api import anomaly_detector

            return anomaly_detector(
                site=site, device=self._settings.device, false_alarms_per_hour=false_alarms_per_hour
            )

    def missing_segmentation(self) -> str | None:
        """Why nothing can be segmented here, in one line; None if it can. Imports nothing heavy."""
        from moevision.checkpoint import find_weights

        try:
            find_weights(self._settings.segmentation_model)
        except WeightsError as error:
            return str(error)
        return None

    def _restoration(self, strength: float, weather: Collection[str] | None) -> RestorationTask:
        from moevision.api import restoration_task

        model = self._descriptor(self._settings.restoration_model)
        return restoration_task(model=model, device=self._settings.device, strength=strength, weather=weather)

    def _descriptor(self, name: str) -> ModelDescriptor:
        from moevision.api import load

        if name not in self._loaded:
            self._loaded[name] = load(name, device=self._settings.device)
        return self._loaded[name]
