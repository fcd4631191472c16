"""Normal footage of one camera to its calibration: `moevision anomaly-fit`."""

from collections.abc import Callable, Iterable, Sequence

import torch

from moevision.checkpoint import ModelDescriptor
from moevision.errors import InputError
from moevision.imaging.sources import VideoSource
from moevision.tasks.anomaly.calibration import SiteCalibration, calibrate
from moevision.tasks.anomaly.streams import FrameAnalyser, Measurement

ANALYSED_FPS = 12.5  # at most: what moves at more frames a second moves too little from one to the next


def fit_site(
    sources: Sequence[Callable[[], VideoSource]], descriptor: ModelDescriptor | None, *, model: str, model_sha256: str,
    fps: float | None = None, device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] | None = None,
) -> SiteCalibration:  # fmt: skip
    """Learn what is normal.

    Args:
        sources: each opens one clip of normal footage; they are read once, one after another.
        descriptor: the network, or None for the streams that need none.
        model, model_sha256: what the calibration says of it.
        fps: frames a second to analyse; None = the first clip's, but at most ANALYSED_FPS.
        device, dtype: where and in which float type the network runs.
        say: receives a line a clip.

    Raises:
        InputError: a clip cannot be read, clips differ in size, or there is too little footage.
    """
    network = None if descriptor is None else descriptor.model.to(device=device, dtype=dtype)
    clips: list[list[Measurement]] = []
    size_hw: tuple[int, int] | None = None
    for open_clip in sources:
        with open_clip() as source:
            if size_hw is not None and source.size_hw != size_hw:
                sizes = " after ".join(f"{w}x{h}" for h, w in (source.size_hw, size_hw))
                raise InputError(f"{source.name}: {sizes}; fit each camera on its own")
            size_hw = source.size_hw
            fps = fps or min(source.fps or ANALYSED_FPS, ANALYSED_FPS)
            analyser = FrameAnalyser(network, fps=fps, device=device, dtype=dtype)
            clips.append([m for m in _measured(source, analyser) if m is not None])
            if say is not None:
                say(f"{source.name}: {sum(bool(m.values) for m in clips[-1])} frames measured")
    if size_hw is None or fps is None:
        raise InputError("no footage given; name videos of the camera on an ordinary day")
    return calibrate(clips, model=model, model_sha256=model_sha256, source_size_hw=size_hw, fps=fps)


def _measured(source: VideoSource, analyser: FrameAnalyser) -> Iterable[Measurement | None]:
    for frame in source:
        if source.restarted:
            analyser.restart()
        yield analyser.push(frame)
