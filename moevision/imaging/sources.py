"""Where frames come from: a video file, a folder of pictures, a camera, a stream. One iterator for all of them.

Recorded sources give every frame once, in order, at its own time, and wait for the reader. Live sources do not wait: a
thread reads them into a short queue that forgets its oldest frame when the reader is slow, and connects again when the
connection is lost. Nothing is fetched over a network unless the caller names an address.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from moevision.errors import InputError, UsageError
from moevision.imaging.live import Connect, LiveOptions, LiveReader, paced
from moevision.imaging.picture import quantise, to_float_tile
from moevision.imaging.read import FORMATS, ReadLimits, read_picture
from moevision.imaging.video import MAX_PIXELS, VIDEO_SUFFIXES, Frame, VideoReader, require_av, stream_frames

__all__ = [
    "LiveOptions",
    "LiveSource",
    "RecordedSource",
    "VideoSource",
    "local_name",
    "natural_key",
    "open_source",
    "shown_address",
]

_PICTURE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_SEGMENTED = (".m3u8", ".mpd")  # playlists: ten seconds of video arrive at once

_LIVE = LiveOptions()


class VideoSource(ABC):
    """Frames of one size, one after the other. Close it, or use it in a `with` block.

    Attributes:
        name: for logs and reports; of an address without user, password and query.
        fps: frames per second as stated; None where nobody states it.
        size_hw: of every frame, in pixels.
        frame_count: how many frames there are, as stated; None where nobody states it.
        is_live: frames cannot be had again, and some may be missing.
        sound_path: a file that holds the sound that belongs to the frames, if there may be one.
        dropped: frames that the reader was too slow for. Live sources only.
        reconnects: how often a lost connection was restored. Live sources only.
        restarted: the frame given last is the first after a lost connection: what came before is not its past.
    """

    is_live = False

    def __init__(self, name: str, fps: float | None) -> None:
        self.name, self.fps = name, fps
        self.size_hw = (0, 0)
        self.frame_count: int | None = None
        self.sound_path: Path | None = None
        self.dropped = self.reconnects = 0
        self.restarted = False
        self._given = 0
        self._first: Frame | None = None

    def _start(self) -> None:
        """Read the first frame ahead, so that what cannot be read is known at once."""
        try:
            self._first = self._read()
        except StopIteration:
            raise InputError(f"{self.name}: holds no frame; choose another source") from None
        except BaseException:
            self.close()
            raise
        height, width = self._first.pixels_HWC.shape[:2]
        self.size_hw = height, width

    @abstractmethod
    def _read(self) -> Frame:
        """The next frame; raises StopIteration at the end, InputError."""

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        """The next frame; raises InputError where the source is damaged, lost, or its frames change their size."""
        frame, self._first = (self._first or self._read()), None
        height, width = frame.pixels_HWC.shape[:2]
        if (height, width) != self.size_hw:
            sizes = f"{width}x{height} after frames of {self.size_hw[1]}x{self.size_hw[0]}"
            raise InputError(f"{self.name}: frame {self._given} is {sizes}; cut the source there")
        self._given += 1
        return frame

    @abstractmethod
    def close(self) -> None:
        """Let go of the source; iteration ends. May be called twice, and from another thread or a signal handler."""

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(text: str, *, fps: float = 25.0, live: LiveOptions = _LIVE) -> VideoSource:
    """Open what `text` names and read its first frame.

    Args:
        text: a video file, a folder of pictures (frames in natural order of their names), `camera:0` (on Windows
            `camera:NAME`), or a URL: `rtsp://`, `udp://`, `http(s)://` or another that FFmpeg knows. A URL that ends
            like a video file is read as one; every other URL is a live source.
        fps: frames per second of a folder of pictures.
        live: how a live source is read.

    Raises:
        InputError: it is missing, damaged, empty or cannot be reached. UsageError: `fps` is not above 0.
        MissingExtraError: PyAV is not installed and the source is no folder.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise UsageError(f"fps is {fps}; use a number above 0")
    text = local_name(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _open_address(text, live)
    if text.startswith("camera:"):
        return _open_camera(text, live)
    path = Path(text)
    if path.is_dir():
        return RecordedSource.from_folder(path, fps)
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise InputError(f"{text}: is not a regular file; name a video file, a folder, camera:0 or a URL")
    return RecordedSource.from_file(path)


def local_name(text: str) -> str:
    """The path of a `file://` URL; any other text as it is."""
    return url2pathname(urlsplit(text).path) if text.startswith("file://") else text


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sorts names as a person does.

    >>> sorted(["f10.png", "f9.png", "F1.png"], key=natural_key)
    ['F1.png', 'f9.png', 'f10.png']
    """
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), name


class RecordedSource(VideoSource):
    """Frames that wait for their reader.

    Args:
        name, fps: see `VideoSource`.
        frames: gives them in order; times that do not grow are moved on by the least that keeps their order.
        release: called when the source is closed.
    """

    def __init__(
        self,
        name: str,
        fps: float | None,
        frames: Generator[Frame, None, None],
        release: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name, fps)
        self._frames, self._release = frames, release
        self._last_s = -math.inf
        self._closed = False
        self._start()

    @classmethod
    def from_file(cls, path: Path) -> RecordedSource:
        """A video file."""
        source = cls._from_reader(VideoReader(path))
        source.sound_path = path
        return source

    @classmethod
    def from_address(cls, url: str, timeout_s: float) -> RecordedSource:
        """A video file on a server."""
        return cls._from_reader(VideoReader(url, shown_address(url), timeout_s=timeout_s))

    @classmethod
    def from_folder(cls, folder: Path, fps: float) -> RecordedSource:
        """The pictures of a folder, not of its subfolders; grey becomes RGB, deeper samples become 8 bits."""
        try:
            names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
        pictures = sorted((n for n in names if Path(n).suffix.lower() in _PICTURE_SUFFIXES), key=natural_key)
        if not pictures:
            raise InputError(f"{folder}: holds no picture; choose a folder of {', '.join(FORMATS)} files")
        source = cls(str(folder), fps, _folder_frames([folder / name for name in pictures], fps))
        source.frame_count = len(pictures)
        return source

    @classmethod
    def _from_reader(cls, reader: VideoReader) -> RecordedSource:
        fps = float(reader.rate) if reader.rate else None
        source = cls(reader.name, fps, reader.frames(whole=True), reader.close)
        source.frame_count = reader.frame_count
        return source

    def _read(self) -> Frame:
        if self._closed:
            raise StopIteration
        frame = next(self._frames)
        if frame.time_s <= self._last_s:  # recordings strung together begin anew
            frame = Frame(frame.pixels_HWC, self._last_s + 1 / (self.fps or 25.0))
        self._last_s = frame.time_s
        return frame

    def close(self) -> None:
        """See `VideoSource`."""
        self._closed, self._first = True, None
        # A frame that is being decoded (this is a signal handler) ends first; the end of the `with` block closes then.
        with contextlib.suppress(ValueError):
            self._frames.close()
            if self._release is not None:
                self._release()


class LiveSource(VideoSource):
    """Frames as they arrive, read by a thread; see `LiveReader`."""

    is_live = True

    def __init__(self, name: str, reader: LiveReader) -> None:
        super().__init__(name, None)
        self._reader = reader
        self._start()

    def _read(self) -> Frame:
        taken = self._reader.take()
        if taken is None:
            raise StopIteration
        frame, self.restarted = taken
        self.dropped, self.reconnects = self._reader.dropped, self._reader.reconnects
        return frame

    def close(self) -> None:
        """See `VideoSource`."""
        self._first = None
        self._reader.close()


def shown_address(url: str) -> str:
    """A URL without user, password, query and fragment: those may be secrets, and names end up in logs and files."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://..."
    path = "/..." if re.search("passw|pwd|token", parts.path, re.IGNORECASE) else parts.path
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def _open_address(url: str, live: LiveOptions) -> VideoSource:
    name = shown_address(url)
    suffix = Path(name).suffix.lower()
    if url.lower().startswith("http") and suffix in VIDEO_SUFFIXES:
        return RecordedSource.from_address(url, live.stall_s)
    require_av()
    connect: Connect = partial(stream_frames, url, name, timeout_s=live.stall_s)
    return LiveSource(name, LiveReader(name, partial(paced, connect) if suffix in _SEGMENTED else connect, live))


def _open_camera(text: str, live: LiveOptions) -> VideoSource:
    if sys.platform != "win32" and not re.fullmatch(r"camera:[0-9]+", text):
        raise UsageError(f"{text}: no camera's name; use camera:0 for the first, camera:1 for the second")
    require_av()
    return LiveSource(text, LiveReader(text, partial(stream_frames, text, text, timeout_s=live.stall_s), live))


def _folder_frames(paths: list[Path], fps: float) -> Generator[Frame, None, None]:
    for number, path in enumerate(paths):
        rgb_HWC = to_float_tile(read_picture(path, ReadLimits(max_pixels=MAX_PIXELS)).pixels_HWC)
        yield Frame(quantise(rgb_HWC, np.dtype(np.uint8), 3), number / fps)
