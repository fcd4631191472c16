"""The recipe of the segmentation weights, top to bottom.

Data: `images/`, `labels/` and `classes.txt` (`moevision.datasets.segmentation`). The last tenth of the pictures by name
is kept for validation: frames of one drive follow each other, and a picture beside its neighbour validates nothing.
Begins with the pyramid of other weights, by default the shipped ones, which saw ImageNet: a few hundred labelled
pictures do not teach edges and textures.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moevision.checkpoint import find_weights, save_model
from moevision.datasets.segmentation import IGNORE, ClassList, Labelled, LabelledCrops, LabelledFolder
from moevision.errors import UsageError, WeightsError
from moevision.moe import Context
from moevision.tasks.segmentation.losses import class_weights, cross_entropy, jaccard_loss
from moevision.tasks.segmentation.metrics import confusion_of, scores_of
from moevision.tasks.segmentation.model import (
    PRESETS,
    STRIDE,
    SegmentationConfig,
    SegmentationNet,
    enlarged,
    set_active_experts,
)
from moevision.tasks.segmentation.predict import WORK_PX
from moevision.training.batches import batches_of
from moevision.training.curves import draw_curves
from moevision.training.loop import LoopConfig, fit

_LOG = logging.getLogger(__name__)
CROP_PX, BATCH = 288, 8
VALIDATION_SHARE = 0.1
# Of a pyramid that begins learned: its share of the learning rate, and the stages that stay as they are (to stride 4).
PYRAMID_RATE, FROZEN_STAGES = 0.3, 2
JACCARD_WEIGHT, COARSE_WEIGHT = 0.5, 0.4
ACTIVE = (0.5, 0.75, 1.0)  # shares of the experts that a step may use: weights that bear to be run with fewer


def train(
    data: Path, out: Path, *, preset: str = "small", seed: int = 0, steps: int = 3000, resume: bool = False,
    learning_rate: float = 1e-3, start_from: str | Path | None = "segmentation-camvid", weather: bool = False,
    validation_share: float = VALIDATION_SHARE, workers: int = 1, say: Callable[[str], None] = _LOG.info,
) -> Path:  # fmt: skip
    """Train and write `out/model.safetensors`; returns its path.

    Args:
        data: folder with `images/`, `labels/` and `classes.txt`.
        out: run folder (see `training.loop.fit`), which also receives curves.png.
        preset: a key of PRESETS.
        seed: of initialisation and data.
        steps: optimiser steps.
        resume: continue an interrupted run exactly.
        learning_rate: peak of the schedule; the pyramid's is PYRAMID_RATE of it.
        start_from: weights whose fitting parts are taken over; None starts anew.
        weather: half of the crops are seen through synthetic weather.
        validation_share: of the pictures, kept for validation; 0 learns from all.
        workers: data processes.
        say: receives progress lines.

    Raises:
        UsageError: missing or wrong data, unknown preset, unfit run folder. WeightsError: `start_from` does not fit.
    """
    if preset not in PRESETS:
        raise UsageError(f"{preset}: no such preset; choose from {', '.join(PRESETS)}")
    folder = LabelledFolder(data)
    torch.manual_seed(seed)
    net = build(preset, folder.classes)
    if start_from is not None:
        say(take_over(net, start_from))
    say(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    loop = LoopConfig(
        steps=steps, seed=seed, learning_rate=learning_rate, warmup_steps=min(200, steps // 5), weight_decay=0.01,
        validate_every=500,
    )  # fmt: skip
    learned, kept = split(list(folder), validation_share)
    if all((item.label_HW == IGNORE).all() for item in learned):
        raise UsageError(f"{data / 'labels'}: no pixel has a label; check {data} and its class list")
    average = optimise(
        net, learned, loop, out, kept=kept, weather=weather, learned_pyramid=start_from is not None, resume=resume,
        workers=workers, say=say,
    )  # fmt: skip
    path = out / "model.safetensors"
    training = {"preset": preset, "seed": seed, "steps": steps, "learning_rate": learning_rate, "weather": weather}
    training["work_px"] = work_px_of(learned)
    save_model(average, path, task="segmentation", training=training)
    draw_curves(out)
    return path


def build(preset: str, classes: ClassList) -> SegmentationNet:
    """A network with random weights for these classes."""
    config = SegmentationConfig(PRESETS[preset](), classes.names, classes.palette)
    return SegmentationNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def take_over(net: nn.Module, name_or_path: str | Path) -> str:
    """Copy every tensor of the same name and shape into the network; returns a line that says which parts are new.

    Raises WeightsError if the file cannot be read, or if the pyramid is not all there.
    """
    path, _ = find_weights(name_or_path)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: damaged ({error}); download it again") from None
    own = net.state_dict()
    fitting = {name: t for name, t in found.items() if name in own and t.shape == own[name].shape}
    missing = [name for name in own if name not in fitting]
    if any(name.startswith("backbone.pyramid.") for name in missing):
        raise WeightsError(f"{path}: holds no pyramid that fits; choose other weights")
    net.load_state_dict(fitting, strict=False)
    parts = sorted({".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1]) for name in missing})
    return f"started from {path.name}; new: {', '.join(parts) or 'nothing'}"


def split(items: list[Labelled], share: float) -> tuple[list[Labelled], list[Labelled]]:
    """Those to learn from, and the last `share` of them, which are not; none where there are fewer than ten."""
    count = round(share * len(items)) if len(items) >= 10 else 0
    return items[: len(items) - count], items[len(items) - count :]


def work_px_of(items: list[Labelled]) -> int:
    """The longer side at which the network is to see pictures: the median of what it learned from, if that is more."""
    return max(WORK_PX, int(np.median([max(item.label_HW.shape) for item in items])))


def optimise(
    net: SegmentationNet, learned: list[Labelled], loop: LoopConfig, out: Path, *, kept: list[Labelled],
    weather: bool = False, learned_pyramid: bool = True, resume: bool = False, workers: int = 1,
    say: Callable[[str], None] = _LOG.info,
) -> nn.Module:  # fmt: skip
    """Train any SegmentationNet by the recipe; returns a copy with the averaged weights. Arguments as of `train`."""
    cv2.setNumThreads(0)  # a data process forked from a parent with OpenCV threads can deadlock
    say(f"{len(learned)} pictures to learn from, {len(kept)} to validate with")
    crops = LabelledCrops(learned, CROP_PX, weather=weather)
    batches = batches_of(partial(_draw, crops), loop, out, resume=resume, workers=workers)
    weights_K = class_weights(_counts(learned, len(net.config.classes)))
    net.backbone.pyramid.freeze(FROZEN_STAGES if learned_pyramid else 0)

    def losses_at(model: nn.Module, step: int) -> dict[str, Tensor]:
        x_BCHW, labels_BHW = next(batches)
        choose_active(model)
        return losses_of(model, x_BCHW, labels_BHW, weights_K)

    return fit(
        net, losses_at, loop, out,
        rates={"backbone.pyramid.": PYRAMID_RATE} if learned_pyramid else {},
        validate=(lambda model, step: validate(model, kept)) if kept else None, resume=resume, say=say,
    )  # fmt: skip


def choose_active(model: nn.Module) -> None:
    """Draw how many experts this step uses, from torch's generator."""
    moe = cast("SegmentationNet", model).config.backbone.moe
    if moe.experts != "dense":
        share = ACTIVE[int(torch.randint(len(ACTIVE), ()))]
        set_active_experts(model, max(1, round(share * moe.num_experts)))


def losses_of(model: nn.Module, x_BCHW: Tensor, labels_BHW: Tensor, weights_K: Tensor) -> dict[str, Tensor]:
    """Weighted loss terms by name."""
    context = Context()
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    fine_BKhw, coarse_BKhw = model.logits(x_BCHW, context)  # type: ignore[operator]
    height, width = labels_BHW.shape[1:]
    fine_BKHW = enlarged(fine_BKhw, STRIDE)[..., :height, :width]
    # At stride 16 a label stands for its patch: the one in the middle.
    coarse_labels = labels_BHW[:, 8::16, 8::16]
    return {
        "cross_entropy": cross_entropy(fine_BKHW, labels_BHW, weights_K),
        "jaccard": JACCARD_WEIGHT * jaccard_loss(fine_BKhw, labels_BHW[:, 2::STRIDE, 2::STRIDE]),
        "coarse": COARSE_WEIGHT * cross_entropy(coarse_BKhw, coarse_labels, weights_K),
        "balance": torch.as_tensor(context.auxiliary_loss()),
    }


@torch.inference_mode()
def validate(model: nn.Module, kept: list[Labelled]) -> dict[str, float]:
    """mIoU and pixel accuracy in percent."""
    names = cast("SegmentationNet", model).config.classes
    total_KK = np.zeros((len(names), len(names)), np.int64)
    for item in kept:
        x_1CHW = torch.from_numpy(item.image_HWC).permute(2, 0, 1)[None].float() / 255
        total_KK += confusion_of(model(x_1CHW)[0].argmax(0).numpy().astype(np.uint8), item.label_HW, len(names))
    scores = scores_of(total_KK, names)
    return {name: 100 * scores[name] for name in ("miou", "pixel_accuracy")}


def _counts(items: list[Labelled], classes: int) -> Tensor:
    counts_N = sum(np.bincount(item.label_HW.ravel(), minlength=IGNORE + 1) for item in items)
    return torch.from_numpy(np.asarray(counts_N)[:classes])


def _draw(crops: LabelledCrops, rng: np.random.Generator, step: int) -> tuple[Tensor, Tensor]:
    """(B, 3, crop, crop) in [0, 1] and (B, crop, crop)."""
    images_BCHW, labels_BHW = crops.batch(rng, BATCH)
    return torch.from_numpy(images_BCHW), torch.from_numpy(labels_BHW)
