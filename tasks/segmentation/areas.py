"""Tables of how much of a picture, or of a video's frames, each class takes, and what the ids mean."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moevision.engine.ledger import LEDGER_NAME, finished_facts
from moevision.engine.names import shown
from moevision.engine.task import JSON
from moevision.imaging.atomic import atomic_write_text

TABLE_NAME, MEANING_NAME = "areas.csv", "areas.json"
_PREFIX = "area."


def write_tables(root: Path, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """`areas.csv` and `areas.json` of an output folder, from its ledger: of this run and of earlier ones.

    A row is `picture` (the output below the folder; a video's is the mean of its frames) and the share of each class,
    0 to 1. Outputs of a model with other classes, and ones that are gone, have none. Raises InputError if they cannot
    be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", *classes])
    for output, facts in finished_facts(root):
        areas = {key.removeprefix(_PREFIX): value for key, value in facts.items() if key.startswith(_PREFIX)}
        if areas.keys() == set(classes):
            writer.writerow([shown(output), *(areas[name] for name in classes)])
    atomic_write_text(root / TABLE_NAME, text.getvalue())
    meaning = {"classes": list(classes), "palette": [list(colour) for colour in palette]}
    atomic_write_text(root / MEANING_NAME, json.dumps(meaning, ensure_ascii=False) + "\n")


def are_current(root: Path) -> bool:
    """Whether the tables are there, and younger than the last line of the ledger that they are made from."""
    try:
        written_ns = min((root / name).stat().st_mtime_ns for name in (TABLE_NAME, MEANING_NAME))
        return written_ns >= (root / LEDGER_NAME).stat().st_mtime_ns
    except OSError:
        return False


def as_facts(areas: dict[str, float]) -> dict[str, JSON]:
    """Shares by class as the columns of a report: `{"area.Road": 0.31}`."""
    return {f"{_PREFIX}{name}": round(share, 5) for name, share in areas.items()}


@contextmanager
def frame_table(path: Path, classes: Sequence[str]) -> Iterator["FrameTable"]:
    """A table of frames that appears at `path`, whole, when the block ends without an exception."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield FrameTable(file, classes)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class FrameTable:
    """Rows of `frame, time_s` and the share of each class; memory does not grow with them.

    Args:
        file: open for text.
        classes: the columns.

    Attributes:
        frames: how many rows there are.
    """

    def __init__(self, file: IO[str], classes: Sequence[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._totals = dict.fromkeys(classes, 0.0)
        self.frames = 0
        self._writer.writerow(["frame", "time_s", *classes])

    def add(self, time_s: float, areas: dict[str, float]) -> None:
        """The next frame."""
        self._writer.writerow([self.frames, f"{time_s:.3f}", *(round(areas[name], 5) for name in self._totals)])
        self.frames += 1
        for name, share in areas.items():
            self._totals[name] += share

    def means(self) -> dict[str, float]:
        """The share of each class in all frames so far, of which there is at least one."""
        return {name: total / self.frames for name, total in self._totals.items()}
