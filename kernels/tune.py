"""Measures block sizes of the Triton kernels on this device: the work behind `moevision tune`.

Forward and backward passes of the operators run at vision sizes; for every choice the launchers make there, a few
others are timed in its place. One that fails, or gives other numbers than the formula's choice, is passed over.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moevision import kernels

# (N, D, H, E, K) of `moevision bench kernels`, one for each width.
SIZES = ((16384, 48, 96, 8, 2), (65536, 32, 64, 8, 2), (65536, 64, 256, 16, 2), (16384, 96, 384, 16, 2))
WIDE_SIZES = ((16384, 192, 768, 16, 2), (16384, 256, 1024, 8, 2))
MOST_CANDIDATES = 12


def tune(
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32), *, device: str = "cuda",
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Time every choice of block sizes at `SIZES` and write the best ones to this device's cache file.

    Args:
        dtypes: types to tune for.
        report: called with one line a choice.

    Returns:
        The file written, and per choice {"formula_ms", "best_ms", "blocks"}.

    Raises:
        RuntimeError: there is no CUDA device, or triton is not installed.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("tuning needs a CUDA device; on a CPU there are no block sizes to choose")
    from moevision.kernels.triton import tuned

    best: dict[str, Any] = {}
    for dtype in dtypes:
        for size in (*SIZES, *WIDE_SIZES):
            for run in workloads(size, dtype, device):
                for key, result in choose(run, milliseconds).items():
                    if key not in best:
                        best[key] = result
                        report(f"{key}: {result['formula_ms']:.3f} ms by formula, {result['best_ms']:.3f} ms at best")
    path = tuned.cache_file(torch.cuda.get_device_name())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(tuned.dump({key: result["blocks"] for key, result in best.items()}), "utf-8")
    temporary.replace(path)
    return path, best


def choose(run: Callable[[], list[Tensor]], clock: Callable[[Callable[[], Any]], float]) -> dict[str, Any]:
    """For every choice of blocks that `run` asks for, the fastest candidate that gives the same numbers.

    Args:
        run: launches kernels and returns what they computed.
        clock: milliseconds of a callable.
    """
    from moevision.kernels.triton import tuned

    with tuned.asked() as choices:
        expected = run()
    results = {}
    for key, formula in choices.items():
        best, formula_ms = formula, clock(run)
        best_ms = formula_ms
        for blocks in candidates(formula):
            with tuned.forced(key, blocks):
                # A candidate may need more of the device than it has, in ways only launching shows.
                try:
                    same = all(_close(a, b) for a, b in zip(run(), expected, strict=True))
                    candidate_ms = clock(run) if same else float("inf")
                except Exception:
                    continue
            if candidate_ms < best_ms:
                best, best_ms = blocks, candidate_ms
        results[key] = {"formula_ms": formula_ms, "best_ms": best_ms, "blocks": best}
    return results


def candidates(formula: Any) -> Iterator[Any]:
    """At most `MOST_CANDIDATES` neighbours of a choice, the nearest first, itself not among them."""
    found = []
    for rows in (formula.rows, formula.rows * 2, formula.rows // 2):
        for inner in (formula.inner, formula.inner * 2):
            for warps in (formula.warps, 12 - formula.warps):
                for stages in (formula.stages, formula.stages + 1):
                    blocks = replace(formula, rows=rows, inner=inner, warps=warps, stages=stages)
                    changes = (rows != formula.rows, inner != formula.inner, warps != formula.warps)
                    if 16 <= rows <= 128 and inner <= 128 and warps in (4, 8) and blocks != formula:
                        found.append((sum(changes) + stages - formula.stages, blocks))
    nearest = sorted(found, key=lambda one: one[0])
    yield from (blocks for _, blocks in nearest[:MOST_CANDIDATES])


def workloads(
    size: tuple[int, int, int, int, int], dtype: torch.dtype, device: str
) -> Iterator[Callable[[], list[Tensor]]]:  # fmt: skip
    """Forward and backward of a routed FFN layer and of a FiLM layer at one size."""
    num_items, dim, hidden, experts, slots = size
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * dim**-0.5).to(device, dtype).requires_grad_()

    x, router = make(num_items, dim), make(experts, dim)
    bank = make(experts, dim, hidden), make(experts, hidden), make(experts, hidden, dim), make(experts, dim)
    shared = make(dim, hidden), make(hidden), make(hidden, dim), make(dim)
    film = make(experts, dim), make(experts, dim)

    def routed() -> list[Tensor]:
        gate, index, _, _ = kernels.route(x, router, slots)
        y = kernels.expert_ffn(x, *bank, gate, *kernels.plan(index, experts))
        return [y, *torch.autograd.grad(y, (x, router, *bank), torch.ones_like(y))]

    def modulated() -> list[Tensor]:
        gate, index, _, _ = kernels.route(x, router, slots)
        y = kernels.film_ffn(x, *shared, *film, gate, index)
        return [y, *torch.autograd.grad(y, (x, router, *shared, *film), torch.ones_like(y))]

    yield routed
    yield modulated


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time on the device, its cache cleared between runs."""
    import triton

    return float(triton.testing.do_bench(run, warmup=25, rep=100, return_mode="median"))


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-4 if a.dtype == torch.float32 else 2e-2
    return bool((a.double() - b.double()).norm() <= tolerance * b.double().norm().clamp(min=1e-9))
