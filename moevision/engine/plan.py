"""Decides, before any work, what is read, what is written where, what is left out and what cannot be done."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal, get_args

from moevision.engine.inputs import Found, Refusal, Search, is_under
from moevision.engine.ledger import History
from moevision.engine.names import (
    FORMATS,
    IMAGE_SUFFIXES,
    NAME_LIMIT_BYTES,
    collision_key,
    numbered,
    output_name,
    shown,
)
from moevision.errors import UsageError

OnExists = Literal["fail", "skip", "overwrite", "rename"]


@dataclass(frozen=True)
class Job:
    """One output to make."""

    inputs: tuple[Path, ...]
    output: Path
    replaces: bool = False
    """Whether a file already at `output` may be replaced."""


@dataclass(frozen=True)
class Skip:
    """A job left out because its output is there already."""

    job: Job
    reason: str


@dataclass(frozen=True)
class Plan:
    """What one run will do."""

    root: Path
    """The output folder; for one named output file the folder it lies in."""
    names_file: bool
    """Whether the user named the output file itself."""
    jobs: tuple[Job, ...]
    skipped: tuple[Skip, ...]
    refused: tuple[Refusal, ...]


def plan(
    inputs: Sequence[str],
    output: Path,
    *,
    recursive: bool = True,
    on_exists: OnExists = "fail",
    format: str = "same",
    resume: str | None = None,
) -> Plan:
    """Plan one run over INPUTS (files, folders, patterns) without touching the disk.

    `resume` is the run's `settings_hash`; with it, jobs the ledger knows as finished are skipped and ones it knows as
    begun are done again over their own output. Inputs that cannot be used end up in `refused`. Raises UsageError,
    naming the files, when the run as a whole would be wrong: colliding outputs, an output that is an input, outputs
    that exist (`on_exists="fail"`).
    """
    if on_exists not in get_args(OnExists):
        raise UsageError(f"--on-exists {on_exists}: choose one of {', '.join(get_args(OnExists))}")
    if format not in FORMATS:
        raise UsageError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    root, file = _target(inputs, output, format)
    history = History.read(root)
    search = Search(recursive, os.path.realpath(root), history.outputs())
    for text in inputs:
        search.add(text)
    wanted = [
        (found, file or root / found.relative.parent / output_name(found.path.name, format)) for found in search.found
    ]
    _refuse_collisions(wanted)
    _refuse_inputs_as_outputs(wanted)
    wanted, escaping = _split_unusable(wanted, root)
    jobs, skipped = _settle((Job((found.path,), path) for found, path in wanted), history, on_exists, resume)
    return Plan(root, file is not None, tuple(jobs), tuple(skipped), (*search.refused, *escaping))


def _target(inputs: Sequence[str], output: Path, output_format: str) -> tuple[Path, Path | None]:
    """The output folder, and the output file where the user named one."""
    if str(output) == "-":
        raise UsageError("-o -: writing to stdout is not supported; name a file or a folder")
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(inputs) != 1 or _means_many(inputs[0]):
            raise UsageError(f"-o {shown(output)} names one file, but the inputs can be several; name a folder")
        if output_format != "same" and output.suffix.lower() != f".{output_format}":
            raise UsageError(f"-o {shown(output)} and --format {output_format} disagree; drop one of them")
        return output.parent, output
    place = next((folder for folder in (output, *output.parents) if os.path.lexists(folder)), None)
    if place is not None and not place.is_dir():
        raise UsageError(f"-o {shown(output)}: {shown(place)} is not a folder")
    return output, None


def _means_many(text: str) -> bool:
    return os.path.isdir(text) or (glob.has_magic(text) and not os.path.lexists(text))


def _refuse_collisions(wanted: Iterable[tuple[Found, Path]]) -> None:
    first: dict[str, Found] = {}
    clashes = []
    for found, path in wanted:
        other = first.setdefault(collision_key(path), found)
        if other is not found:
            clashes.append(f"{shown(other.path)} and {shown(found.path)} would both become {shown(path)}")
    if clashes:
        remedy = "run them separately, or give the one folder above them so that sub-folders keep them apart"
        raise UsageError(f"{_listed(clashes)}; {remedy}")


def _refuse_inputs_as_outputs(wanted: Sequence[tuple[Found, Path]]) -> None:
    inputs = {found.identity: found.path for found, _ in wanted}
    for _, path in wanted:
        try:
            status = path.stat()  # follows links and, by device and inode, sees through letter case and hard links
        except OSError:
            continue
        source = inputs.get((status.st_dev, status.st_ino))
        if source is not None:
            raise UsageError(
                f"{shown(path)} would overwrite the input {shown(source)}; choose another output folder with -o"
            )


def _split_unusable(wanted: Iterable[tuple[Found, Path]], root: Path) -> tuple[list[tuple[Found, Path]], list[Refusal]]:
    """Set apart outputs that a link would carry out of the output folder, and names no file system takes."""
    real_root = os.path.realpath(root)
    real_parents: dict[PurePath, str] = {}
    usable, refused = [], []
    for found, path in wanted:
        if path.parent not in real_parents:
            real_parents[path.parent] = os.path.realpath(path.parent)
        target = os.path.realpath(path) if path.is_symlink() else os.path.join(real_parents[path.parent], path.name)
        if not is_under(target, real_root):
            refused.append(Refusal(found.path, f"output {shown(path)} is a link out of the output folder"))
        elif len(os.fsencode(path.name)) > NAME_LIMIT_BYTES:
            refused.append(Refusal(found.path, f"the output's name would be longer than {NAME_LIMIT_BYTES} bytes"))
        else:
            usable.append((found, path))
    return usable, refused


def _settle(
    jobs: Iterable[Job], history: History, on_exists: OnExists, resume: str | None
) -> tuple[list[Job], list[Skip]]:
    """Decide about outputs that exist already."""
    kept: list[Job] = []
    skipped: list[Skip] = []
    existing: list[str] = []
    taken: set[str] = set()
    wanted = list(jobs)
    if on_exists == "rename":
        taken.update(collision_key(job.output) for job in wanted)
    for job in wanted:
        earlier = history.find(job.inputs, job.output) if resume is not None else None
        if earlier is not None and history.is_finished(earlier, job.inputs, resume or ""):
            skipped.append(Skip(replace(job, output=history.root / earlier.output), "finished in an earlier run"))
        elif earlier is not None:
            kept.append(replace(job, output=history.root / earlier.output, replaces=True))
        elif not os.path.lexists(job.output):
            kept.append(job)
        elif on_exists == "overwrite":
            kept.append(replace(job, replaces=True))
        elif on_exists == "skip":
            skipped.append(Skip(job, "output exists"))
        elif on_exists == "rename":
            kept.append(replace(job, output=_free_name(job.output, taken)))
        else:
            existing.append(shown(job.output))
    if existing:
        raise UsageError(f"{_listed(existing)} already exists; use --on-exists skip|overwrite|rename, or --resume")
    return kept, skipped


def _free_name(path: Path, taken: set[str]) -> Path:
    number = 1
    while True:
        candidate = numbered(path, number)
        if collision_key(candidate) not in taken and not os.path.lexists(candidate):
            taken.add(collision_key(candidate))
            return candidate
        number += 1


def _listed(items: Sequence[str], most: int = 3) -> str:
    more = f" (and {len(items) - most} more)" if len(items) > most else ""
    return "; ".join(items[:most]) + more
