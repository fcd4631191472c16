"""Files appear complete or not at all: temporary file in the same folder, fsync, then one rename or link."""

import errno
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from moevision.errors import InputError

OnExists = Literal["fail", "overwrite"]

_MAX_NAME_BYTES = 180
_ATTEMPTS = 1000


def atomic_write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step. Raises InputError."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_bytes(path: Path, data: bytes, *, on_exists: OnExists = "overwrite") -> None:
    """Write `data` so that `path` holds either its old content or all of the new, whatever happens in between.

    With "fail" a file that exists, or appears meanwhile, is left alone. On any failure nothing is left behind.
    Raises InputError (full disk, read-only or missing folder, existing file).
    """
    path = Path(path)
    part: Path | None = None
    try:
        descriptor, part = _create_part(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if on_exists == "overwrite":
            os.replace(part, path)
        else:
            _publish_new(part, path)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise already_exists(path) from error
    except (OSError, ValueError) as error:
        reason, remedy = _explain(error)
        raise InputError(f"{path}: cannot be written ({reason}); {remedy}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def already_exists(path: Path) -> InputError:
    """The error for an output that is there already."""
    return InputError(f"{path}: output exists already; choose another name or --on-exists overwrite")


def _create_part(path: Path) -> tuple[int, Path]:
    """A new temporary file next to `path`, open for writing. A file of that name that is not ours is never reused."""
    name = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
    for attempt in itertools.count():
        suffix = f".{attempt}" if attempt else ""
        part = path.with_name(f".{name}.{os.getpid()}{suffix}.part")
        try:
            return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), part
        except FileExistsError as error:
            if attempt >= _ATTEMPTS:
                raise OSError(errno.EBUSY, "too many temporary files of this name") from error
    raise AssertionError("unreachable")


def _publish_new(part: Path, path: Path) -> None:
    """Give `part` its final name unless that name is taken; raises FileExistsError then."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some network shares): claim the name with an empty file, then replace it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(part, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system allows it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explain(error: Exception) -> tuple[str, str]:
    """Reason and remedy in words."""
    number = error.errno if isinstance(error, OSError) else None
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EACCES: "check the folder's permissions",
        errno.EPERM: "check the folder's permissions",
        errno.EROFS: "choose a folder that can be written",
        errno.ENOENT: "create the output folder first",
        errno.ENOTDIR: "create the output folder first",
        errno.EISDIR: "a folder has that name; choose another",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(number or 0, "check the output path and the disk")
    return os.strerror(number) if number else str(error), remedy
