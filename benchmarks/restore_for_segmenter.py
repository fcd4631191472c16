"""A restorer for a machine: trained so that a segmenter sees in the restored picture what it sees in the clean one.

    python benchmarks/restore_for_segmenter.py --data ROOT --clean FOLDER --segmenter segmentation-camvid \\
        --start-from restoration-small --steps 4000 --out RUN

ROOT is laid out as for `moevision train restoration`; the pictures of FOLDER join its clean ones. The recipe's losses
stay, and the Kullback-Leibler divergence of the frozen segmenter's classes on the clean picture from those on the
restored one joins them (labels are not used). The weather is the training's. `downstream.py` tells what it is good for.
"""

import argparse
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.api import load
from moevision.backbone.inverted import fold_norms
from moevision.checkpoint import save_model
from moevision.datasets.mixture import MixtureWeights, RestorationMixture
from moevision.datasets.paired import list_images, read_image
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.restoration.train import Judge, Phase, optimise
from moevision.tasks.segmentation.model import SegmentationNet
from moevision.training.loop import LoopConfig

JUDGE_WEIGHT = 0.3
PHASES = (Phase(0.0, 192, 2), Phase(0.4, 288, 1))  # a segmenter needs to see what is around
WEIGHTS = MixtureWeights(
    haze_pairs=0.05, haze=0.10, rain=0.15, drops=0.20, snow=0.10, mixture=0.15, clean=0.05, street=1.2
)


def judge_of(segmenter: str) -> Judge:
    """The loss that a segmenter adds."""
    net = cast("SegmentationNet", load(segmenter).model)
    fold_norms(net).requires_grad_(False)

    def judge(restored_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_BKhw = net.logits(clean_BCHW)[0].softmax(1)
        found_BKhw = net.logits(restored_BCHW.clamp(0, 1))[0].log_softmax(1)
        return JUDGE_WEIGHT * F.kl_div(found_BKhw, wanted_BKhw, reduction="none").sum(1).mean()

    return judge


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path)
    parser.add_argument("--segmenter", default="segmentation-camvid")
    parser.add_argument("--start-from", default="restoration-small")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    mixture = RestorationMixture(options.data, WEIGHTS)
    if options.clean:
        mixture.clean += [read_image(path) for path in list_images(options.clean)]
    torch.manual_seed(options.seed)
    net = cast("RestorationNet", load(options.start_from).model).train().requires_grad_(True)
    loop = LoopConfig(steps=options.steps, seed=options.seed, learning_rate=options.learning_rate, plateau=0.4)
    average = optimise(
        net, mixture, loop, options.out, phases=PHASES, resume=options.resume, judge=judge_of(options.segmenter),
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    training = {"preset": "small", "seed": options.seed, "steps": options.steps, "segmenter": options.segmenter}
    save_model(average, options.out / "model.safetensors", task="restoration", training=training)


if __name__ == "__main__":
    main()
