"""Video files to frames and back, one frame at a time, through PyAV (the extra `video`).

Frames come upright as they are stored, in RGB with 8 bits. What is written is H.264 in the container of the file's
suffix, at the source's frame times; sound can be carried over from a source unchanged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moevision.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import av
    import av.container

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"})
MAX_PIXELS = 64_000_000  # of a frame: far beyond any camera's video, and what a crafted header may claim
_CRF = "18"  # of H.264: hardly told from the source


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        pixels_HWC: uint8 RGB.
        time_s: since the start of its video.
    """

    pixels_HWC: NDArray[np.uint8]
    time_s: float


def require_av() -> Any:
    """The module `av`; raises MissingExtraError where it is not installed."""
    try:
        import av
    except ImportError:
        raise MissingExtraError('video needs PyAV: pip install "moevision[video]"') from None
    return av


def read_frames(path: Path) -> Generator[Frame, None, None]:
    """Every frame of the first video stream in order; frames that cannot be decoded end it with an InputError.

    Raises:
        InputError: no such file, not a video, or no video stream. MissingExtraError: PyAV is not installed.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start_s: float | None = None
        count = 0
        try:
            for frame in container.decode(stream):
                rate = float(stream.average_rate or 25)
                time_s = float(frame.time) if frame.time is not None else count / rate
                start_s = time_s if start_s is None else start_s
                yield Frame(frame.to_ndarray(format="rgb24"), time_s - start_s)
                count += 1
        except require_av().error.FFmpegError as error:
            raise InputError(f"{path}: cannot be decoded after {count} frames ({error}); repair or cut it") from None
        if count == 0:
            raise InputError(f"{path}: holds no frame; choose another file")


def frame_rate(path: Path) -> Fraction:
    """Frames per second of the first video stream, 25 where the file does not say. Raises as `read_frames`."""
    with _open(path) as container:
        return Fraction(container.streams.video[0].average_rate or 25)


class VideoWriter:
    """Writes frames to a file that appears, whole, when the `with` block ends without an exception.

    Args:
        path: with a suffix of VIDEO_SUFFIXES.
        rate: frames per second.
        sound_from: a file whose sound is copied unchanged; None, or a file without any, gives a silent video.

    Raises:
        InputError: a suffix that cannot be written, or frames of several sizes. MissingExtraError: PyAV is missing.
    """

    def __init__(self, path: Path, rate: Fraction, sound_from: Path | None = None) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"{path}: not a video name; use one of {' '.join(sorted(VIDEO_SUFFIXES))}")
        self.path, self.rate, self.sound_from = path, rate, sound_from
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._container: av.container.OutputContainer = require_av().open(str(self._part), "w")
        self._stream: Any = None
        self._size_hw: tuple[int, int] | None = None

    def write(self, pixels_HWC: NDArray[np.uint8]) -> None:
        """Append one RGB frame; H.264 needs even sizes, so an odd last row or column is repeated."""
        height, width = pixels_HWC.shape[:2]
        if self._size_hw is None:
            self._size_hw = height, width
            self._stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": _CRF})
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
        if (height, width) != self._size_hw:
            raise InputError(f"{self.path}: a frame of {width}x{height} in a video of other size; cut it there")
        even_HWC = np.pad(pixels_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = require_av().VideoFrame.from_ndarray(np.ascontiguousarray(even_HWC), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None and self._stream is not None:
                self._add_sound()
                os.replace(self._part, self.path)
        finally:
            with contextlib.suppress(OSError):
                self._part.unlink()

    def _add_sound(self) -> None:
        """Both streams into a new file, packets as they are: a stream cannot join after the first frame is written."""
        if self.sound_from is None:
            return
        av = require_av()
        with _open(self.sound_from) as source:
            if not source.streams.audio:
                return
            both = self._part.with_name(f".both{self._part.name}")
            try:
                with av.open(str(self._part)) as silent, av.open(str(both), "w") as target:
                    inputs = [(silent, silent.streams.video[0]), (source, source.streams.audio[0])]
                    outputs = [target.add_stream_from_template(stream) for _, stream in inputs]
                    for (container, stream), output in zip(inputs, outputs, strict=True):
                        for packet in container.demux(stream):
                            if packet.dts is not None:
                                packet.stream = output
                                target.mux(packet)
                os.replace(both, self._part)
            finally:
                with contextlib.suppress(OSError):
                    both.unlink()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    av = require_av()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a video ({error}); check the file") from None
    with container:
        if not container.streams.video:
            raise InputError(f"{path}: holds no video stream; choose another file")
        context = container.streams.video[0].codec_context
        if context.width * context.height > MAX_PIXELS:
            raise InputError(f"{path}: frames of {context.width}x{context.height} are too large; scale the video down")
        yield container
