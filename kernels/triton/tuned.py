"""Block sizes measured on this device by `moevision tune`, in place of the formulas of `configs`.

One JSON file a device and triton release, in the user's cache folder; nothing is measured or written at import or in a
launch. The formulas stay in force while launches are recorded for ahead-of-time compilation.
"""

import contextlib
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from moevision.kernels.triton import common

logger = logging.getLogger("moevision.kernels")


@dataclass(frozen=True)
class Blocks:
    """How a kernel cuts its work: `rows` of items, `inner` steps of its loop, `columns` of output, and the launch."""

    rows: int
    inner: int
    columns: int
    warps: int
    stages: int


_forced: dict[str, Blocks] = {}
_asked: dict[str, Blocks] | None = None


def tunable(formula: Callable[..., Blocks]) -> Callable[..., Blocks]:
    """A formula of block sizes that a measurement on this device may overrule. The key is its name and arguments."""

    @functools.wraps(formula)
    def choose(*arguments: Any) -> Blocks:
        key = " ".join([formula.__name__, *(str(a).removeprefix("torch.") for a in arguments)])
        blocks = _forced.get(key) or _measured().get(key) or formula(*arguments)
        if _asked is not None:
            _asked[key] = blocks
        return blocks

    return choose


@contextlib.contextmanager
def asked() -> Iterator[dict[str, Blocks]]:
    """Inside, every key a launcher asks for is written down with what it got."""
    global _asked
    _asked, before = {}, _asked
    try:
        yield _asked
    finally:
        _asked = before


@contextlib.contextmanager
def forced(key: str, blocks: Blocks) -> Iterator[None]:
    """Inside, `key` gets these blocks."""
    _forced[key] = blocks
    try:
        yield
    finally:
        del _forced[key]


def cache_file(device_name: str) -> Path:
    """Where this device's measurements lie: under MOEVISION_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get("MOEVISION_CACHE")
    folder = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moevision"
    return folder / "kernels" / triton.__version__ / f"{re.sub(r'[^A-Za-z0-9]+', '-', device_name).strip('-')}.json"


def dump(table: dict[str, Blocks]) -> str:
    """The text of a cache file."""
    return json.dumps({key: asdict(blocks) for key, blocks in sorted(table.items())}, indent=1) + "\n"


def load(path: Path) -> dict[str, Blocks]:
    """The table in a cache file; an empty one, with a warning, if it is damaged."""
    try:
        return {key: Blocks(**values) for key, values in json.loads(path.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: not a table of block sizes (%s); delete it or run moevision tune again", path, error)
        return {}


def _measured() -> dict[str, Blocks]:
    if common.recording() or not torch.cuda.is_available():
        return {}
    return _table(torch.cuda.current_device())


@functools.cache
def _table(device: int) -> dict[str, Blocks]:
    return load(cache_file(torch.cuda.get_device_name(device)))
