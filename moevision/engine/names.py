"""File names: how outputs are called, when two of them collide, and how a name is shown to a person."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from moevision.imaging.read import FORMATS as IMAGE_FORMATS
from moevision.imaging.video import VIDEO_SUFFIXES as VIDEO_FORMATS

IMAGE_SUFFIXES = frozenset(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)
"""Lower case. What folders are searched for and what can be written; a file named one by one is tried in any case."""

VIDEO_SUFFIXES = VIDEO_FORMATS
"""Lower case. What folders are searched for where videos are wanted, too."""

FORMATS = ("same", *sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
"""What `--format` accepts."""

NAME_LIMIT_BYTES = 255
"""Longest file name on the usual file systems."""

_JOINERS = "\u200c\u200d"  # not "printable", yet part of ordinary emoji and of several scripts


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as one printable line: undecodable bytes are replaced; control and direction characters escaped."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def output_name(name: str, output_format: str) -> str:
    """Name of the output for an input called `name`.

    >>> output_name("a.JPG", "same"), output_name("a.JPG", "png"), output_name("scan.v2", "same")
    ('a.JPG', 'a.png', 'scan.v2.png')
    """
    stem, suffix = os.path.splitext(name)
    if output_format == "same" and suffix.lower() in IMAGE_SUFFIXES:
        return name
    wanted = ".png" if output_format == "same" else f".{output_format}"
    # An unknown suffix belongs to the name: 'scan.v2' and 'scan.v3' are two pictures.
    return (stem if suffix.lower() in IMAGE_SUFFIXES else name) + wanted


def video_output_name(name: str) -> str:
    """Name of the video that is made of one called `name`.

    >>> video_output_name("clip.MOV")
    'clip.mp4'
    """
    return os.path.splitext(name)[0] + ".mp4"


def is_video_name(path: Path) -> bool:
    """Whether a file is called as a video is."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def numbered(path: Path, number: int) -> Path:
    """`a.png` -> `a-1.png`."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def is_numbered(path: Path, base: Path) -> bool:
    """Whether `path` is `base` or a numbered sibling of it."""
    if path.parent != base.parent or path.suffix != base.suffix:
        return False
    return path == base or re.fullmatch(re.escape(base.stem) + r"-[1-9]\d*", path.stem) is not None


def collision_key(path: Path) -> str:
    """Equal for two paths that are one file on some common file system (case or Unicode form ignored)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", os.path.abspath(path)).casefold())
