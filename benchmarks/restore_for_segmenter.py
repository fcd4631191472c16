"""A restorer for a machine: trained so that a segmenter sees in the restored picture what it sees in the clean one.

    python benchmarks/restore_for_segmenter.py --data ROOT --streets FOLDER --segmenter segmentation-camvid \\
        --start-from restoration-small --steps 4000 --out RUN

ROOT is laid out as for `moevision train restoration`; street weather falls on the pictures of FOLDER. The recipe's
losses stay, and what the frozen segmenter loses joins them: the Kullback-Leibler divergence of its classes on the clean
picture from those on the restored one, relative to that on the degraded one. Pixels of rare classes count for more, as
in mIoU. The weather is the training's; mist lies by the distance of what the segmenter sees in the clean picture (no
labels are used). `downstream.py` tells what it is good for.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from downstream_weather import Floats, standing_m
from torch import Tensor
from torch.nn import functional as F

from moevision.api import load, segmentation_task
from moevision.backbone.inverted import fold_norms
from moevision.checkpoint import save_model
from moevision.datasets.mixture import MixtureWeights, RestorationMixture
from moevision.datasets.paired import PixelArray
from moevision.imaging.picture import picture_from_array
from moevision.tasks.restoration.losses import relative
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.restoration.train import Judge, Phase, optimise
from moevision.tasks.segmentation.losses import class_weights
from moevision.tasks.segmentation.model import SegmentationNet
from moevision.training.loop import LoopConfig

JUDGE_WEIGHT, POWER, KNEE = 0.5, 0.5, 0.1
PHASES = (Phase(0.0, 192, 2), Phase(0.25, 288, 1))  # a segmenter needs to see what is around
WEIGHTS = MixtureWeights(
    haze_pairs=0.05, haze=0.10, rain=0.15, drops=0.20, snow=0.10, mixture=0.15, clean=0.05, street=1.2
)


def distance_of(segmenter: str) -> Callable[[PixelArray], Floats]:
    """How far off everything in a picture is, by what the segmenter sees in it."""
    task = segmentation_task(model=segmenter)
    return lambda picture_HWC: standing_m(
        np.asarray(task.segment(picture_from_array(picture_HWC)).ids_HW, np.uint8), task.classes
    )


def judge_of(segmenter: str, pictures: list[PixelArray]) -> Judge:
    """The loss that a segmenter adds; `pictures` tell how often it sees each class."""
    net = cast("SegmentationNet", load(segmenter).model)
    fold_norms(net).requires_grad_(False)
    weights_K = class_weights(_counts(net, pictures))

    def judge(restored_BCHW: Tensor, clean_BCHW: Tensor, degraded_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_BKhw = net.logits(clean_BCHW)[0].softmax(1)
            lost_B = _divergence(net, degraded_BCHW, wanted_BKhw, weights_K)
        left_B = _divergence(net, restored_BCHW.clamp(0, 1), wanted_BKhw, weights_K)
        # Thick mist costs ten times as much as a wet windscreen: what is made good of each is to count.
        return JUDGE_WEIGHT * relative(left_B, lost_B, POWER, KNEE)

    return judge


def _divergence(net: SegmentationNet, x_BCHW: Tensor, wanted_BKhw: Tensor, weights_K: Tensor) -> Tensor:
    """Of each picture, the mean over its pixels, weighted by their class on the clean picture: (B,)."""
    found_BKhw = net.logits(x_BCHW)[0].log_softmax(1)
    divergence_Bhw = F.kl_div(found_BKhw, wanted_BKhw, reduction="none").sum(1)
    return (weights_K[wanted_BKhw.argmax(1)] * divergence_Bhw).mean((1, 2))


@torch.no_grad()
def _counts(net: SegmentationNet, pictures: list[PixelArray]) -> Tensor:
    """Pixels of each class (K,) as the segmenter sees them."""
    counts_K = torch.zeros(len(net.config.classes), dtype=torch.int64)
    for picture_HWC in pictures:
        x_1CHW = torch.from_numpy(picture_HWC).permute(2, 0, 1)[None].float() / 255
        counts_K += torch.bincount(net.logits(x_1CHW)[0].argmax(1).flatten(), minlength=len(counts_K))
    return counts_K


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--streets", type=Path)
    parser.add_argument("--segmenter", default="segmentation-camvid")
    parser.add_argument("--start-from", default="restoration-small")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--drops", type=float, default=WEIGHTS.drops, help="their share, beside streets of 1.2")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    mixture = RestorationMixture(
        options.data,
        replace(WEIGHTS, drops=options.drops),
        streets=options.streets,
        distance=distance_of(options.segmenter) if options.streets else None,
    )
    torch.manual_seed(options.seed)
    net = cast("RestorationNet", load(options.start_from).model).train().requires_grad_(True)
    loop = LoopConfig(steps=options.steps, seed=options.seed, learning_rate=options.learning_rate, plateau=0.2)
    judge = judge_of(options.segmenter, mixture.streets[:: max(1, len(mixture.streets) // 50)])
    average = optimise(
        net, mixture, loop, options.out, phases=PHASES, resume=options.resume, judge=judge,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    training = {"preset": "small", "seed": options.seed, "steps": options.steps, "segmenter": options.segmenter}
    save_model(average, options.out / "model.safetensors", task="restoration", training=training)


if __name__ == "__main__":
    main()
