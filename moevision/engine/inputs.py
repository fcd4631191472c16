"""Finds the images, on request also the videos, behind the command line's INPUTS: files, folders and glob patterns."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from moevision.engine.names import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Found:
    """One file."""

    path: Path
    relative: PurePath
    """Its place under the output folder: its path below the folder, or the fixed part of the pattern, it came from."""
    identity: tuple[int, int]
    """Device and inode, the same under every name the file has."""


@dataclass(frozen=True)
class Refusal:
    """An input that cannot be worked on, and why; the others still are."""

    path: Path
    reason: str


@dataclass
class Search:
    """One search over all INPUTS; the answers are in `found` and `refused`, in the order given, every file once."""

    recursive: bool
    output_root: str
    """Real path of the output folder; where it lies inside a searched folder it is left out."""
    earlier_outputs: Collection[str] = ()
    """Real paths of files this folder's earlier runs wrote; never picked up from a folder or a pattern."""
    suffixes: Collection[str] = IMAGE_SUFFIXES
    """Lower case; of what is picked up from a folder or a pattern."""
    found: list[Found] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _real_folders: dict[str, str] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Search one INPUT."""
        if not text or "\0" in text:
            self._refuse(text.replace("\0", "\\0"), "not a file name")
        elif os.path.isdir(text):
            self._add_folder(Path(text), base=Path(text))
        elif os.path.lexists(text) or not glob.has_magic(text):  # a file may well be called 'a[1].png'
            self._add_file(Path(text), PurePath(Path(text).name))
        else:
            self._add_pattern(text)

    def _add_pattern(self, pattern: str) -> None:
        base = Path(*fixed_parts(pattern))
        matches = [Path(match) for match in sorted(glob.iglob(pattern, recursive=True))]
        if not matches:
            self._refuse(pattern, "no file matches this pattern")
        for match in matches:
            if not match.is_dir():
                self._add_from_folder(match, base)
            elif "**" not in PurePath(pattern).parts:  # '**' has already gone through the folders it matched
                self._add_folder(match, base)

    def _add_folder(self, folder: Path, base: Path) -> None:
        for path in self._walk(folder):
            self._add_from_folder(path, base)

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Files under `folder`, sorted; hidden folders, linked folders and the output folder are left alone."""

        def unreadable(error: OSError) -> None:
            self._refuse(error.filename or folder, f"cannot read this folder: {error.strerror or error}")

        for here, folders, files in os.walk(folder, onerror=unreadable):
            if not self.recursive:
                folders.clear()
            kept = [name for name in sorted(folders) if not name.startswith(".")]
            folders[:] = [name for name in kept if os.path.realpath(os.path.join(here, name)) != self.output_root]
            yield from (Path(here, name) for name in sorted(files))

    def _add_from_folder(self, path: Path, base: Path) -> None:
        if path.name.startswith(".") or path.suffix.lower() not in self.suffixes:
            return
        real = os.path.join(self._real(path.parent), path.name)
        if real in self.earlier_outputs or self._is_output(real, base):
            return
        relative = PurePath(os.path.relpath(path, base))
        # A pattern such as '*/../x.png' leads out of its fixed part: never write above the output folder.
        self._add_file(path, PurePath(path.name) if ".." in relative.parts else relative)

    def _add_file(self, path: Path, relative: PurePath) -> None:
        key = (self._real(path.parent), path.name)
        if key in self._seen:
            return
        self._seen.add(key)
        try:
            status = path.stat()
        except OSError as error:
            self._refuse(path, _why_missing(path, error))
            return
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            self._refuse(path, "not a regular file")
            return
        self.found.append(Found(path, relative, (status.st_dev, status.st_ino)))

    def _is_output(self, real: str, base: Path) -> bool:
        """Whether `real` lies in the output folder while that folder lies inside the searched one."""
        searched = self._real(base)
        return (
            self.output_root != searched and is_under(self.output_root, searched) and is_under(real, self.output_root)
        )

    def _real(self, folder: Path) -> str:
        text = str(folder)
        if text not in self._real_folders:
            self._real_folders[text] = os.path.realpath(text)
        return self._real_folders[text]

    def _refuse(self, path: str | Path, reason: str) -> None:
        self.refused.append(Refusal(Path(path), reason))


def fixed_parts(pattern: str) -> Sequence[str]:
    """What stands before the first part with a wildcard, which the pattern must have."""
    parts = PurePath(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return parts[:first]


def _why_missing(path: Path, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"cannot read: {error.strerror or error}"
    return "broken link" if path.is_symlink() else "no such file"


def is_under(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; both real paths."""
    return path == folder or path.startswith(os.path.join(folder, ""))
