"""What `anomaly_arms.py` measures of one network: its errors on the test clips, and whether its experts differ."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.datasets.video import Clip, ClipFolder, read_clip, read_labels, read_masks
from moevision.imaging.video import read_frames
from moevision.moe import Context, MoELayer, SparseFilterExperts
from moevision.tasks.anomaly.model import FRAMES, MemoryOutConfig, MemoryOutNet
from moevision.tasks.anomaly.motion import box_means, highest, working_size

TOKENS = 2000  # of a layer, for CKA
WATCHED_EVERY = 10  # frames between those in which experts are watched

Record = dict[str, Any]
Error = NDArray[np.float32]
ErrorOf = Callable[[Clip], Error]
"""FRAMES + 1 frames -> squared error in grey levels of what was expected of the last, (H, W)."""


@dataclass(frozen=True)
class LabelledClip:
    """Frames, labels (1 = abnormal) and abnormal pixels of a test clip at the working size."""

    name: str
    frames_THW: Clip
    label_T: NDArray[np.uint8]
    mask_THW: NDArray[np.bool_]


def read_test_clips(data: Path) -> list[LabelledClip]:
    """The test clips with their labels and pixel masks."""
    paths = ClipFolder(data / "test").paths
    source_hw = next(iter(read_frames(paths[0]))).pixels_HWC.shape[:2]
    size_hw = working_size(source_hw)
    labels, masks = read_labels(data), read_masks(data, source_hw[1])
    if missing := [path.stem for path in paths if path.stem not in masks]:
        raise SystemExit(f"{data}: no pixel masks for {', '.join(missing)}")
    return [
        LabelledClip(p.stem, read_clip(p, size_hw), labels[p.stem], _resized_masks(masks[p.stem], size_hw))
        for p in paths
    ]


def _resized_masks(mask_THW: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    width_height = size_hw[::-1]
    resized = [cv2.resize(m.view(np.uint8), width_height, interpolation=cv2.INTER_NEAREST) for m in mask_THW]
    return np.stack(resized) > 0


def copy_error(frames_THW: Clip) -> Error:
    """Of the last frame but one as a prediction of the last."""
    return (frames_THW[-1].astype(np.float32) - frames_THW[-2]) ** 2


def moving_places(frames_THW: Clip) -> NDArray[np.bool_]:
    """Where the last frame differs from the one before: the places whose PSNR `tasks.anomaly.train.validate` tells."""
    return np.asarray(cv2.boxFilter(copy_error(frames_THW), -1, (16, 16)) > 25)


@torch.inference_mode()
def measure_clip(clip: LabelledClip, error_of: ErrorOf, every: int) -> Record:
    """Labels and scores of every `every`-th frame, and [sum of squares, pixels] of "normal" and "abnormal" places."""
    labels, box_max, frame_mean = [], [], []
    sums = {"normal": np.zeros(2), "abnormal": np.zeros(2)}
    for t in range(FRAMES, len(clip.frames_THW), every):
        seen_THW, abnormal = clip.frames_THW[t - FRAMES : t + 1], bool(clip.label_T[t])
        error_HW = error_of(seen_THW)
        place_HW = clip.mask_THW[t] if abnormal else moving_places(seen_THW)
        sums["abnormal" if abnormal else "normal"] += error_HW[place_HW].sum(dtype=np.float64), place_HW.sum()
        labels.append(int(abnormal))
        box_max.append(_short(highest(box_means(error_HW))))
        frame_mean.append(_short(error_HW.mean(dtype=np.float64)))
    places = {side: [_short(squares), int(pixels)] for side, (squares, pixels) in sums.items()}
    return {"name": clip.name, "labels": labels, "box_max": box_max, "frame_mean": frame_mean, **places}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


@torch.inference_mode()
def report_experts(net: MemoryOutNet, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """By layer with routed experts: `dead`, `entropy`, `cka` and `fresh_cka`."""
    layers = [module for module in net.filters.modules() if isinstance(module, MoELayer)]
    counts, tokens = watch(net, layers, clips) if layers else ({}, {})
    report = {}
    for layer in layers:
        share_E = counts[layer.name].double() / counts[layer.name].sum()
        entropy = torch.special.entr(share_E).sum() / math.log(len(share_E))
        torch.manual_seed(0)
        fresh = SparseFilterExperts(len(share_E), net.config.dim, net.config.rank, net.config.k)
        report[layer.name] = {
            "dead": int((counts[layer.name] == 0).sum()),
            "entropy": round(float(entropy), 4),
            "cka": round(mean_linear_cka(layer.experts.all(tokens[layer.name])), 4),
            "fresh_cka": round(mean_linear_cka(fresh.all(tokens[layer.name])), 4),
        }
    return report


def watch(
    net: MemoryOutNet, layers: Sequence[MoELayer], clips: Sequence[Clip]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer: how often each expert was chosen (E,), and about TOKENS of the tokens that went in, drawn (N, D)."""
    starts = [(clip, first) for clip in clips for first in range(0, len(clip) - FRAMES, WATCHED_EVERY)]
    generator = torch.Generator().manual_seed(0)
    counts: dict[str, Tensor] = {}
    tokens: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        x_ND = inputs[0].flatten(0, -2)
        drawn = torch.randint(len(x_ND), (math.ceil(TOKENS / len(starts)),), generator=generator)
        tokens[cast("MoELayer", layer).name].append(x_ND[drawn])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    for clip, first in starts:
        context = Context()
        net(torch.from_numpy(clip[first : first + FRAMES].astype(np.float32))[None] / 127.5 - 1, context)
        for layer in layers:
            chosen_E = context.records[layer.name].routing.counts_E
            counts[layer.name] = counts.get(layer.name, torch.zeros_like(chosen_E)) + chosen_E
    for hook in hooks:
        hook.remove()
    return counts, {name: torch.cat(parts) for name, parts in tokens.items()}


def mean_linear_cka(y_NED: Tensor) -> float:
    """Mean over pairs of experts of the linear CKA (Kornblith et al., ICML 2019) of what they make of N tokens."""
    experts, dim = y_NED.shape[1:]
    y_NF = (y_NED - y_NED.mean(0)).flatten(1)
    products_EDED = (y_NF.T @ y_NF).view(experts, dim, experts, dim)
    alike_EE = products_EDED.square().sum((1, 3))
    own_E = alike_EE.diagonal().sqrt()
    cka_EE = alike_EE / torch.outer(own_E, own_E)
    return float((cka_EE.sum() - cka_EE.trace()) / (experts * (experts - 1)))


def filter_macs(config: MemoryOutConfig) -> dict[str, int]:
    """Multiply-adds of one filter a token: of the chosen experts with router and shared one, and as they are run."""
    one, routed = 2 * config.dim * config.rank, config.num_experts
    if config.filter == "none":
        return {"chosen": 0, "run": 0}
    if config.filter == "ffn":
        return {"chosen": one * (config.k + 1), "run": one * (config.k + 1)}
    chosen = config.k if routed else 0
    return {"chosen": config.dim * routed + one * (chosen + 1), "run": config.dim * routed + one * (routed + 1)}
