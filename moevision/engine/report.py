"""The report of a run as JSON, CSV or one self-contained HTML page."""

from __future__ import annotations

import csv
import html
import io
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moevision.engine.names import shown
from moevision.engine.plan import Plan
from moevision.engine.runner import Outcome
from moevision.engine.task import JSON, as_json
from moevision.errors import InputError, UsageError
from moevision.imaging.write import atomic_write_text


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


def items_of(plan: Plan, outcomes: Sequence[Outcome]) -> tuple[Item, ...]:
    """One item for everything a plan names, whether it was begun or not."""
    ended = {id(outcome.job): outcome for outcome in outcomes}
    items = []
    for job in plan.jobs:
        source, target, outcome = _joined(job.inputs), shown(job.output), ended.get(id(job))
        if outcome is None:
            items.append(Item(source, target, "unstarted"))
        else:
            seconds = round(outcome.seconds, 3)
            items.append(Item(source, target, outcome.status, seconds, outcome.reason, outcome.facts))
    items += [
        Item(_joined(skip.job.inputs), shown(skip.job.output), "skipped", reason=skip.reason) for skip in plan.skipped
    ]
    items += [Item(shown(refusal.path), "", "refused", reason=refusal.reason) for refusal in plan.refused]
    return tuple(items)


def check_report_path(path: Path) -> None:
    """Raise UsageError for a report of unknown format, before any work."""
    if path.suffix.lower() not in _RENDERERS:
        raise UsageError(f"--report {shown(path)}: the name must end in {', '.join(_RENDERERS)}")


def write_report(path: Path, report: Report) -> None:
    """Write `report` in the format of `path`'s suffix, whole or not at all."""
    check_report_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--report {shown(path)}: cannot create its folder: {error.strerror}") from error
    atomic_write_text(path, _RENDERERS[path.suffix.lower()](report))


def _joined(paths: Iterable[Path]) -> str:
    return " + ".join(shown(path) for path in paths)


def _as_json_text(report: Report) -> str:
    surroundings: dict[str, JSON] = {"python": platform.python_version(), "platform": platform.platform()}
    values = asdict(report) | {"counts": report.counts(), **surroundings}
    values["items"] = values.pop("items")  # the long part last
    return json.dumps(as_json(values), indent=2, ensure_ascii=False) + "\n"


def _columns(report: Report) -> list[str]:
    return sorted({key for item in report.items for key in item.facts})


def _as_csv(report: Report) -> str:
    facts = _columns(report)
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


def _as_html(report: Report) -> str:
    facts = _columns(report)
    head = "".join(f"<th>{_text(name)}</th>" for name in ("input", "output", "status", "seconds", "reason", *facts))
    rows = "\n".join(_html_row(item, facts) for item in report.items)
    counts = ", ".join(f"{count} {status}" for status, count in report.counts().items())
    about = {
        "command": report.command,
        "started": report.started,
        "seconds": report.seconds,
        "exit code": report.exit_code,
        "version": f"moevision {report.version}, Python {platform.python_version()}, {platform.platform()}",
        **report.settings,
    }
    details = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in about.items())
    return _PAGE.format(title=_text(f"moevision {report.task}: {counts}"), details=details, head=head, rows=rows)


def _html_row(item: Item, facts: Sequence[str]) -> str:
    values = [
        item.input,
        item.output,
        item.status,
        item.seconds,
        item.reason,
        *(_cell(item.facts.get(key)) for key in facts),
    ]
    return f'<tr class="{_text(item.status)}">' + "".join(f"<td>{_text(value)}</td>" for value in values) + "</tr>"


def _text(value: object) -> str:
    return html.escape(str(value))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem; overflow-wrap: anywhere }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }}
dt {{ opacity: .7 }} dd {{ margin: 0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .2rem .8rem; border-bottom: 1px solid #8884; vertical-align: top }}
tr:is(.failed, .memory, .bug, .refused) td:nth-child(3) {{ color: #c22; font-weight: 600 }}
</style></head><body>
<h1>{title}</h1>
<dl>{details}</dl>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
</body></html>
"""

_RENDERERS: dict[str, Callable[[Report], str]] = {".json": _as_json_text, ".csv": _as_csv, ".html": _as_html}
