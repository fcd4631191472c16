"""The report of a run as JSON, CSV or one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from moevision.engine.names import shown
from moevision.engine.plan import Plan
from moevision.engine.report_page import as_html
from moevision.engine.runner import Outcome
from moevision.engine.task import JSON, as_json
from moevision.engine.thumbnails import Thumbnail
from moevision.errors import InputError, UsageError
from moevision.imaging.write import atomic_write_bytes


@dataclass(frozen=True)
class Item:
    """One input's line."""

    input: str
    output: str
    status: str
    """`done`, `failed`, `memory`, `bug`, `skipped`, `refused` or `unstarted`."""
    seconds: float = 0.0
    reason: str = ""
    facts: dict[str, JSON] = field(default_factory=dict)
    thumbnails: tuple[Thumbnail, ...] = ()
    """For the page alone."""


@dataclass(frozen=True)
class Report:
    """What a run did, with what."""

    task: str
    command: str
    settings: dict[str, JSON]
    version: str
    started: str
    """Local time with its offset, ISO 8601."""
    seconds: float
    exit_code: int
    items: tuple[Item, ...]

    def counts(self) -> dict[str, int]:
        """Number of items by status."""
        return dict(sorted(Counter(item.status for item in self.items).items()))

    def columns(self) -> list[str]:
        """Names of all facts, in the order in which the items tell them."""
        return list(dict.fromkeys(key for item in self.items for key in item.facts))

    def means(self) -> dict[str, float]:
        """Mean of every fact that is a number, over the items that tell it."""
        return {key: round(fmean(values), 4) for key, values in self.numbers().items()}

    def numbers(self) -> dict[str, list[float]]:
        """The values of every fact that is a number wherever it is known."""
        values_by_key: dict[str, list[float]] = {}
        others: set[str] = set()
        for item in self.items:
            for key, value in item.facts.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    values_by_key.setdefault(key, []).append(value)
                elif value is not None:
                    others.add(key)
        return {key: values for key, values in values_by_key.items() if key not in others}


def items_of(plan: Plan, outcomes: Sequence[Outcome]) -> tuple[Item, ...]:
    """One item for everything a plan names, whether it was begun or not."""
    ended = {id(outcome.job): outcome for outcome in outcomes}
    items = []
    for job in plan.jobs:
        source, target, outcome = _joined(job.inputs), shown(job.output), ended.get(id(job))
        if outcome is None:
            items.append(Item(source, target, "unstarted", reason="the run ended before"))
        else:
            seconds = round(outcome.seconds, 3)
            items.append(
                Item(source, target, outcome.status, seconds, outcome.reason, outcome.facts, outcome.thumbnails)
            )
    items += [
        Item(_joined(skip.job.inputs), shown(skip.job.output), "skipped", reason=skip.reason) for skip in plan.skipped
    ]
    items += [Item(shown(refusal.path), "", "refused", reason=refusal.reason) for refusal in plan.refused]
    return tuple(items)


def check_report_path(path: Path) -> None:
    """Raise UsageError for a report of unknown format, before any work."""
    if path.suffix.lower() not in _RENDERERS:
        raise UsageError(f"--report {shown(path)}: the name must end in {', '.join(_RENDERERS)}")


def shows_pictures(path: Path | None) -> bool:
    """Whether a report of this name holds thumbnails."""
    return path is not None and path.suffix.lower() == ".html"


def write_report(path: Path, report: Report) -> None:
    """Write `report` in the format of `path`'s suffix, whole or not at all."""
    check_report_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--report {shown(path)}: cannot create its folder: {error.strerror}") from error
    text = _RENDERERS[path.suffix.lower()](report)
    # An undecodable byte of some name must not cost the report; in JSON its escape is the very notation.
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _joined(paths: Iterable[Path]) -> str:
    return " + ".join(shown(path) for path in paths)


def _as_json_text(report: Report) -> str:
    surroundings: dict[str, JSON] = {"python": platform.python_version(), "platform": platform.platform()}
    values = asdict(report) | {"counts": report.counts(), "means": report.means(), **surroundings}
    values["items"] = values.pop("items")  # the long part last
    for item in values["items"]:
        del item["thumbnails"]
    return json.dumps(as_json(values), indent=2, ensure_ascii=False) + "\n"


def _as_csv(report: Report) -> str:
    facts = sorted(report.columns())
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["input", "output", "status", "seconds", "reason", *facts])
    for item in report.items:
        values = [_cell(item.facts.get(key)) for key in facts]
        writer.writerow([item.input, item.output, item.status, item.seconds, item.reason, *values])
    return text.getvalue()


def _cell(value: JSON) -> str | int | float:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


_RENDERERS: dict[str, Callable[[Report], str]] = {".json": _as_json_text, ".csv": _as_csv, ".html": as_html}
