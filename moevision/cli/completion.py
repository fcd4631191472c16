"""What the Tab key offers for the values of options. Runs at every press of it: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from moevision.errors import MoevisionError

Completion = Callable[[str], list[str]]

_WEATHERS = ("rain", "drops", "snow", "haze")
_TASKS = {
    "restore": "restoration",
    "fuse": "fusion",
    "detect": "anomaly",
    "anomaly-fit": "anomaly",
    "segment": "segmentation",
}


def one_of(*values: str) -> Completion:
    """One of some values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def some_of(values: Sequence[str], *alone: str, joined_by: str = ",") -> Completion:
    """A list of some values, such as rain,haze, or one of those that stand alone."""

    def complete(incomplete: str) -> list[str]:
        head, separator, last = incomplete.rpartition(joined_by)
        named = head.split(joined_by)
        fitting = [head + separator + value for value in values if value.startswith(last) and value not in named]
        return fitting if head else fitting + [value for value in alone if value.startswith(incomplete)]

    return complete


def weathers(*alone: str, joined_by: str = ",") -> Completion:
    """A list of weathers, or one of those words that stand alone."""
    return some_of(_WEATHERS, *alone, joined_by=joined_by)


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """The shipped models of the command's task, by name; where none fits the shell offers files."""
    command = str(ctx.info_name)
    return _models_of(_TASKS.get(command, command), incomplete)


def restorers(incomplete: str) -> list[str]:
    """The shipped models that restore."""
    return _models_of("restoration", incomplete)


def _models_of(task: str, incomplete: str) -> list[str]:
    from moevision.api import list_models

    try:
        names = [str(entry["name"]) for entry in list_models() if entry["task"] == task]
    except MoevisionError:  # who runs the command is told; in the middle of a line nobody can read it
        return []
    return [name for name in names if name.startswith(incomplete)]


def models_or_none(ctx: typer.Context, incomplete: str) -> list[str]:
    """The same where the command also goes without a model."""
    return models(ctx, incomplete) + one_of("none")(incomplete)
