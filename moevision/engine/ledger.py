"""The ledger: one JSON line for every job of an output folder, so that a run that was cut off can be continued.

A job leaves two lines: `writing`, on the disk before its output appears, and `done` (or `failed`) afterwards. Whenever
the power goes, every output of ours has a line, so `--resume` can tell it from a file that belongs to the user.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from moevision.engine.names import is_numbered, shown
from moevision.engine.task import JSON, as_json
from moevision.errors import UsageError

LEDGER_NAME = ".moevision-ledger.jsonl"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    inputs: tuple[str, ...]
    """Absolute paths."""
    output: str
    """Relative to the output folder, with forward slashes, so that the folder can be moved."""
    status: str
    """`writing`, `done`, or what the runner calls the failure."""
    settings: str
    """`settings_hash` of the run."""
    stamps: tuple[tuple[int, int], ...] = ()
    """Bytes and modification time (ns) of every input when it was read."""
    output_bytes: int | None = None
    seconds: float = 0.0
    reason: str = ""
    facts: dict[str, JSON] = field(default_factory=dict)


def settings_hash(settings: Mapping[str, JSON]) -> str:
    """A short name for everything that shapes an output's bytes."""
    return hashlib.sha256(json.dumps(as_json(settings), sort_keys=True).encode()).hexdigest()[:16]


def stamps_of(inputs: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Size and modification time of every input: cheap to ask for, and enough to notice an edit."""
    statuses = [path.stat() for path in inputs]
    return tuple((status.st_size, status.st_mtime_ns) for status in statuses)


class History:
    """What an output folder's ledger says of earlier runs."""

    def __init__(self, root: Path, entries: Iterable[Entry] = ()) -> None:
        self.root = root
        self._by_inputs: dict[tuple[str, ...], dict[str, Entry]] = {}
        self._ours: set[tuple[tuple[str, ...], str]] = set()
        undone: dict[tuple[tuple[str, ...], str], bool] = {}
        for entry in entries:
            latest = self._by_inputs.setdefault(entry.inputs, {})
            latest.pop(entry.output, None)  # re-insert, so that the order is by last mention
            latest[entry.output] = entry
            key = (entry.inputs, entry.output)
            if entry.status == "writing":
                undone[key] = key in self._ours
                self._ours.add(key)
            elif entry.status == "done":
                undone.pop(key, None)
                self._ours.add(key)
            elif undone.pop(key, True) is False:  # a write that failed leaves whatever was there before, ours or not
                self._ours.discard(key)

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read the ledger of `root`; a folder without one has an empty history, and damaged lines are passed over."""
        try:
            lines = (root / LEDGER_NAME).read_bytes().splitlines()
        except OSError:
            return cls(root)
        return cls(root, filter(None, map(_parsed, lines)))

    def outputs(self) -> frozenset[str]:
        """Real paths of every file this folder's runs wrote or were writing."""
        root = os.path.realpath(self.root)
        return frozenset(os.path.join(root, *output.split("/")) for _, output in self._ours)

    def find(self, inputs: tuple[Path, ...], wanted: Path) -> Entry | None:
        """The latest entry for these inputs whose output is ours and `wanted`, or after `rename` a numbered sibling."""
        names = tuple(os.path.abspath(path) for path in inputs)
        for entry in reversed(self._by_inputs.get(names, {}).values()):
            if (names, entry.output) in self._ours and is_numbered(self.root / entry.output, wanted):
                return entry
        return None

    def is_finished(self, entry: Entry, inputs: tuple[Path, ...], settings: str) -> bool:
        """Whether `entry` says done, with these settings, for inputs and an output that have not changed since."""
        if entry.status != "done" or entry.settings != settings:
            return False
        try:
            same_output = (self.root / entry.output).stat().st_size == entry.output_bytes
            return same_output and stamps_of(inputs) == entry.stamps
        except OSError:
            return False


def finished_facts(root: Path) -> Iterator[tuple[str, dict[str, JSON]]]:
    """Every output that a run of this folder finished and that is still there, as in `Entry.output`, with its facts."""
    facts: dict[str, dict[str, JSON]] = {}
    try:
        with (root / LEDGER_NAME).open("rb") as lines:
            for line in lines:
                entry = _parsed(line, with_facts=True)
                if entry is not None and entry.status == "done":
                    facts[entry.output] = entry.facts
    except OSError:
        return
    yield from ((output, found) for output, found in sorted(facts.items()) if (root / output).is_file())


class Ledger:
    """The open ledger of one run; a second run on the same folder is refused while it is open."""

    def __init__(self, root: Path, settings: str) -> None:
        self.root = root
        self.settings = settings
        self._descriptor = _open_locked(root / LEDGER_NAME)
        self._is_torn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as failure:  # the outputs are safe without it; at worst --resume does one of them again
            logger.warning("%s: %s", shown(self.root / LEDGER_NAME), failure.strerror)
        finally:
            os.close(self._descriptor)

    def begin(self, inputs: tuple[Path, ...], output: Path) -> None:
        """Note that `output` is about to appear; on the disk when this returns."""
        self._append(self._entry(inputs, output, "writing"))
        os.fsync(self._descriptor)

    def finish(
        self,
        inputs: tuple[Path, ...],
        output: Path,
        status: str,
        *,
        stamps: tuple[tuple[int, int], ...] = (),
        seconds: float = 0.0,
        reason: str = "",
        facts: dict[str, JSON] | None = None,
    ) -> None:
        """Note how a job ended. Safe against a crash of ours at once, against a power cut from the next `begin` on."""
        size = output.stat().st_size if status == "done" else None
        entry = self._entry(inputs, output, status)
        self._append(
            entry
            | {
                "stamps": stamps,
                "output_bytes": size,
                "seconds": round(seconds, 3),
                "reason": reason,
                "facts": facts or {},
            }
        )

    def _entry(self, inputs: tuple[Path, ...], output: Path, status: str) -> dict[str, object]:
        relative = output.relative_to(self.root).as_posix()
        return asdict(Entry(tuple(os.path.abspath(path) for path in inputs), relative, status, self.settings))

    def _append(self, entry: Mapping[str, object]) -> None:
        text = json.dumps(as_json({**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}))
        line = b"\n" * self._is_torn + text.encode() + b"\n"
        self._is_torn = True
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root / LEDGER_NAME))
        self._is_torn = False


def _parsed(line: bytes, *, with_facts: bool = False) -> Entry | None:
    """The entry in a line, or None for a torn or foreign one; facts, which are many, only where they are wanted."""
    try:
        values = json.loads(line)
        return Entry(
            inputs=tuple(str(path) for path in values["inputs"]),
            output=str(values["output"]),
            status=str(values["status"]),
            settings=str(values["settings"]),
            stamps=tuple((int(size), int(mtime_ns)) for size, mtime_ns in values.get("stamps", ())),
            output_bytes=values.get("output_bytes"),
            facts=dict(values.get("facts") or {}) if with_facts else {},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _open_locked(path: Path) -> int:
    # Never through a link: the ledger must not be a way to append to some other file.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise UsageError(
            f"{shown(path)}: cannot open the ledger: {error.strerror}; choose another output folder"
        ) from error
    try:
        _lock(descriptor, path)
        if os.fstat(descriptor).st_size:
            os.lseek(descriptor, -1, os.SEEK_END)
            if os.read(descriptor, 1) != b"\n":  # torn by a crash: keep the next line apart from it
                os.write(descriptor, b"\n")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are not noticed; outputs stay whole all the same
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{shown(path.parent)}: another run is writing to this folder; wait for it or choose another"
        ) from error
    except OSError as error:  # a file system without locks
        logger.debug("%s: cannot lock: %s", shown(path), error)
