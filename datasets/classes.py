"""Lists of classes for pictures with a class for every pixel: names, colours, and what ids in files mean."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from moevision.errors import UsageError

Colour = tuple[int, int, int]

IGNORE = 255  # no label: in the files and in our arrays
_UNLABELLED = frozenset({"unlabelled", "unlabeled", "void", "ignore"})


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set or a model; a pixel's class index is the place in `names`.

    Attributes:
        names: as written, without those that mean no label.
        palette: a colour for each.
        ignore_ids: ids in files that mean no label, beside 255, which always does.
        ignore_colours: likewise, in RGB label pictures.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_ids: frozenset[int] = frozenset()
    ignore_colours: frozenset[Colour] = frozenset()

    @cached_property
    def index_of_id(self) -> dict[int, int]:
        """Id in a file -> class index; IGNORE where it means no label."""
        kept = (number for number in itertools.count() if number not in self.ignore_ids)
        indices = dict(zip(kept, range(len(self.names)), strict=False))  # ids without end
        return {IGNORE: IGNORE, **dict.fromkeys(self.ignore_ids, IGNORE), **indices}

    @cached_property
    def index_of_colour(self) -> dict[int, int]:
        """Colour as red << 16 | green << 8 | blue -> class index; IGNORE where it means no label."""
        kept = {_packed(colour): index for index, colour in enumerate(self.palette)}
        return {**{_packed(colour): IGNORE for colour in self.ignore_colours}, **kept}


class _Line(NamedTuple):
    number: int
    name: str
    colour: Colour | None

    @property
    def ignored(self) -> bool:
        return self.name.casefold() in _UNLABELLED


def read_classes(path: Path | str) -> ClassList:
    """The classes of a text file: a line `id name red green blue` each, or only the name, then in order from 0.

    Names may have spaces. Classes called unlabelled, unlabeled, void or ignore mean no label, wherever they stand; the
    other ids close up behind them. Without colours the palette is made up. `#` begins a comment.

    Raises:
        UsageError: no such file, a line of another form, ids with gaps, or a name, id or colour that comes twice.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the file that lists the classes") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file; write a line `id name red green blue` for each class") from error
    rows = [(place, row) for place, line in enumerate(text.splitlines(), 1) if (row := line.split("#")[0].strip())]
    lines = [_parsed(row, order, f"{path}, line {place}") for order, (place, row) in enumerate(rows)]
    _check(lines, path)
    kept = sorted((line for line in lines if not line.ignored), key=lambda line: line.number)
    ignored = [line for line in lines if line.ignored]
    return ClassList(
        tuple(line.name for line in kept),
        tuple(line.colour or _made_up_colour(index) for index, line in enumerate(kept)),
        frozenset(line.number for line in ignored),
        frozenset(line.colour for line in ignored if line.colour),
    )


def _parsed(row: str, order: int, place: str) -> _Line:
    full = re.fullmatch(r"(\d{1,9})\s+(.+?)\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})", row)
    if full is None and not re.search(r"^-?\d+\s|(\s\d+){3}$", row):
        return _Line(order, row, None)
    if full is None or max(int(value) for value in full.groups()[2:]) > 255:
        raise UsageError(f"{place}: {row!r}; write `id name red green blue` with colours 0 to 255, or only the name")
    number, name, red, green, blue = full.groups()
    return _Line(int(number), name, (int(red), int(green), int(blue)))


def _check(lines: list[_Line], path: Path | str) -> None:
    """All that a list of classes must be. Raises UsageError."""
    kept = [line for line in lines if not line.ignored]
    if not kept:
        raise UsageError(f"{path}: no class; write a line `id name red green blue` for each")
    if len({line.colour is None for line in lines}) > 1:
        raise UsageError(f"{path}: lines with and without id and colour; write all of them in one form")
    colours = [line.colour for line in kept if line.colour]
    colours += {line.colour for line in lines if line.ignored and line.colour}
    for what, values in (
        ("id", [line.number for line in lines]),
        ("name", [line.name.casefold() for line in kept]),
        ("colour", colours),
    ):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise UsageError(f"{path}: {what} {twice[0]} comes twice; give every class its own")
    last = max(line.number for line in kept)
    if last >= IGNORE:
        raise UsageError(f"{path}: a class with id {last}; number the classes 0 to 254, for 255 means no label")
    if gaps := sorted(set(range(last)) - {line.number for line in lines}):
        raise UsageError(f"{path}: no class with id {some_of(gaps)}; number the classes from 0 without gaps")


def _made_up_colour(index: int) -> Colour:
    """Pascal VOC's rule: the bits of the number go round red, green and blue; never black."""
    bits = [(index + 1) >> place & 1 for place in range(8)]
    red, green, blue = (sum(bit << 7 - place for place, bit in enumerate(bits[first::3])) for first in range(3))
    return red, green, blue


def _packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def some_of(values: Iterable[object], most: int = 5) -> str:
    """The first few of them and how many more there are, for a message."""
    shown = [str(value) for value in values]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
