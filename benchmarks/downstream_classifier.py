"""The classifier of `downstream.py`: a few convolutions, trained on the clean pictures of the CIFAR-10 subset.

    python benchmarks/downstream_classifier.py --data ROOT/classification/cifar10_subset --out DIR

trains it (a few minutes on one core, always the same on one machine), keeps it as DIR/classifier.safetensors and says
its accuracy on the clean test pictures.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

CLASSIFIER = "classifier.safetensors"
EPOCHS, BATCH, RATE, SEED = 30, 50, 4e-3, 0


def read_cifar(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 32, 32, 3) RGB and (N,)."""
    data = np.load(path)
    ends = data["offsets"]
    pictures = [np.asarray(cv2.imdecode(data["jpeg"][a:b], cv2.IMREAD_COLOR), np.uint8) for a, b in pairwise(ends)]
    return np.ascontiguousarray(np.stack(pictures)[..., ::-1]), data["labels"].astype(np.int64)


def classifier() -> nn.Sequential:
    """RGB in [0, 1], (B, 3, 32, 32) -> (B, 10)."""

    def block(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(
        nn.BatchNorm2d(3, affine=False), *block(3, 24), *block(24, 24), nn.MaxPool2d(2), *block(24, 48),
        *block(48, 48), nn.MaxPool2d(2), *block(48, 96), *block(96, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(96, 10),
    )  # fmt: skip


def _varied(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and shifted by up to 4 px; nothing that weather does."""
    mirrored = torch.rand(len(x_BCHW), generator=generator) < 0.5
    x_BCHW = torch.where(mirrored[:, None, None, None], x_BCHW.flip(3), x_BCHW)
    wide_BCHW = F.pad(x_BCHW, (4, 4, 4, 4), mode="reflect")
    shifts_B2 = torch.randint(9, (len(x_BCHW), 2), generator=generator).tolist()
    return torch.stack([x[:, y : y + 32, c : c + 32] for x, (y, c) in zip(wide_BCHW, shifts_B2, strict=True)])


def train(data: Path) -> nn.Sequential:
    """On `data/train.npz`."""
    pictures_NHWC, labels = read_cifar(data / "train.npz")
    x_NCHW = torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float() / 255
    labels_N = torch.from_numpy(labels)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * (len(labels_N) // BATCH))
    for epoch in range(EPOCHS):
        order_N = torch.randperm(len(labels_N), generator=generator)
        losses = []
        for chosen_B in order_N[: len(labels_N) // BATCH * BATCH].split(BATCH):
            x_BCHW = _varied(x_NCHW[chosen_B], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x_BCHW), labels_N[chosen_B], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"classifier, epoch {epoch + 1} of {EPOCHS}: loss {np.mean(losses):.3f}", flush=True)
    return net.eval()


def classifier_in(out: Path, data: Path) -> nn.Sequential:
    """The one that lies in `out`; else it is trained."""
    path = out / CLASSIFIER
    if not path.exists():
        net = train(data)
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    net = classifier()
    net.load_state_dict(load_file(path))
    return net.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    net = classifier_in(arguments.out, arguments.data)
    pictures_NHWC, labels_N = read_cifar(arguments.data / "test.npz")
    with torch.inference_mode():
        found_N = net(torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    print(f"clean test pictures: {100 * np.mean(found_N == labels_N):.1f} %")


if __name__ == "__main__":
    main()
