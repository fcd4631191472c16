"""`moevision bench mofme`: what the shared-FFN experts save, as ratios measured in one run on this machine.

Arms: "mofme" (constant FiLM experts, exact-moment router) over "dense_compute_moe" (every expert on every token, the
baseline of the MoFME paper), "sparse_moe" (only the chosen experts, our sorted kernels), "dense_ffn" (one FFN, no
router) and "released" (the form of the published code). Speeds are ratios of the arms of one run, which take turns, so
that load and frequency changes hit all of them.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from moevision.backbone.blocks import moe_ffn
from moevision.backbone.config import MoEConfig
from moevision.devices import pick_device
from moevision.kernels import flops, reference
from moevision.moe import Dense, ExpertBank, FFNExperts, MoELayer, Routing
from moevision.tasks.restoration.model import PRESETS, RestorationNet
from moevision.tasks.restoration.mofme import MoFMEConfig, MoFMENet, StemmedExperts

_FORMULAS = flops.__name__  # importing it taught FlopCounterMode our operators
OURS = "mofme"
LAYER_TOKENS, LAYER_DIMS = 4096, (96, 384)
PAPER_PX, SMALL_PX, SHARE_PX, MATMUL_SIDE = 240, 512, 1024, 2048

Arms = dict[str, Callable[[], object]]
Seconds = dict[str, list[float]]


class LoopedDense:
    """Every expert on every item, one expert after the other, as the MoFME paper's baseline does it.

    `moe.Dense` holds all experts' hidden layers at once, which is slower on a CPU; comparing with it would flatter us.
    """

    def __call__(self, x_ND: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        """(N, D) -> (N, D); the bank must be FFNExperts, with or without a stem."""
        if isinstance(bank, StemmedExperts):
            x_ND, bank = bank.stem(x_ND), bank.experts
        if not isinstance(bank, FFNExperts):
            raise TypeError(f"LoopedDense runs FFNExperts, got {type(bank).__name__}")
        gate_NE = reference.dense_gate(routing.weight_NK, routing.index_NK, bank.num_experts).to(x_ND.dtype)
        y_ND = torch.zeros_like(x_ND)
        for expert in range(bank.num_experts):
            hidden_NH = F.gelu(torch.addmm(bank.b1[expert], x_ND, bank.w1[expert]))
            y_ND += gate_NE[:, expert, None] * torch.addmm(bank.b2[expert], hidden_NH, bank.w2[expert])
        return y_ND


def arm_configs(experts: int, k: int) -> dict[str, MoEConfig]:
    """The feed-forward part of each arm; baselines have the plain linear router, which is the cheapest."""
    plain = MoEConfig(experts="ffn", num_experts=experts, k=k, scorer="linear")
    return {
        OURS: MoEConfig(num_experts=experts, k=k),
        "dense_compute_moe": replace(plain, dense_compute=True),
        "sparse_moe": plain,
        "dense_ffn": replace(plain, experts="dense"),
    }


def bench_mofme(
    *, threads: int | None = None, repeats: int | None = None, experts: int = 16, k: int = 4, quick: bool = False,
    device: str = "auto", seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure sizes and speeds; takes about two minutes on two cores, `quick` some fifteen seconds.

    Args:
        threads: of torch, None = as they are.
        repeats: rounds, in each of which every arm runs once; default 15, or 3 when `quick`.
        experts, k: E and how many a token uses.
        quick: fewer rounds on smaller pictures, for tests; its ratios are rough.
        device: as in `moevision.devices`.
        seed: of weights and pictures.

    Returns:
        Flat and JSON-serialisable. `params_ratio` and `time_ratio_<arm>` of the paper-size network (batch 1, 240x240);
        the same under `small.` for the shipped preset (512x512) and under `layer.d<D>.` for one MoE layer (4096
        tokens); `flops_share_of_matmul_peak`: FLOP/s of the preset at 1024x1024 over those of a 2048^3 matrix product;
        `iqr`: the quartiles of each ratio over rounds; `seconds`: medians; `machine`, `settings`.
    """
    torch.manual_seed(seed)
    target, shrink = pick_device(device), 4 if quick else 1
    repeats = repeats or (3 if quick else 15)
    result: dict[str, Any] = {"iqr": {}, "seconds": {}}
    with _threads(threads), torch.inference_mode():
        _measure_paper(result, experts, k, target, repeats, PAPER_PX // (shrink or 1) // 8 * 8)
        _measure_small(result, experts, k, target, repeats, SMALL_PX // shrink)
        for dim in LAYER_DIMS:
            _measure_layer(result, experts, k, target, repeats, dim, LAYER_TOKENS // shrink)
        _measure_share(result, target, repeats, SHARE_PX // shrink)
        result["machine"] = machine_facts(target)
    result["settings"] = {
        "repeats": repeats,
        "experts": experts,
        "k": k,
        "quick": quick,
        "seed": seed,
        "dtype": "float32",
    }
    return result


def count_macs(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass, attention and our operators included; nothing is computed (meta)."""
    with torch.device("meta"):
        net, x = build().eval(), torch.empty(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return int(counter.get_total_flops()) // 2


def time_interleaved(arms: Arms, repeats: int, device: torch.device) -> Seconds:
    """Wall seconds of every arm in every round; one untimed round first, and each round begins with another arm."""
    names = list(arms)
    seconds: Seconds = {name: [] for name in names}
    for lap in range(-1, repeats):
        first = lap % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            begun = time.perf_counter()
            arms[name]()
            _wait(device)
            if lap >= 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What the ratios depend on besides the code."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
    }


def _measure_paper(
    result: dict[str, Any], experts: int, k: int, device: torch.device, repeats: int, side_px: int
) -> None:
    nets: dict[str, nn.Module] = {}
    base = MoFMEConfig(num_experts=experts, k=k)
    for name, moe in arm_configs(experts, k).items():
        config = replace(base, experts=moe.experts, scorer=moe.scorer, dense_compute=moe.dense_compute)
        nets[name] = MoFMENet(config)
    nets["released"] = MoFMENet(replace(base, experts="film-linear", stem="star", scorer="linear"))
    _compare(result, "", nets, torch.rand(1, 3, side_px, side_px), device, repeats)


def _measure_small(
    result: dict[str, Any], experts: int, k: int, device: torch.device, repeats: int, side_px: int
) -> None:
    config = PRESETS["small"]()
    nets: dict[str, nn.Module] = {
        name: RestorationNet(config.with_moe(moe)) for name, moe in arm_configs(experts, k).items()
    }
    _compare(result, "small.", nets, torch.rand(1, 3, side_px, side_px), device, repeats)


def _measure_layer(
    result: dict[str, Any], experts: int, k: int, device: torch.device, repeats: int, dim: int, tokens: int
) -> None:
    layers = {name: moe_ffn(name, dim, moe) for name, moe in arm_configs(experts, k).items()}
    _compare(result, f"layer.d{dim}.", layers, torch.randn(tokens, dim), device, repeats)


def _measure_share(result: dict[str, Any], device: torch.device, repeats: int, side_px: int) -> None:
    """FLOP/s of the preset "small" over those of a matrix product, which no network exceeds by much."""
    shape = (1, 3, side_px, side_px)
    net_flops = 2 * count_macs(lambda: RestorationNet(PRESETS["small"]()), shape)
    net = _ready(RestorationNet(PRESETS["small"]()), device)
    x = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device) for _ in range(2))
    seconds = time_interleaved({"net": lambda: net(x), "matmul": lambda: a @ b}, repeats, device)
    peak = [2 * MATMUL_SIDE**3 / s for s in seconds["matmul"]]
    shares = [net_flops / s / p for s, p in zip(seconds["net"], peak, strict=True)]
    _note(result, "flops_share_of_matmul_peak", shares)
    result["matmul_gflops"] = round(float(np.median(peak)) / 1e9, 1)
    result["small.gmacs_at_share_size"] = round(net_flops / 2e9, 3)
    result["seconds"]["share.net"] = float(np.median(seconds["net"]))


def _compare(
    result: dict[str, Any], prefix: str, nets: dict[str, nn.Module], x: Tensor, device: torch.device, repeats: int
) -> None:
    """Add our arm's size and time over each other arm's to the result."""
    x = x.to(device)
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    result[f"{prefix}params_ratio"] = round(sizes[OURS] / sizes["sparse_moe"], 4)
    arms: Arms = {name: _runner(_ready(net, device), x) for name, net in nets.items()}
    seconds = time_interleaved(arms, repeats, device)
    for name in nets:
        result["seconds"][prefix + name] = float(np.median(seconds[name]))
        if name != OURS:
            ratios = [ours / other for ours, other in zip(seconds[OURS], seconds[name], strict=True)]
            _note(result, f"{prefix}time_ratio_{name}", ratios)


def _note(result: dict[str, Any], key: str, values: list[float]) -> None:
    """Median over rounds, and its quartiles; a round's arms ran side by side, so their ratio is what is steady."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    result[key] = round(middle, 4)
    result["iqr"][key] = [round(low, 4), round(high, 4)]


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    for module in net.modules():
        if isinstance(module, MoELayer) and isinstance(module.dispatcher, Dense):
            module.dispatcher = LoopedDense()
    return net.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _runner(net: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: net(x)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
