"""The report as one page: no network, no other file, usable with thousands of rows.

What comes from outside (file names, reasons, facts) is hostile until proven otherwise. It enters the page in three ways
only: escaped as HTML, as JSON without any `<` that the page's script puts into text nodes, and as base64. The policy in
the head lets nothing run but that one script, named by its hash, and nothing be loaded but `data:` pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from moevision.engine.names import is_video_name
from moevision.engine.task import JSON

if TYPE_CHECKING:
    from moevision.engine.report import Item, Report

BAD = ("failed", "memory", "bug", "refused")
"""Statuses of inputs that gave no output although they should have."""

_MOST_FAILURES = 100
_MOST_KINDS = 12
_JOINERS = "\u200c\u200d"  # as in names.shown
_WITHOUT_PICTURES = {
    "skipped": "no pictures: skipped",
    "refused": "no pictures: could not be begun",
    "unstarted": "no pictures: not begun",
    "done": "no pictures: no room left on this page",
}


def as_html(report: Report) -> str:
    """The whole page; thumbnails apart an item takes half a kilobyte, for the script and again for browsers without."""
    style, script = (_packaged(f"report_page.{suffix}") for suffix in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = _text(f"moevision {report.task}: {_counted(report.counts())}")
    columns = report.columns()
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{title}</title>\n<style>{style}</style></head><body>",
            f"<header><h1>{title}</h1>{_summary(report)}</header>",
            _failures(report.items),
            '<main id="files" aria-label="Files">',
            f'<noscript><div class="wide">{_plain_table(report.items, columns)}</div></noscript></main>',
            f'<script type="application/json" id="data">{_data(report, columns)}</script>',
            f"<script>{script}</script>",
            # After the script, which shows the rows before these have been read; base64 needs no escaping.
            f'<script type="text/plain" id="thumbnails">{_thumbnails(report.items)}</script>',
            "</body></html>\n",
        )
    )


def _packaged(name: str) -> str:
    return (files("moevision.engine") / name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(report: Report) -> str:
    """When, how long, what came out, and what it was asked for."""
    facts = {
        "started": report.started.replace("T", " "),
        "duration": _duration(report.seconds),
        "exit status": report.exit_code,
        "version": f"moevision {report.version}, Python {platform.python_version()}, {platform.platform()}",
    }
    parts = [_definitions(facts, "about")]
    if kinds := _kinds(report):
        parts.append(f"<h2>What was found</h2>{_definitions(kinds, 'numbers')}")
    if means := _means(report):
        parts.append(f"<h2>Means</h2>{_definitions(means, 'numbers')}")
    command = f"<p><code>{_text(report.command)}</code></p>"
    settings = _definitions(report.settings, "about")
    parts.append(f"<details><summary>Command and settings</summary>{command}{settings}</details>")
    return "".join(parts)


def _kinds(report: Report) -> dict[str, str]:
    """Of facts that are one of a few words how often each occurs: {"weather": "12 haze, 3 rain"}."""
    found: dict[str, str] = {}
    for key in report.columns():
        values = [item.facts[key] for item in report.items if item.facts.get(key) is not None]
        words = Counter(value for value in values if isinstance(value, str))
        if words.total() == len(values) and len(words) <= _MOST_KINDS:
            found[key] = _counted(dict(words.most_common()))
    return found


def _means(report: Report) -> dict[str, str]:
    """Of every number its mean, and of how many items where some do not tell it: {"psnr": "24.97 (of 6)"}."""
    most = max(map(len, report.numbers().values()), default=0)
    counts = {key: len(values) for key, values in report.numbers().items()}
    return {
        key: _said(mean) + (f" (of {counts[key]})" if counts[key] < most else "")
        for key, mean in report.means().items()
    }


def _failures(items: Iterable[Item]) -> str:
    bad = [item for item in items if item.status in BAD]
    if not bad:
        return ""
    lines = "".join(
        f"<li><b dir=auto>{_text(item.input)}</b> <span dir=auto>{_text(item.reason)}</span></li>"
        for item in bad[:_MOST_FAILURES]
    )
    more = f"<p>and {len(bad) - _MOST_FAILURES} more in the table</p>" if len(bad) > _MOST_FAILURES else ""
    return (
        f'<details class="failures" {"open" if len(bad) <= 5 else ""}>'
        f"<summary>{len(bad)} failed, and why</summary><ul>{lines}</ul>{more}</details>"
    )


def _plain_table(items: Iterable[Item], columns: list[str]) -> str:
    """For a browser that runs no scripts, and for printing: everything but the thumbnails."""
    names = ("input", "output", "status", "seconds", "reason", *columns)
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    rows = []
    for item in items:
        values = (item.input, item.output, item.status, item.seconds, item.reason, *map(item.facts.get, columns))
        cells = "".join(f"<td dir=auto>{_text(_said(value))}</td>" for value in values)
        rows.append(f"<tr>{cells}</tr>")
    return f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(rows) + "\n</tbody></table>"


def _data(report: Report, columns: list[str]) -> str:
    """What the script shows, as JSON that cannot end the element it stands in."""
    rows: list[JSON] = [
        [
            item.input,
            item.output,
            item.status,
            item.seconds,
            item.reason,
            _why_without(item),
            [item.facts.get(key) for key in columns],
        ]
        for item in report.items
    ]
    thumbnails = next((item.thumbnails for item in report.items if item.thumbnails), ())
    pictures: list[JSON] = [thumbnail.name for thumbnail in thumbnails]
    values: dict[str, JSON] = {
        "task": report.task,
        "columns": list(columns),
        "pictures": pictures,
        "bad": list(BAD),
        "rows": rows,
    }
    text = json.dumps(_printable(values), separators=(",", ":"))  # ASCII: U+2028 and lone surrogates are escaped
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _why_without(item: Item) -> str:
    """Why an item has no thumbnails, where it has none."""
    if item.thumbnails:
        return ""
    if item.status == "done" and is_video_name(Path(item.output)):
        return "no pictures: a video"
    return _WITHOUT_PICTURES.get(item.status, "no pictures: it failed")


def _thumbnails(items: Iterable[Item]) -> str:
    """A line for each item: its pictures with a space between them."""
    return "\n".join(" ".join(base64.b64encode(one.data).decode() for one in item.thumbnails) for item in items)


def _definitions(values: Mapping[str, object], kind: str) -> str:
    pairs = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(_said(value))}</dd></div>" for key, value in values.items())
    return f'<dl class="{kind}">{pairs}</dl>'


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _said(value: object) -> str:
    """A value in words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_said(part) for part in value)
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _text(value: object) -> str:
    return html.escape(_one_line(str(value)))


def _printable(value: JSON) -> JSON:
    if isinstance(value, str):
        return _one_line(value)
    if isinstance(value, dict):
        return {_one_line(key): _printable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_printable(part) for part in value]
    return value


def _one_line(text: str) -> str:
    """As `names.shown`, of any text: what breaks a line, turns its direction or is no character at all is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)
