"""Time of the fusion network on a VGA pair over that of a plain convolutional one of SeAFusion's size.

    python benchmarks/fusion_speed.py --json FILE

The yardstick has SeAFusion's 0.167 M parameters in 3x3 convolutions at full resolution, channels-last, without branches
or concatenations, which would only make it slower. Both take turns in one process; medians of wall time.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from moevision.api import load
from moevision.tasks.fusion.model import PRESETS, FusionNet

WIDTH, LAYERS = 48, 8
ROUNDS = 15


def yardstick() -> nn.Module:
    """0.167 M parameters, two channels in, one out."""
    inner = [m for _ in range(LAYERS) for m in (nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))]
    return nn.Sequential(nn.Conv2d(2, WIDTH, 3, padding=1), *inner, nn.ReLU(), nn.Conv2d(WIDTH, 1, 1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a fusion model; default: the small preset, untrained")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net = load(arguments.model).model if arguments.model else FusionNet(PRESETS["small"]())
    last = torch.channels_last
    net, plain = (m.eval().to(memory_format=last) for m in (net, yardstick()))  # type: ignore[call-overload]
    visible, infrared = torch.rand(2, 1, 1, 480, 640)
    pair = torch.cat([visible, infrared], 1).contiguous(memory_format=last)
    runs: dict[str, Callable[[], object]] = {"ours": lambda: net(visible, infrared), "yardstick": lambda: plain(pair)}
    laps: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(ROUNDS + 3):
            for name, run in runs.items():
                begun = time.perf_counter()
                run()
                if number >= 3:
                    laps[name].append(time.perf_counter() - begun)
    seconds = {name: round(median(values), 4) for name, values in laps.items()}
    parameters = {
        "ours": sum(p.numel() for p in net.parameters()),
        "yardstick": sum(p.numel() for p in plain.parameters()),
    }
    result = {
        "seconds": seconds,
        "ratio": round(seconds["ours"] / seconds["yardstick"], 4),
        "parameters": parameters,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
