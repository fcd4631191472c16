"""Normal footage of one camera to its calibration: `moevision anomaly-fit`."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import cast

import torch

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError
from moevision.imaging.sources import VideoSource
from moevision.tasks.anomaly.appearance import FeatureSums, NormalAppearance
from moevision.tasks.anomaly.calibration import SiteCalibration, calibrate
from moevision.tasks.anomaly.model import MemoryOutNet
from moevision.tasks.anomaly.streams import FrameAnalyser, Measurement

ANALYSED_FPS = 12.5  # at most: what moves at more frames a second moves too little from one to the next
# Fast, strange to look at, not as expected. The difference of frames is the error of expecting the last one again:
# beside the prediction it would say the same twice.
PRODUCT = ("flow", "appearance", "prediction")
MOTION = ("difference", "flow")  # MB: what is left without a network
_CHUNK = 25  # frames whose features are summed up together
_PARTS = 5  # of a single clip
_Open = Callable[[], VideoSource]
_Seen = Callable[[VideoSource, int], None]


def unseen(source: VideoSource, frames: int) -> None:
    """Nobody watches the reading."""


def fit_site(
    clips: Sequence[_Open], descriptor: ModelDescriptor | None, *, model: str = "", model_sha256: str = "",
    fps: float | None = None, device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = lambda line: None, seen: _Seen = unseen,
) -> SiteCalibration:  # fmt: skip
    """Learn what is normal.

    With an encoder the footage is read twice: how things look is learned first, and then every clip (of a single clip
    every fifth) is compared with what was learned from the others, as what comes later will be.

    Args:
        clips: each opens one recording of normal footage.
        descriptor: the network, or None for the streams that need none.
        model, model_sha256: what the calibration says of it.
        fps: frames a second to analyse; None = the first clip's, but at most ANALYSED_FPS.
        device, dtype: where and in which float type the network runs.
        say: receives a line a clip.
        seen: called after every frame that is read, with its clip and how many of it were read so far.

    Raises:
        InputError: a clip is live or cannot be read, clips differ in size, or there is too little footage.
    """
    if not clips:
        raise InputError("no footage given; name videos of the camera on an ordinary day")
    size_hw, fps = _form_of(clips, fps)
    network = None if descriptor is None else cast("MemoryOutNet", descriptor.model.to(device=device, dtype=dtype))
    normal, normals = None, None
    if network is not None and network.encoder is not None:
        looking = FrameAnalyser(network, streams=("difference",), collect=True, fps=fps, device=device, dtype=dtype)
        normal, normals = _normals([_chunk_sums(open_clip, looking, seen) for open_clip in clips], fps)
    analyser = FrameAnalyser(network, normal=normal, fps=fps, device=device, dtype=dtype)
    measured = []
    for number, open_clip in enumerate(clips):
        measured.append(list(_measured(open_clip, analyser, None if normals is None else normals[number], seen)))
        say(f"clip {number + 1} of {len(clips)}: {sum(m.moves for m in measured[-1])} frames in which something moves")
    streams = [s for s in PRODUCT if s != "appearance" or normal is not None] if network is not None else MOTION
    return calibrate(
        measured, model=model, model_sha256=model_sha256, source_size_hw=size_hw, fps=fps, streams=streams,
        normal=normal,
    )  # fmt: skip


def measure(source: VideoSource, analyser: FrameAnalyser, seen: _Seen = unseen) -> Iterator[Measurement]:
    """The measurements of a source's analysed frames."""
    analyser.restart()
    for number, frame in enumerate(source, 1):
        if source.restarted:
            analyser.restart()
        measurement = analyser.push(frame)
        seen(source, number)
        if measurement is not None:
            yield measurement


def _form_of(clips: Sequence[_Open], fps: float | None) -> tuple[tuple[int, int], float]:
    """Size of all clips' frames, and the frames a second to analyse."""
    size_hw: tuple[int, int] | None = None
    for open_clip in clips:
        with open_clip() as source:
            if source.is_live:
                raise InputError(f"{source.name}: is live; record some footage first, it is read twice")
            if size_hw is not None and source.size_hw != size_hw:
                sizes = " after ".join(f"{w}x{h}" for h, w in (source.size_hw, size_hw))
                raise InputError(f"{source.name}: {sizes}; fit each camera on its own")
            size_hw, fps = source.size_hw, fps or _analysed_fps(source.fps)
    return cast("tuple[int, int]", size_hw), cast("float", fps)


def _analysed_fps(source_fps: float | None) -> float:
    """Every frame, or every second or third of them, so that they are at most ANALYSED_FPS."""
    return ANALYSED_FPS if source_fps is None else source_fps / math.ceil(source_fps / ANALYSED_FPS)


def _chunk_sums(open_clip: _Open, analyser: FrameAnalyser, seen: _Seen) -> tuple[list[FeatureSums], int]:
    """Of every _CHUNK analysed frames the sums of what moves, and how many frames were analysed."""
    chunks: list[FeatureSums] = []
    frames = 0
    with open_clip() as source:
        for measurement in measure(source, analyser, seen):
            if frames % _CHUNK == 0:
                chunks.append(FeatureSums.none())
            if measurement.features_NC is not None:
                chunks[-1] = chunks[-1] + FeatureSums.of(measurement.features_NC)
            frames += 1
    return chunks, frames


def _normals(
    looked_at: list[tuple[list[FeatureSums], int]], fps: float
) -> tuple[NormalAppearance, list[list[NormalAppearance]]]:
    """How normal things look, and for every chunk of every clip how they look elsewhere."""
    sums, frames = [chunks for chunks, _ in looked_at], sum(n for _, n in looked_at)
    read = f"{frames} frames ({frames / fps:.1f} s at {fps:g} frames a second) of normal footage were read"
    if len(sums) == 1 and len(sums[0]) == 1:
        least = f"{_CHUNK + 1} ({(_CHUNK + 1) / fps:.1f} s)"
        raise InputError(
            f"{read}, but of a single recording {least} are the least, as its parts are compared with each other; "
            "name a longer one, or several: minutes are a start"
        )
    total = reduce(add, [chunk for clip in sums for chunk in clip])
    normal = total.normal()
    if len(sums) > 1:
        return normal, [[_elsewhere(total, reduce(add, clip), "recording", read)] * len(clip) for clip in sums]
    (clip,) = sums
    part_of = [min(_PARTS - 1, n * _PARTS // len(clip)) for n in range(len(clip))]
    parts = {p: reduce(add, [c for c, q in zip(clip, part_of, strict=True) if q == p]) for p in set(part_of)}
    elsewhere = {p: _elsewhere(total, part, "part", read) for p, part in parts.items()}
    return normal, [[elsewhere[p] for p in part_of]]


def _elsewhere(total: FeatureSums, part: FeatureSums, what: str, read: str) -> NormalAppearance:
    try:
        return (total - part).normal()
    except InputError:
        raise InputError(
            f"{read}, in which too little moves: every {what} is compared with the others, but {part.count} of the "
            f"{total.count} places that moved are in one {what}; name more or longer recordings"
        ) from None


def _measured(
    open_clip: _Open, analyser: FrameAnalyser, normals: list[NormalAppearance] | None, seen: _Seen
) -> Iterator[Measurement]:
    """Measurements without their grids, each by what is normal elsewhere: an hour of grids would fill the memory."""
    analyser.normal = normals[0] if normals else None
    with open_clip() as source:
        for number, measurement in enumerate(measure(source, analyser, seen)):
            yield replace(measurement, grids={}, features_NC=None)
            if normals is not None and (number + 1) // _CHUNK < len(normals):
                analyser.normal = normals[(number + 1) // _CHUNK]
