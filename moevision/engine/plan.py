"""Decides, before any work, what is read, what is written where, what is left out and what cannot be done."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal, TypeAlias, get_args

from moevision.engine.inputs import Found, Refusal, Search, is_under
from moevision.engine.ledger import History
from moevision.engine.names import (
    FORMATS,
    IMAGE_SUFFIXES,
    NAME_LIMIT_BYTES,
    VIDEO_SUFFIXES,
    collision_key,
    is_video_name,
    numbered,
    output_name,
    shown,
    video_output_name,
)
from moevision.errors import UsageError

OnExists = Literal["fail", "skip", "overwrite", "rename"]
_Wanted: TypeAlias = "tuple[tuple[Found, ...], Path]"  # the files of one job, and its output


@dataclass(frozen=True)
class Job:
    """One output to make."""

    inputs: tuple[Path, ...]
    output: Path
    replaces: bool = False
    """Whether a file already at `output` may be replaced."""

    @property
    def is_video(self) -> bool:
        """Whether a video is made of one, not a picture of pictures."""
        return is_video_name(self.output)


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
    videos: bool = False,
) -> Plan:
    """Plan one run over INPUTS (files, folders, patterns) without touching the disk.

    With `videos` files that are called as videos are work, too; each becomes one of its name with the suffix .mp4.

    `resume` is the run's `settings_hash`; with it, jobs the ledger knows as finished are skipped and ones it knows as
    begun are done again over their own output. Inputs that cannot be used end up in `refused`. Raises UsageError,
    naming the files, when the run as a whole would be wrong: colliding outputs, an output that is an input, outputs
    that exist (`on_exists="fail"`).
    """
    _check_choices(on_exists, format)
    root, file = _target(output, format, means_many=len(inputs) != 1 or _means_many(inputs[0]))
    history = History.read(root)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES
    search = Search(recursive, os.path.realpath(root), history.outputs(), suffixes)
    for text in inputs:
        search.add(text)
    film = next((found.path for found in search.found if videos and is_video_name(found.path)), None)
    if file is not None and film is not None:
        raise UsageError(f"-o {shown(file)} names a picture, but {shown(film)} is a video; name a folder")
    wanted = [((found,), file or _place(root, found, format, videos=videos)) for found in search.found]
    jobs, skipped, escaping = _decide(wanted, root, history, on_exists, resume)
    return Plan(root, file is not None, jobs, skipped, (*search.refused, *escaping))


def plan_pairs(
    inputs: Sequence[str],
    output: Path,
    *,
    recursive: bool = True,
    on_exists: OnExists = "fail",
    format: str = "same",
    resume: str | None = None,
) -> Plan:
    """Plan one run over pairs: two files, or two folders whose files match by their path without suffix.

    Outputs are called as the second of their pair. A file without a partner, or with several, is refused; partners are
    never guessed. The rest as of `plan`; raises UsageError also when `inputs` are not two.
    """
    _check_choices(on_exists, format)
    if len(inputs) != 2:
        raise UsageError(f"{len(inputs)} inputs: name two files or two folders, the infrared one first")
    files = [not _means_many(text) for text in inputs]
    if files[0] != files[1]:
        raise UsageError(f"{shown(inputs[0])} and {shown(inputs[1])}: name two files or two folders")
    root, file = _target(output, format, means_many=not files[0])
    history = History.read(root)
    searches = [Search(recursive, os.path.realpath(root), history.outputs()) for _ in inputs]
    for search, text in zip(searches, inputs, strict=True):
        search.add(text)
    matched, orphans = _match(searches[0].found, searches[1].found, inputs, any_name=files[0])
    wanted = [(pair, file or _place(root, pair[1], format)) for pair in matched]
    jobs, skipped, escaping = _decide(wanted, root, history, on_exists, resume)
    refused = [refusal for search in searches for refusal in search.refused]
    return Plan(root, file is not None, jobs, skipped, (*refused, *orphans, *escaping))


def _match(
    first: Sequence[Found], second: Sequence[Found], folders: Sequence[str], *, any_name: bool
) -> tuple[list[tuple[Found, ...]], list[Refusal]]:
    """Pairs by path without suffix, in order of the second; and what has no partner or several.

    With `any_name`, of two files that were named one by one, the names do not matter.
    """
    if any_name:
        return list(zip(first, second, strict=False)), []
    by_key: list[dict[PurePath, list[Found]]] = [{}, {}]
    for found_by_key, found in zip(by_key, (first, second), strict=True):
        for one in found:
            found_by_key.setdefault(one.relative.with_suffix(""), []).append(one)
    matched: list[tuple[Found, ...]] = []
    refused: list[Refusal] = []
    for key in dict.fromkeys([*by_key[1], *by_key[0]]):
        here, there = by_key[0].get(key, []), by_key[1].get(key, [])
        if len(here) == len(there) == 1:
            matched.append((here[0], there[0]))
        elif here and there:
            reason = f"several files are called {shown(key)}; leave one in each folder"
            refused += [Refusal(one.path, reason) for one in (*here, *there)]
        else:
            reason = f"no {shown(key)} in {shown(folders[0] if there else folders[1])} to pair it with"
            refused += [Refusal(one.path, reason) for one in (*here, *there)]
    return matched, refused


def _check_choices(on_exists: str, output_format: str) -> None:
    if on_exists not in get_args(OnExists):
        raise UsageError(f"--on-exists {on_exists}: choose one of {', '.join(get_args(OnExists))}")
    if output_format not in FORMATS:
        raise UsageError(f"--format {output_format}: choose one of {', '.join(FORMATS)}")


def _place(root: Path, found: Found, output_format: str, *, videos: bool = False) -> Path:
    name = found.path.name
    is_video = videos and is_video_name(found.path)
    return root / found.relative.parent / (video_output_name(name) if is_video else output_name(name, output_format))


def _decide(
    wanted: Sequence[_Wanted], root: Path, history: History, on_exists: OnExists, resume: str | None
) -> tuple[tuple[Job, ...], tuple[Skip, ...], list[Refusal]]:
    """Jobs, those left out, and inputs whose output cannot be; raises UsageError where the whole run would be wrong."""
    _refuse_collisions(wanted)
    _refuse_inputs_as_outputs(wanted)
    usable, escaping = _split_unusable(wanted, root)
    every = (Job(tuple(one.path for one in found), path) for found, path in usable)
    jobs, skipped = _settle(every, history, on_exists, resume)
    return tuple(jobs), tuple(skipped), escaping


def _target(output: Path, output_format: str, *, means_many: bool) -> tuple[Path, Path | None]:
    """The output folder, and the output file where the user named one."""
    if str(output) == "-":
        raise UsageError("-o -: writing to stdout is not supported; name a file or a folder")
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if means_many:
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


def _refuse_collisions(wanted: Iterable[_Wanted]) -> None:
    first: dict[str, Found] = {}
    clashes = []
    for (*_, found), path in wanted:
        other = first.setdefault(collision_key(path), found)
        if other is not found:
            clashes.append(f"{shown(other.path)} and {shown(found.path)} would both become {shown(path)}")
    if clashes:
        remedy = "run them separately, or give the one folder above them so that sub-folders keep them apart"
        raise UsageError(f"{_listed(clashes)}; {remedy}")


def _refuse_inputs_as_outputs(wanted: Sequence[_Wanted]) -> None:
    inputs = {one.identity: one.path for found, _ in wanted for one in found}
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


def _split_unusable(wanted: Iterable[_Wanted], root: Path) -> tuple[list[_Wanted], list[Refusal]]:
    """Set apart outputs that a link would carry out of the output folder, and names no file system takes."""
    real_root = os.path.realpath(root)
    real_parents: dict[PurePath, str] = {}
    usable, refused = [], []
    for found, path in wanted:
        if path.parent not in real_parents:
            real_parents[path.parent] = os.path.realpath(path.parent)
        target = os.path.realpath(path) if path.is_symlink() else os.path.join(real_parents[path.parent], path.name)
        if not is_under(target, real_root):
            refused.append(Refusal(found[-1].path, f"output {shown(path)} is a link out of the output folder"))
        elif len(os.fsencode(path.name)) > NAME_LIMIT_BYTES:
            refused.append(Refusal(found[-1].path, f"the output's name would be longer than {NAME_LIMIT_BYTES} bytes"))
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
