"""The recipe of the anomaly weights, top to bottom.

Data: `train/*.mp4`, normal footage only; every HOLD_OUT_EVERY-th clip is kept for validation and for calibration, for a
network is too sure of what it was fitted on. No labels are used. Validation tells, too, how well the error of the
prediction parts frames at their own speed from the same clips at twice the speed: an anomaly that needs no label.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moevision.checkpoint import find_weights, load_model, save_model
from moevision.datasets.video import Clip, ClipFolder, MovingCrops, grey_of, read_clip, resized
from moevision.errors import InputError, UsageError, WeightsError
from moevision.imaging.sources import open_source
from moevision.imaging.video import read_frames
from moevision.moe import Context
from moevision.tasks.anomaly import losses
from moevision.tasks.anomaly.appearance import AppearanceEncoder
from moevision.tasks.anomaly.fit import ANALYSED_FPS
from moevision.tasks.anomaly.metrics import roc_auc
from moevision.tasks.anomaly.model import FRAMES, PRESETS, MemoryOutConfig, MemoryOutNet
from moevision.tasks.anomaly.motion import box_means, highest, working_size
from moevision.tasks.anomaly.streams import EARLY
from moevision.training.batches import batches_of
from moevision.training.curves import draw_curves
from moevision.training.loop import LoopConfig, fit

_LOG = logging.getLogger(__name__)
CROP_PX, BATCH = 96, 16
HOLD_OUT_EVERY = 5
MOST_FRAMES = 20_000  # in memory while fine-tuning: 1.1 GB
FINE_TUNING_RATE = 5e-4
# Of the losses of the frame. An error of a few grey levels is a thousandth in these units, and the gradient of the load
# balance would drown it.
FRAME_WEIGHT = 100.0
VALIDATION_STRIDE = 6  # frames between those that are validated


def train(
    data: Path, out: Path, *, preset: str = "small", seed: int = 0, steps: int = 4000, resume: bool = False,
    learning_rate: float = 2e-3, encoder: str | Path = "anomaly-ped2", workers: int = 1,
    say: Callable[[str], None] = _LOG.info,
) -> Path:  # fmt: skip
    """Train and write `out/model.safetensors`; returns its path.

    Args:
        data: folder with `train/`, clips of normal footage.
        out: run folder (see `training.loop.fit`), which also receives curves.png.
        preset: a key of PRESETS.
        seed: of initialisation and data.
        steps: optimiser steps.
        resume: continue an interrupted run exactly.
        learning_rate: peak of the schedule.
        encoder: weights whose frozen appearance encoder is taken over, a shipped name or a file.
        workers: data processes.
        say: receives progress lines.

    Raises:
        UsageError: missing data, unknown preset, unfit run folder. InputError: a clip cannot be read. WeightsError: no
            encoder in those weights.
    """
    if preset not in PRESETS:
        raise UsageError(f"{preset}: no such preset; choose from {', '.join(PRESETS)}")
    torch.manual_seed(seed)
    net = MemoryOutNet(PRESETS[preset]()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if net.encoder is not None:
        net.encoder.load_state_dict(encoder_state(encoder))
    say(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    loop = LoopConfig(steps=steps, seed=seed, learning_rate=learning_rate, warmup_steps=200, validate_every=500)
    average = optimise(net, read_training_clips(data), loop, out, resume=resume, workers=workers, say=say)
    path = out / "model.safetensors"
    training = {"preset": preset, "seed": seed, "steps": steps, "learning_rate": learning_rate}
    save_model(average, path, task="anomaly", training=training)
    draw_curves(out)
    return path


def fine_tune(
    sources: Sequence[str], model: str, weights: Path, *, steps: int, seed: int = 0, fps: float = 25.0,
    say: Callable[[str], None] = _LOG.info,
) -> list[str]:  # fmt: skip
    """Go on training shipped weights on one camera's normal footage.

    Args:
        sources: recordings, see `imaging.sources.open_source`; the last fifth, at least one, is not learned from.
        model: what to begin with.
        weights: the .safetensors file to write.
        steps: optimiser steps.
        seed: of the draws.
        fps: frames a second of folders of pictures.
        say: receives progress lines.

    Returns:
        The recordings not learned from: calibrate on these.

    Raises:
        UsageError: fewer than two recordings. InputError: one cannot be read, is live or too short. WeightsError: the
            weights cannot be loaded.
    """
    if len(sources) < 2:
        raise UsageError("--fine-tune needs at least two recordings: one is kept to calibrate on")
    count = max(1, len(sources) // HOLD_OUT_EVERY)
    learned, kept = list(sources[:-count]), list(sources[-count:])
    clips = {text: _read_recording(text, fps, MOST_FRAMES // len(learned)) for text in learned}
    net = cast("MemoryOutNet", load_model(model, _build).model)
    never, warmup = steps + 1, min(200, steps // 5)
    loop = LoopConfig(steps, FINE_TUNING_RATE, warmup_steps=warmup, validate_every=never, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        average = optimise(net, clips, loop, Path(folder) / "run", kept=set(), say=say)
    save_model(average, weights, task="anomaly", training={"from": model, "steps": steps, "seed": seed})
    return kept


def _build(task: str, config: dict[str, Any]) -> nn.Module:
    if task != "anomaly":
        raise ValueError(f"{task} weights cannot be trained on video")
    return MemoryOutNet(MemoryOutConfig.from_dict(config))


def _read_recording(text: str, fps: float, most: int) -> Clip:
    """Grey frames at the working size, at most as many a second as are analysed."""
    frames: list[Clip] = []
    last_s = -math.inf
    with open_source(text, fps=fps) as source:
        if source.is_live:
            raise InputError(f"{text}: is live; record some footage first")
        size_hw = working_size(source.size_hw)
        for frame in source:
            if (frame.time_s - last_s) * ANALYSED_FPS >= EARLY:
                frames.append(resized(grey_of(frame.pixels_HWC), size_hw))
                last_s = frame.time_s
            if len(frames) == most:
                break
    return np.stack(frames)


def encoder_state(name_or_path: str | Path) -> dict[str, Tensor]:
    """Of weights that hold an encoder, or of one alone."""
    path, _ = find_weights(name_or_path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged ({error}); download it again") from None
    own = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    found = own or tensors
    shapes = {name: tensor.shape for name, tensor in AppearanceEncoder().state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        raise WeightsError(f"{path}: holds no appearance encoder; choose other weights")
    return found


def read_training_clips(data: Path) -> dict[str, Clip]:
    """The clips of `data/train` by stem, grey, at the working size of the first."""
    paths = ClipFolder(data / "train").paths
    size_hw = working_size(next(iter(read_frames(paths[0]))).pixels_HWC.shape[:2])
    return {path.stem: read_clip(path, size_hw) for path in paths}


def held_out(names: Iterable[str]) -> set[str]:
    """Of the names of clips those that are not learned from; with fewer than HOLD_OUT_EVERY of them, none."""
    return set(sorted(names)[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY])


def optimise(
    net: MemoryOutNet, clips: dict[str, Clip], loop: LoopConfig, out: Path, *, kept: set[str] | None = None,
    resume: bool = False, workers: int = 1, say: Callable[[str], None] = _LOG.info,
) -> nn.Module:  # fmt: skip
    """Train any MemoryOutNet by the recipe; returns a copy with the averaged weights. Arguments as of `train`."""
    cv2.setNumThreads(0)  # a data process forked from a parent with OpenCV threads can deadlock
    kept = held_out(clips) if kept is None else kept
    learned = [clip for name, clip in clips.items() if name not in kept]
    validation = [clip for name, clip in clips.items() if name in kept] or learned[:1]
    say(f"{len(learned)} clips to learn from, {len(kept)} to validate with")
    crops = MovingCrops(learned, FRAMES + 1)
    batches = batches_of(partial(_draw, crops), loop, out, resume=resume, workers=workers)

    def losses_at(model: nn.Module, step: int) -> dict[str, Tensor]:
        return losses_of(model, next(batches))

    return fit(
        net, losses_at, loop, out,
        validate=lambda model, step: validate(model, validation), resume=resume, say=say,
    )  # fmt: skip


def losses_of(model: nn.Module, batch_BTHW: Tensor) -> dict[str, Tensor]:
    """Weighted loss terms by name, of FRAMES seen frames and the next."""
    context = Context()
    following = batch_BTHW[:, FRAMES:]
    predicted, described_BS, semantic_BS = model(batch_BTHW[:, :FRAMES], context)
    terms = {
        "prediction": FRAME_WEIGHT * losses.prediction_loss(predicted, following),
        "motion": FRAME_WEIGHT * losses.motion_loss(predicted, following, batch_BTHW[:, FRAMES - 1 : FRAMES]),
        "balance": torch.as_tensor(context.auxiliary_loss()),
    }
    if described_BS is not None and semantic_BS is not None:
        terms["semantic"] = losses.semantic_loss(described_BS, semantic_BS)
    return terms


@torch.inference_mode()
def validate(model: nn.Module, clips: list[Clip]) -> dict[str, float]:
    """On normal clips: PSNR in dB where something moves, of the prediction and of the last frame; `fast_auc`."""
    errors: dict[int, list[float]] = {1: [], 2: []}
    squares = np.zeros(2)
    moving_px = 0
    for clip in clips:
        for step, highest_errors in errors.items():
            for start in range(0, len(clip) - FRAMES * step, VALIDATION_STRIDE):
                frames_THW = clip[start : start + FRAMES * step + 1 : step]
                error_HW = prediction_error(model, frames_THW)
                highest_errors.append(highest(box_means(error_HW)))
                if step == 1:
                    copied_HW = (frames_THW[-1].astype(np.float32) - frames_THW[-2]) ** 2
                    moving_HW = cv2.boxFilter(copied_HW, -1, (16, 16)) > 25
                    squares += [error_HW[moving_HW].sum(), copied_HW[moving_HW].sum()]
                    moving_px += int(moving_HW.sum())
    psnr, copy_psnr = 10 * np.log10(255**2 * max(moving_px, 1) / np.maximum(squares, 1e-9))
    labels = np.repeat([0, 1], [len(errors[1]), len(errors[2])])
    return {
        "psnr": float(psnr),
        "copy_psnr": float(copy_psnr),
        "fast_auc": roc_auc(labels, np.array(errors[1] + errors[2])),
    }


def prediction_error(model: nn.Module, frames_THW: Clip) -> NDArray[np.float32]:
    """Squared error in grey levels of the predicted last of FRAMES + 1 frames: (H, W)."""
    x_1THW = torch.from_numpy(frames_THW.astype(np.float32))[None] / 127.5 - 1
    difference = model(x_1THW[:, :FRAMES]).frame_B1HW[0, 0] - x_1THW[0, FRAMES]
    return np.asarray((127.5 * difference).square().numpy(), np.float32)


def _draw(crops: MovingCrops, rng: np.random.Generator, step: int) -> Tensor:
    """(B, FRAMES + 1, crop, crop)."""
    return torch.from_numpy(crops.batch(rng, BATCH, CROP_PX))
