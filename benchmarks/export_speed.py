"""How much faster an exported network is than eager torch in fp32, on this machine's CPU.

    python benchmarks/export_speed.py --json FILE
    python benchmarks/export_speed.py --model segmentation-camvid --sizes 480x360 640x480 --json FILE

Everything takes turns in one process, so that what else the machine does falls on all alike; medians of wall time.
Whole pictures, network only. `bf16` is left out where the processor does not multiply it natively.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from moevision.api import restoration_task, segmentation_task
from moevision.checkpoint import read_task
from moevision.devices import has_native_bf16
from moevision.moe import Context

SIZES_PX = ("512x512", "1024x1024")
Network = Callable[[torch.Tensor], torch.Tensor]


def network(model: str, task: str, runtime: str, precision: str) -> Network:
    """A picture (1, 3, H, W) -> what the network says of it."""
    if task == "restoration":
        restorer = restoration_task(model=model, device="cpu", runtime=runtime, precision=precision).model
        return lambda x: restorer(x, Context(), None).restored_BCHW.float().clamp(0, 1)
    segmenter = segmentation_task(model=model, device="cpu", runtime=runtime, precision=precision).model
    return lambda x: segmenter.logits(x)[0].float()


def networks(model: str) -> dict[str, Network]:
    """What is compared, by name."""
    task = read_task(model)
    if task not in ("restoration", "segmentation"):
        raise SystemExit(f"--model {model}: {task} models are not exported")
    wanted = {"eager fp32": ("torch", "fp32"), "onnxruntime fp32": ("onnx", "fp32")}
    wanted["openvino fp32"] = ("openvino", "fp32")
    if has_native_bf16(torch.device("cpu")):
        wanted |= {"eager bf16": ("torch", "bf16"), "openvino bf16": ("openvino", "bf16")}
    return {name: network(model, task, *how) for name, how in wanted.items()}


def compare(nets: dict[str, Network], size_hw: tuple[int, int], rounds: int) -> dict[str, object]:
    """Median seconds, ratios to eager fp32, and differences from it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, size_hw[0] // 8, size_hw[1] // 8, generator=generator)
    x = torch.nn.functional.interpolate(x, size=size_hw, mode="bilinear")
    x = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    laps: dict[str, list[float]] = {name: [] for name in nets}
    results = {}
    for number in range(rounds + 1):
        for name, net in nets.items():
            begun = time.perf_counter()
            result = net(x)
            if number:
                laps[name].append(time.perf_counter() - begun)
            results[name] = result.numpy()
    seconds = {name: round(median(values), 4) for name, values in laps.items()}
    first = next(iter(nets))
    differences = {name: np.abs(value - results[first]) for name, value in results.items()}
    return {
        "seconds": seconds,
        "times_as_fast": {name: round(seconds[first] / value, 3) for name, value in seconds.items()},
        "largest_difference": {name: float(f"{d.max():.3g}") for name, d in differences.items()},
        "mean_difference": {name: float(f"{d.mean():.3g}") for name, d in differences.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="restoration-small")
    parser.add_argument("--sizes", nargs="+", default=SIZES_PX, help="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    nets = networks(arguments.model)
    result: dict[str, object] = {"model": arguments.model, "threads": torch.get_num_threads()}
    result["processor"] = str(torch.cpu.get_capabilities().get("cpu_name", "")) if torch.__version__ > "2.10" else ""
    with torch.inference_mode():
        for size in arguments.sizes:
            width, height = map(int, size.split("x"))
            result[size] = compare(nets, (height, width), arguments.rounds)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
