"""Video files, cameras and addresses to frames, and frames to files, one at a time, through PyAV (the extra `video`).

Frames come upright as they are stored, in RGB with 8 bits. What is written is H.264 in the container of the file's
suffix, at a steady rate or at the source's frame times; sound can be carried over from a source unchanged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Generator
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

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"})
MAX_PIXELS = 64_000_000  # of a frame: far beyond any camera's video, and what a crafted header may claim
_CRF = "18"  # of H.264: hardly told from the source
_TICKS = 90_000  # a second, of frames written with their times: the finest that players are used to


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


class VideoReader:
    """An open video: what its header says, then its frames in order. Close it, or use it in a `with` block.

    Args:
        source: a file, or the address of one.
        name: what errors call it; the source itself if None.
        timeout_s: an address that is silent for so long is given up; None waits.

    Attributes:
        rate: frames per second; None where the header does not say.

    Raises:
        InputError: it cannot be opened, is no video, or its frames are too large. MissingExtraError: PyAV is missing.
    """

    def __init__(self, source: Path | str, name: str | None = None, *, timeout_s: float | None = None) -> None:
        # As an absolute path, or FFmpeg takes what stands before a colon in a file's name for a protocol.
        address = os.path.abspath(source) if isinstance(source, Path) else source
        self.name = str(source) if name is None else name
        self._container = _open(address, self.name, timeout=timeout_s)
        self._stream = self._container.streams.video[0]
        self.rate: Fraction | None = Fraction(self._stream.average_rate) if self._stream.average_rate else None

    def frames(self, *, whole: bool = False) -> Generator[Frame, None, None]:
        """Every frame of the first video stream; to be called once.

        Args:
            whole: also refuse, at its place, a frame that the decoder had to patch because its data are damaged, and at
                its end a video that is shorter than its header says (an unfinished copy).

        Raises:
            InputError: there is no frame, or none beyond the number that the text says.
        """
        rate = float(self.rate or 25)
        start_s: float | None = None
        count, last_s, latest = 0, 0.0, (0, 0)
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    latest = max(latest, (packet.pts, packet.duration or 0))
                for picture in packet.decode():
                    if whole and picture.is_corrupt:
                        raise InputError(f"{self.name}: damaged after {count} frames; repair or cut it there")
                    time_s = _time_s(picture, count / rate)
                    start_s = time_s if start_s is None else start_s
                    last_s = time_s - start_s
                    yield Frame(picture.to_ndarray(format="rgb24"), last_s)
                    count += 1
        except require_av().error.FFmpegError as error:
            reason = f"cannot be decoded after {count} frames ({_reason(error)}); repair or cut it"
            raise InputError(f"{self.name}: {reason}") from None
        missing_s = self._stated_s() - last_s - float(latest[1] * self._stream.time_base)
        if whole and missing_s > max(0.5, 2 / rate):
            reason = f"breaks off after {count} frames, {missing_s:.1f} s before its end; copy it again or cut it"
            raise InputError(f"{self.name}: {reason}")
        if count == 0:
            raise InputError(f"{self.name}: holds no frame; choose another file")

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of a frame in pixels, as the header states it."""
        return self._stream.codec_context.height, self._stream.codec_context.width

    @property
    def frame_count(self) -> int | None:
        """As the header states it, or its length and rate; None where it does not."""
        return self._stream.frames or round(self._stated_s() * float(self.rate or 0)) or None

    def _stated_s(self) -> float:
        """How long the header says the video stream is; 0 where it does not."""
        stream = self._stream
        if self._container.format.name == "avi" and self.rate:  # only its frame count survives a cut
            return float(stream.frames / self.rate)
        if stream.duration is not None and stream.time_base:
            return float(stream.duration * stream.time_base)
        with contextlib.suppress(KeyError, ValueError):  # Matroska says it in text, "00:01:02.500000000"
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        # Of several streams the whole file's length would be that of the longest.
        alone = len(self._container.streams) == 1 and self._container.duration is not None
        return self._container.duration / require_av().time_base if alone else 0.0

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_frames(path: Path) -> Generator[Frame, None, None]:
    """Every frame of the first video stream in order; frames that cannot be decoded end it with an InputError.

    Raises:
        InputError: no such file, not a video, or no video stream. MissingExtraError: PyAV is not installed.
    """
    with VideoReader(path) as reader:
        yield from reader.frames()


def frame_rate(path: Path) -> Fraction:
    """Frames per second of the first video stream, 25 where the file does not say. Raises as `read_frames`."""
    with VideoReader(path) as reader:
        return reader.rate or Fraction(25)


def stream_frames(address: str, name: str, *, timeout_s: float) -> Generator[Frame, None, None]:
    """Frames of a camera or a stream as they arrive, until it ends; damaged ones are left out.

    Args:
        address: a URL, or `camera:N` for the N-th camera of this machine (on Windows `camera:NAME`).
        name: what errors call it: the address without what must not be logged.
        timeout_s: silence for so long is an error.

    Raises:
        InputError: it cannot be opened, or the connection is lost. MissingExtraError: PyAV is not installed.
    """
    av = require_av()
    device, format_name, options = _device(address)
    container = _open(device, name, timeout=timeout_s, format=format_name, options=options)
    with container:
        stream = container.streams.video[0]
        rate, count = float(stream.average_rate or 25), 0
        try:
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.error.InvalidDataError:  # a packet lost on the way, or from before the first key frame
                    continue
                for picture in pictures:
                    if picture.is_corrupt:
                        continue
                    yield Frame(picture.to_ndarray(format="rgb24"), _time_s(picture, count / rate))
                    count += 1
        except av.error.FFmpegError as error:
            raise InputError(f"{name}: broke off ({_reason(error)}); check the camera and the network") from None


class VideoWriter:
    """Writes frames to a file that appears, whole, when the `with` block ends without an exception.

    Args:
        path: with a suffix of VIDEO_SUFFIXES.
        rate: frames per second; of frames that are given with their times, about.
        sound_from: a file whose sound is copied unchanged; None, or a file without any, gives a silent video. Sound
            that is damaged or that the container cannot hold is left out with a warning.

    Raises:
        InputError: a suffix that cannot be written, or frames of several sizes. MissingExtraError: PyAV is missing.
    """

    def __init__(self, path: Path, rate: Fraction, sound_from: Path | None = None) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"{path}: not a video name; use one of {' '.join(sorted(VIDEO_SUFFIXES))}")
        self.path, self.rate, self.sound_from = path, rate, sound_from
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._container: av.container.OutputContainer = require_av().open(os.path.abspath(self._part), "w")
        self._stream: Any = None
        self._size_hw: tuple[int, int] | None = None
        self._ticks = -1

    def write(self, pixels_HWC: NDArray[np.uint8], time_s: float | None = None) -> None:
        """Append one RGB frame; H.264 needs even sizes, so an odd last row or column is repeated.

        Args:
            pixels_HWC: uint8 RGB.
            time_s: when it is shown, later than the one before; given for all frames or for none (a steady rate).
        """
        height, width = pixels_HWC.shape[:2]
        if self._size_hw is None:
            self._size_hw = height, width
            self._stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": _CRF})
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
            if time_s is not None:
                self._stream.codec_context.time_base = Fraction(1, _TICKS)
                self._stream.codec_context.max_b_frames = 0  # reordered, uneven times give a wrong length in the header
        if (height, width) != self._size_hw:
            raise InputError(f"{self.path}: a frame of {width}x{height} in a video of other size; cut it there")
        even_HWC = np.pad(pixels_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = require_av().VideoFrame.from_ndarray(np.ascontiguousarray(even_HWC), format="rgb24")
        if time_s is not None:
            self._ticks = max(round(time_s * _TICKS), self._ticks + 1)
            frame.pts, frame.time_base = self._ticks, Fraction(1, _TICKS)
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
        both = self._part.with_name(f".both{self._part.name}")
        try:
            with _open(os.path.abspath(self.sound_from), str(self.sound_from)) as source:
                if not source.streams.audio:
                    return
                with av.open(os.path.abspath(self._part)) as silent, av.open(os.path.abspath(both), "w") as target:
                    inputs = [(silent, silent.streams.video[0]), (source, source.streams.audio[0])]
                    outputs = [target.add_stream_from_template(stream) for _, stream in inputs]
                    end_s = (silent.duration or 0) / av.time_base
                    for (container, stream), output in zip(inputs, outputs, strict=True):
                        for packet in container.demux(stream):
                            if (
                                packet.dts is not None
                                and packet.dts * packet.time_base >= end_s
                                and container is source
                            ):
                                break  # the pictures were stopped before the source's end
                            if packet.dts is not None:
                                packet.stream = output
                                target.mux(packet)
            os.replace(both, self._part)
        except (av.error.FFmpegError, InputError, ValueError) as error:  # the pictures must not be lost for their sound
            logger.warning("%s: its sound cannot be carried over (%s); left out", self.sound_from, _reason(error))
        finally:
            with contextlib.suppress(OSError):
                both.unlink()


def _open(address: str, name: str, **options: Any) -> Any:
    """An input container whose first video stream is within the limits; the caller closes it."""
    av = require_av()
    try:
        container = av.open(address, **options)
    except (av.error.FFmpegError, OSError, ValueError) as error:  # ValueError: unreadable text in a damaged header
        raise InputError(f"{name}: cannot be read as a video ({_reason(error)}); check the {_kind(address)}") from None
    try:
        if not container.streams.video:
            raise InputError(f"{name}: holds no video stream; choose another file")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise InputError(f"{name}: frames of {context.width}x{context.height} are too large; scale the video down")
        stream.thread_type = "AUTO"
        context.options = {"max_pixels": str(MAX_PIXELS)}  # later frames may differ from what the header says
    except BaseException:
        container.close()
        raise
    return container


def _time_s(picture: Any, default_s: float) -> float:
    """When a decoded frame is shown, by its own clock."""
    return default_s if picture.time is None or math.isnan(picture.time) else float(picture.time)


def _kind(address: str) -> str:
    return "address and the network" if "://" in address else "file"


def _device(address: str) -> tuple[str, str | None, dict[str, str]]:
    """What FFmpeg is to open, in which format, with which options."""
    kind, _, which = address.partition(":")
    if kind == "camera":
        if sys.platform == "darwin":
            return which, "avfoundation", {"framerate": "30"}  # its own default, 29.97, is refused by most cameras
        if sys.platform == "win32":
            return f"video={which}", "dshow", {}
        return f"/dev/video{which}", "v4l2", {}
    # Over UDP, which is the default, a busy network tears pictures apart; a torn picture looks like an event.
    return address, None, {"rtsp_transport": "tcp"} if kind in ("rtsp", "rtsps") else {}


def _reason(error: Exception) -> str:
    """An error in a few words, without the address: that may hold a password."""
    text = getattr(error, "strerror", None) or str(error)
    return (" ".join(text.split()) or type(error).__name__)[:120]
