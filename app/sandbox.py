"""Strangers' files, decoded in a process of their own (`moevision.app.decode`) with limits on memory and time.

One process serves one request and ends: nothing of one visitor is left for the next. One is kept waiting, so that a
request does not wait for its imports. What a process says is checked like any other input, for it may have been taken
over by the file it decodes.
"""

import base64
import binascii
import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from moevision.app.settings import DECODE_S, Settings
from moevision.engine.names import shown
from moevision.errors import InputError
from moevision.imaging.metadata import Metadata
from moevision.imaging.picture import Picture
from moevision.imaging.read import FORMATS
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import Frame

_MOST_HEADER_BYTES = 32 * 2**20  # EXIF and colour profiles travel in it
_DTYPES = {name: np.dtype(name) for name in ("uint8", "uint16", "float32")}
_REFILL_S = 1.5  # the next process is not started while the first request needs the processor most
_Process = subprocess.Popen[bytes]


class Decoder:
    """Starts processes that decode; see the module.

    Args:
        settings: whose limits hold.
        decode_s: how long one picture, or one frame of a video, may take.
    """

    def __init__(self, settings: Settings, decode_s: float = DECODE_S) -> None:
        self._settings, self._decode_s = settings, decode_s
        self._lock = threading.Lock()
        self._spare: _Process | None = None
        self._closed = False

    def warm(self) -> None:
        """Have a process waiting."""
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = _start()

    def close(self) -> None:
        """End the process that waits."""
        with self._lock:
            spare, self._spare, self._closed = self._spare, None, True
        if spare is not None:
            _end(spare)

    def pictures(self, files: Sequence[tuple[Path, str]]) -> list[Picture]:
        """Decode pictures.

        Args:
            files: where they are, and what a message calls them.

        Raises:
            InputError: one cannot be read, is over a limit, or took too long.
        """
        found: list[Picture] = []
        process = self._ask("pictures", [path for path, _ in files])
        try:
            for _, name in files:
                with _time_limit(process, self._decode_s, name):
                    found.append(_picture(_pipe(process), name, self._settings.max_pixels))
        finally:
            _end(process)
        return found

    def video(self, path: Path, name: str) -> RecordedSource:
        """Open a video and read its first frame; to be closed, or used in a `with` block.

        Raises:
            InputError: see `pictures`. Iteration raises it, too, where the video is damaged.
        """
        process = self._ask("video", [path])
        try:
            with _time_limit(process, self._decode_s, name):
                header = _block(_pipe(process), name)
            size_hw = _shape(header, self._settings.max_pixels)[:2]
            frames = _frames(process, name, size_hw, self._decode_s)
            source = RecordedSource(name, _number(header.get("fps"), 1e-3, 1e4), frames, lambda: _end(process))
        except (KeyError, TypeError, ValueError, OverflowError):
            _end(process)
            raise _unreadable(name) from None
        except BaseException:
            _end(process)
            raise
        count = _number(header.get("frames"), 1, 1e9)
        source.frame_count = None if count is None else round(count)
        return source

    def _ask(self, job: str, paths: Sequence[Path]) -> _Process:
        with self._lock:
            process, self._spare = self._spare, None
        refill = threading.Timer(_REFILL_S, self.warm)
        refill.daemon = True
        refill.start()
        # A process that died while it waited is no reason to refuse a request.
        if process is None or process.poll() is not None:
            process = _start()
        request = {
            "job": job, "paths": [os.path.abspath(path) for path in paths], "max_s": self._settings.max_video_s,
            "max_bytes": self._settings.max_file_bytes, "max_pixels": self._settings.max_pixels,
            "memory_bytes": self._settings.decode_memory_bytes * max(1, len(paths)),
            # Wall time is watched here; this ends what goes on when nobody watches any more.
            "cpu_s": math.ceil(2 * self._decode_s * len(paths) + (job == "video") * 20 * self._settings.max_video_s),
        }  # fmt: skip
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.close()
        except OSError:
            _end(process)
            raise InputError("the process that reads files did not start; try again") from None
        return process


def _start() -> _Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "moevision.app.decode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip


def _end(process: _Process) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not sent to it
                continue
    process.wait()


def _pipe(process: _Process) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


@contextmanager
def _time_limit(process: _Process, seconds: float, name: str) -> Iterator[None]:
    """End the process after so long; what then fails says so."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except InputError:
        if late.is_set():
            raise InputError(f"{shown(name)}: took more than {seconds:g} s to decode; use a smaller file") from None
        raise
    finally:
        timer.cancel()


def _unreadable(name: str) -> InputError:
    return InputError(f"{shown(name)}: cannot be decoded within the limits of this page; export it again, or smaller")


def _block(pipe: IO[bytes], name: str) -> dict[str, Any]:
    """The next block of an answer. Raises InputError with what it says is wrong, or where it breaks off."""
    start = pipe.read(4)
    if len(start) < 4 or (length := struct.unpack(">I", start)[0]) > _MOST_HEADER_BYTES:
        raise _unreadable(name)
    try:
        block = json.loads(pipe.read(length))
    except (ValueError, RecursionError):
        raise _unreadable(name) from None
    if not isinstance(block, dict):
        raise _unreadable(name)
    if "error" in block:
        raise InputError(f"{shown(name)}: {shown(str(block['error'])[:300])}")
    return block


def _fill(pipe: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    array = np.empty(shape, dtype)
    view, done = array.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        count = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise _unreadable(name)
        done += count
    return array


def _shape(block: dict[str, Any], max_pixels: int) -> tuple[int, int, int]:
    """Raises ValueError for what no picture within the limits has."""
    height, width, channels = (int(n) for n in block["shape"])
    if height < 1 or width < 1 or channels not in (1, 3) or height * width > max_pixels:
        raise ValueError("not a picture")
    return height, width, channels


def _picture(pipe: IO[bytes], name: str, max_pixels: int) -> Picture:
    block = _block(pipe, name)
    try:
        shape, dtype = _shape(block, max_pixels), _DTYPES[block["dtype"]]
        if block["format"] not in FORMATS:
            raise ValueError("unknown format")
        exif, icc = (_bytes(block.get(key)) for key in ("exif", "icc"))
        across, down = (_number(value, 0, 1e6) for value in block.get("dpi") or (None, None))
        metadata = Metadata(exif, icc, None if across is None or down is None else (across, down))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _unreadable(name) from None
    pixels_HWC = _fill(pipe, shape, dtype, name)
    alpha_HW = _fill(pipe, shape[:2], dtype, name) if block.get("alpha") else None
    return Picture(pixels_HWC, alpha_HW, metadata, block["format"])


def _bytes(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _number(value: object, low: float, high: float) -> float | None:
    return float(value) if isinstance(value, int | float) and low <= value <= high else None


def _frames(process: _Process, name: str, size_hw: tuple[int, int], decode_s: float) -> Generator[Frame, None, None]:
    last_s = -math.inf
    while True:
        with _time_limit(process, decode_s, name):
            block = _block(_pipe(process), name)
            if block.get("end"):
                return
            time_s = _number(block.get("time_s"), 0, 1e7)
            if time_s is None:
                raise _unreadable(name)
            pixels_HWC = _fill(_pipe(process), (*size_hw, 3), _DTYPES["uint8"], name)
        last_s = max(last_s, time_s)
        yield Frame(pixels_HWC, last_s)
