"""Why drops stay: the network trained on drops alone, with and without being told where they are.

    python benchmarks/drops_known.py restoration-small --data ROOT --json benchmarks/records/DATE-NAME/drops-known.json

The arms go on from the same weights with the same samples for the same steps, told that the weather is drops. "known"
also gets the true opacity of the drops, added to the stem by a convolution that starts at 0; "twice" gets there what
the network itself guessed in a first pass; "blind" is the network as it is, with the loss of its own guess of the
opacity. Known less blind is what finding the drops would give this network in this number of steps. One seed.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.api import load
from moevision.backbone.backbone import pad_to_stride
from moevision.datasets import weather
from moevision.datasets.mixture import MixtureWeights, RestorationMixture
from moevision.datasets.paired import list_images, read_image
from moevision.moe import Context
from moevision.tasks.restoration.losses import l1_error, opacity_loss, relative, rms_error
from moevision.tasks.restoration.metrics import psnr
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.restoration.train import LOSS_POWER, OPACITY_WEIGHT, RESTORATION_WEIGHT
from moevision.tasks.restoration.weathers import WEATHERS

ARMS = ("blind", "known", "twice")
DROPS = torch.tensor([[float(name == "drops") for name in WEATHERS]])


class ToldStem(nn.Module):
    """The stem, plus what a convolution makes of the opacity set last; nothing at first, and nothing without one."""

    def __init__(self, stem: nn.Conv2d) -> None:
        super().__init__()
        self.stem = stem
        self.enter = nn.Conv2d(4, stem.out_channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.enter.weight)
        self.opacity_B1HW: Tensor | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Unshuffled picture -> features, as the stem."""
        x = self.stem(x_BCHW)
        if self.opacity_B1HW is None:
            return x
        return x + self.enter(F.pixel_unshuffle(pad_to_stride(self.opacity_B1HW), 2))


def dev_drops(root: Path, seed: int = 2026) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """[(degraded, clean, opacity)] float32 of `clean/kodak12_dev`: the pictures of `synthetic_dev`."""
    result = []
    for i, path in enumerate(list_images(root / "clean" / "kodak12_dev")):
        clean_HWC = read_image(path).astype(np.float32) / np.float32(255)
        opacity_HW = np.zeros(clean_HWC.shape[:2], np.float32)
        rng = np.random.default_rng([seed, i, weather.KINDS.index("drops")])
        result.append((weather.degrade(clean_HWC, "drops", rng, opacity_HW=opacity_HW), clean_HWC, opacity_HW))
    return result


def tell(arm: str, net: RestorationNet, x_BCHW: Tensor, truth_B1HW: Tensor) -> None:
    """Sets what the stem is told about these pictures; "blind" has no stem to be told."""
    stem = net.backbone.stem
    if not isinstance(stem, ToldStem):
        return
    stem.opacity_B1HW = truth_B1HW
    if arm == "twice":
        stem.opacity_B1HW = None
        with torch.no_grad():
            guess = net(x_BCHW, Context(), DROPS.expand(len(x_BCHW), -1)).opacity_B1hw.sigmoid()
        full = F.interpolate(guess, scale_factor=2, mode="bilinear", align_corners=False)
        stem.opacity_B1HW = full[..., : x_BCHW.shape[2], : x_BCHW.shape[3]]


@torch.inference_mode()
def gains_db(arm: str, net: RestorationNet, pictures: list) -> tuple[list[float], list[float]]:
    """PSNR over the input, and the correlation of the network's own guess of the opacity with the truth, by picture."""
    gains, correlations = [], []
    for degraded_HWC, clean_HWC, opacity_HW in pictures:
        truth = torch.from_numpy(opacity_HW)[None, None]
        x = torch.from_numpy(degraded_HWC).permute(2, 0, 1)[None]
        tell(arm, net, x, truth)
        restored_BCHW, _, guess = net(x, None, DROPS)
        after, before, clean = (
            np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
            for image in (restored_BCHW[0].permute(1, 2, 0).numpy(), degraded_HWC, clean_HWC)
        )
        gains.append(psnr(after, clean) - psnr(before, clean))
        half = F.avg_pool2d(pad_to_stride(truth), 2)
        correlations.append(float(torch.corrcoef(torch.stack([guess.sigmoid().flatten(), half.flatten()]))[0, 1]))
    return gains, correlations


def train_arm(arm: str, weights: str, mixture: RestorationMixture, pictures: list, options: argparse.Namespace) -> dict:
    """Gains of one arm before and after its steps."""
    torch.manual_seed(0)
    net = load(weights, device="cpu").model
    assert isinstance(net, RestorationNet)
    if arm != "blind":
        net.backbone.stem = ToldStem(net.backbone.stem)  # type: ignore[assignment]
    net = net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4)
    curve = []
    for step in range(options.steps + 1):
        if step % (options.steps // 2) == 0:
            gains, correlations = gains_db(arm, net.eval(), pictures)
            means = {"gain_db": float(np.mean(gains)), "opacity_correlation": float(np.mean(correlations))}
            curve.append({"step": step, **means, "gains_db": [round(g, 2) for g in gains]})
            print(arm, step, {name: round(value, 2) for name, value in means.items()}, flush=True)
            net.train()
        progress = max(0.0, 2 * step / options.steps - 1)
        rate = 5e-4 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y, opacity = map(torch.from_numpy, mixture.batch(np.random.default_rng((77, step)), 2, 192)[:3])
        tell(arm, net, x, opacity)
        restored, _, guess = net(x.contiguous(memory_format=torch.channels_last), Context(), DROPS.expand(2, -1))
        error, before = (rms_error(image, y) + 0.5 * l1_error(image, y) for image in (restored, x))
        loss = RESTORATION_WEIGHT * relative(error, before, LOSS_POWER) + OPACITY_WEIGHT * opacity_loss(guess, opacity)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return {"curve": curve}


def main() -> None:
    """Train the arms and write what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="name or path of restoration weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["blind", "known"])
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    shares = {name: float(name == "drops") for name in vars(MixtureWeights())}
    mixture, pictures = RestorationMixture(options.data, MixtureWeights(**shares)), dev_drops(options.data)
    result = {arm: train_arm(arm, options.weights, mixture, pictures, options) for arm in options.arms}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"steps": options.steps, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
