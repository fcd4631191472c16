"""`moevision models`: the weights that come with the package."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """List the models that come with the package; their limits are in the model cards and in --json."""
    from moevision.api import list_models

    entries = list_models()
    if as_json:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "task", "parameters", "size", "quality", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(*(_cell(entry, key) for key in ("name", "task", "params", "bytes", "metrics")))
    # In a pipe every model keeps its one line.
    console = Console(width=None if sys.stdout.isatty() else 2000, markup=False, highlight=False)
    console.print(table)


def _cell(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return "-"
    if key == "params" and isinstance(value, int | float):
        return f"{value / 1e6:.2f} M"
    if key == "bytes" and isinstance(value, int | float):
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_first_number(number)}" for name, number in value.items())
    return str(value)


def _first_number(value: Any) -> str:
    """A metric, or the first, which is the leading one, of those of a test set or of a protocol on it."""
    if isinstance(value, dict):
        return next((f"{name} {_first_number(part)}" for name, part in value.items() if name != "n"), "-")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
