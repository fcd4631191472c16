"""The process that decodes what a stranger uploaded: `python -m moevision.app.decode`, one request, then it ends.

It is started ahead of its request, so that imports are over. The request is one line of JSON on stdin; the answer goes
to stdout as blocks of a length and JSON, each followed by raw samples. Memory and processor time are limited before the
file is touched, and nothing can be written to disk. What it says is checked by `moevision.app.sandbox`: no pickle.
"""

import base64
import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from moevision.errors import InputError
from moevision.imaging.read import ReadLimits, read_picture
from moevision.imaging.video import VideoReader

_MOVIE_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MOST_FRAMES_PER_S = 120


def main() -> None:
    """Serve the one request."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    line = sys.stdin.buffer.readline(2**20)
    if not line:
        return  # not needed any more
    request: dict[str, Any] = json.loads(line)
    _limit(int(request["memory_bytes"]), int(request["cpu_s"]))
    try:
        {"pictures": _pictures, "video": _video}[request["job"]](answer, request)
    except InputError as error:
        _say(answer, {"error": str(error)})
    except MemoryError:
        _say(answer, {"error": "needs more memory than is allowed here; make it smaller"})
    answer.flush()


def _limit(memory_bytes: int, cpu_s: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit of the parent remains
        return
    used_bytes = 0
    with contextlib.suppress(OSError):
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # macOS refuses some of these.
    for name, value in (
        ("RLIMIT_AS", used_bytes + memory_bytes),
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _say(answer: IO[bytes], block: dict[str, Any]) -> None:
    data = json.dumps(block).encode()
    answer.write(struct.pack(">I", len(data)) + data)


def _named(path: Path, work: Callable[[], Any]) -> Any:
    """What `work` gives; errors lose the server's path."""
    try:
        return work()
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{path}: ")) from None


def _pictures(answer: IO[bytes], request: dict[str, Any]) -> None:
    limits = ReadLimits(max_bytes=request["max_bytes"], max_pixels=request["max_pixels"])
    for number, text in enumerate(request["paths"]):
        path = Path(text)
        try:
            picture = _named(path, partial(read_picture, path, limits))
        except InputError as error:
            _say(answer, {"error": str(error), "number": number})
            return
        metadata = picture.metadata
        _say(answer, {
            "format": picture.format, "shape": picture.pixels_HWC.shape, "dtype": picture.pixels_HWC.dtype.name,
            "alpha": picture.alpha_HW is not None, "exif": _text(metadata.exif), "icc": _text(metadata.icc),
            "dpi": metadata.dpi,
        })  # fmt: skip
        answer.write(np.ascontiguousarray(picture.pixels_HWC).data)
        if picture.alpha_HW is not None:
            answer.write(np.ascontiguousarray(picture.alpha_HW).data)
        answer.flush()


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _video(answer: IO[bytes], request: dict[str, Any]) -> None:
    path, max_s = Path(request["paths"][0]), float(request["max_s"])
    _check_video_kind(path, int(request["max_bytes"]))
    with _named(path, lambda: VideoReader(path)) as reader:
        height, width = reader.size_hw
        if height * width > request["max_pixels"]:
            raise InputError(f"frames of {width} x {height} pixels are over the limit; scale the video down")
        rate = float(reader.rate) if reader.rate else None
        if rate and reader.frame_count and reader.frame_count / rate > max_s + 0.5:
            raise InputError(f"lasts {reader.frame_count / rate:.0f} s, the limit is {max_s:g} s; cut it")
        _say(answer, {"shape": (height, width, 3), "fps": rate, "frames": reader.frame_count})
        answer.flush()
        frames = reader.frames(whole=True)
        for number in range(round(max_s * _MOST_FRAMES_PER_S)):
            frame = _named(path, lambda: next(frames, None))
            if frame is None or frame.time_s > max_s:
                break
            if frame.pixels_HWC.shape != (height, width, 3):
                raise InputError(f"frame {number} is of another size than those before; cut the video there")
            _say(answer, {"time_s": frame.time_s})
            answer.write(frame.pixels_HWC.data)
            answer.flush()
        _say(answer, {"end": True})


def _check_video_kind(path: Path, max_bytes: int) -> None:
    """Containers only: FFmpeg would also follow playlists, which name other files and addresses."""
    if path.stat().st_size > max_bytes:
        raise InputError(f"file has {path.stat().st_size:,} bytes, the limit is {max_bytes:,}; cut it")
    with path.open("rb") as file:
        start = file.read(16)
    is_movie = start[4:8] in _MOVIE_BOXES
    if not (is_movie or start.startswith(b"\x1a\x45\xdf\xa3") or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")):
        raise InputError("not a video file that is known here; convert it to MP4, MOV, MKV, WebM or AVI")


if __name__ == "__main__":
    main()
