"""What the engine knows of a task: a callable from pictures to one picture and a few facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from moevision.imaging.read import Picture

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True)
class TaskResult:
    """One finished picture and what the task has to say about it."""

    picture: Picture
    facts: dict[str, JSON] = field(default_factory=dict)
    """Small and flat, for they become columns of a report: `{"weather": "haze", "confidence": 0.82, "tiles": 12}`."""
    maps: dict[str, Picture] = field(default_factory=dict)
    """Pictures that explain the result, by name; written only where the user asked for them."""
    views: Callable[[int], Mapping[str, Picture]] | None = None
    """Where the job's pictures and `picture` do not show a person what was done (class ids, counts of a thermal
    camera): makes those that do, by name and in order; called with the longer side (px) that is enough, and only where
    somebody wants to see them."""


class Task(Protocol):
    """A job's worker; called from one thread only, never twice at the same time."""

    @property
    def name(self) -> str:
        """The command's name, such as `restore`."""
        ...

    def __call__(self, pictures: tuple[Picture, ...]) -> TaskResult:
        """Turn a job's pictures (one for `restore`, two for `fuse`) into one."""
        ...


class VideoTask(Task, Protocol):
    """A task that can also do whole videos."""

    def video(
        self, source: Path, output: Path, *, replaces: bool, follow: Callable[[int, int | None], None]
    ) -> dict[str, JSON]:
        """Turn one video into another, with its facts; `output` appears complete or not at all.

        Args:
            source, output: files.
            replaces: whether what is at `output`, and beside it, may be replaced.
            follow: to be called with the number of frames done, and of all as far as it is known.
        """
        ...


def as_json(value: Any) -> JSON:
    """Make `value` safe for `json.dumps`: NumPy and torch scalars become numbers, NaN and infinity null, the rest text.

    A task that reports an odd value must not cost the user a picture that is already finished.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [as_json(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return as_json(value.item())
    return str(value)
