"""`moevision bench kernels`: the operators against a dense FFN of equal products and against other ways to compute.

Only ratios within one run mean something; `bench_clock` says how they are taken, `bench_cases` what is compared.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from moevision.kernels import bench_cases, bench_clock, roofline
from moevision.kernels.bench_cases import Case, LayerBuilder, Run, Variants
from moevision.kernels.bench_clock import Clock, Effort

OPS = tuple(bench_cases.BUILDERS)
FULL = Effort(budget_s=3.0, min_rounds=7, max_rounds=60, slow_rounds=3)
QUICK = Effort(budget_s=0.25, min_rounds=5, max_rounds=25, slow_rounds=1)
SLOW = 5.0
"""Times the dense FFN or ours, whichever is slower: from there on a variant counts as slow."""
REASON_CHARS = 160


def bench_kernels(
    *, quick: bool = False, wanted: Sequence[str] = OPS, threads: int = 1, device: torch.device | None = None,
    seed: int = 0, build_layer: LayerBuilder | None = None, say: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every case; some twenty minutes on one core, `quick` about one.

    Args:
        quick: two small sizes in few rounds; its ratios are rough.
        wanted: operators, of OPS.
        threads: of torch, while this runs.
        device: CPU (default) or CUDA.
        seed: of inputs and routing.
        build_layer: makes our whole layer for the operator "layer"; kernels know nothing of `moevision.moe`.
        say: called with one line before each case.

    Returns:
        JSON-serialisable: `machine`, `settings` and `cases`. A case has op, pass, dtype, size (N, D, H, E, K, routing),
        options, `ratio_to_dense` (ours over one FFN on N * K rows; None where either cannot run), in bf16
        `ratio_to_fp32` (our fp32 time over our bf16 time), `dense_gflops`, `roofline_h100_us` (the least an H100 SXM
        needs in this type; None without a formula), and `variants`: by name `ratio_to_dense`, `cpu_ms`, `wall_ms`,
        `rounds` and `page_faults` (on CUDA `gpu_ms`), or `skipped`: why it cannot run. On CUDA also
        `percent_of_roofline_h100`, and `percent_of_measured`, of a bound from this device's own copy and matmul rates.

    Raises:
        ValueError: an unknown operator, or another kind of device.
    """
    device = device or torch.device("cpu")
    unknown = sorted(set(wanted) - set(OPS))
    if unknown:
        raise ValueError(f"there is no operator {', '.join(unknown)}; choose from {', '.join(OPS)}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"kernels are measured on cpu or cuda, not on {device.type}")
    cases = list(bench_cases.list_cases(quick=quick, wanted=tuple(wanted)))
    results = []
    with bench_clock.torch_threads(threads):
        bench_clock.prime_allocator()
        clock = Clock(device, threads)
        peak = roofline.measured_peak(device, clock.seconds_of)
        for number, case in enumerate(cases, 1):
            if say is not None:
                say(f"{number}/{len(cases)} {case.title()}")
            variants = bench_cases.build(case, device=device, seed=seed, build_layer=build_layer)
            results.append(_measure(case, variants, clock, QUICK if quick else FULL, peak))
            for name, variant in results[-1]["variants"].items():
                if say is not None and "skipped" in variant:
                    say(f"  {name} cannot run: {variant['skipped']}")
        machine = machine_facts(device, peak)
    settings = {"quick": quick, "threads": threads, "seed": seed, "ratio_of": clock.ratio_of}
    return {"machine": machine, "settings": settings, "cases": results}


def _measure(case: Case, variants: Variants, clock: Clock, effort: Effort, peak: roofline.Peak) -> dict[str, Any]:
    runs, slow, skipped = _try(case, variants)
    times = clock.time_all(runs, slow, effort)
    dense, ours, ours_fp32 = (times.get(name, {}).get(clock.ratio_of) for name in ("dense", "ours", "ours_fp32"))
    result: dict[str, Any] = {
        "op": case.op,
        "pass": case.passes,
        "dtype": case.dtype,
        "size": {**case.size.letters(), "routing": case.routing},
        "options": case.options,
        "ratio_to_dense": _ratio(ours, dense),
    }
    if case.dtype == "bf16":
        result["ratio_to_fp32"] = _ratio(ours_fp32, ours)
    dense_flop = 4 * case.size.rows * case.size.dim * case.size.hidden * (1 if case.passes == "forward" else 3)
    result["dense_gflops"] = dense and round(dense_flop / dense / 1e6, 1)
    bound_us = _bound_us(case, roofline.H100_SXM)
    result["roofline_h100_us"] = bound_us and round(bound_us, 3)
    if clock.device.type == "cuda":
        for key, bound in (("roofline_h100", bound_us), ("measured", _bound_us(case, peak))):
            result[f"percent_of_{key}"] = round(bound / ours / 10, 2) if bound and ours else None
    result["variants"] = {
        name: {"skipped": skipped[name]}
        if name in skipped
        else {"ratio_to_dense": _ratio(times[name][clock.ratio_of], dense), **times[name]}
        for name in variants
    }
    return result


def _try(case: Case, variants: Variants) -> tuple[dict[str, Run], set[str], dict[str, str]]:
    """Run each variant once: those that can, the slow ones among them, and why the others cannot."""
    runs: dict[str, Run] = {}
    took_s: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name, variant in variants.items():
        if isinstance(variant, str):
            skipped[name] = variant
            continue
        try:
            run = variant.runner(case.passes)
            started = time.perf_counter()
            run()
        except Exception as error:  # also other people's code, at sizes and types it may not know
            skipped[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON_CHARS]
        else:
            runs[name], took_s[name] = run, time.perf_counter() - started
    limit_s = SLOW * max(took_s.get("dense", 0.0), took_s.get("ours", 0.0))
    slow = {name for name in runs if took_s[name] > limit_s and not name.startswith("ours")}
    return runs, slow, skipped


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return round(numerator / denominator, 4) if numerator and denominator else None


def _bound_us(case: Case, peak: roofline.Peak) -> float | None:
    """The least time of a case; None where there is no formula."""
    parts = {"film_ffn": [f"film_ffn_{case.options.get('site')}"], "layer": ["route", "expert_ffn"]}
    operators = parts.get(case.op, [case.op])
    if not all(roofline.has_formula(operator) for operator in operators):
        return None
    directions = (False,) if case.passes == "forward" else (False, True)
    return 1e6 * sum(
        roofline.bound_s(operator, case.size, dtype=case.dtype, backward=backward, peak=peak)
        for operator in operators
        for backward in directions
    )


def machine_facts(device: torch.device, peak: roofline.Peak) -> dict[str, Any]:
    """What the ratios depend on besides the code; rates by the same clock."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "features": sorted(name for name, present in features.items() if present is True),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "copy_gb_per_s": round(peak.bytes_per_s / 1e9, 1),
        "matmul_gflops": {name: round(rate / 1e9, 1) for name, rate in peak.flops_per_s.items()},
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "MOEVISION_BACKEND"))
        },
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
