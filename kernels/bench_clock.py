"""How `moevision bench kernels` takes times.

On a CPU the variants take turns, so that load and frequency changes hit all alike, and the lower quartile over rounds
counts. Right before a timed run the same variant runs untimed (unless it is slow anyway): without that, a variant
would pay for the state in which the one before left the caches and the allocator. Page faults can double the time of a
plain FFN, so they are reported: glibc returns large blocks to the system on every free, and the next one starts anew.
`MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=1000000000` in the environment makes it keep everything.

With one thread the clock is the thread's own CPU time, which other processes hardly touch; torch runs the backward pass
of CPU tensors in the calling thread, so that clock sees it. With more threads it is wall time.

On CUDA each variant is timed alone by `triton.testing.do_bench` (median, level-2 cache flushed).
"""

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Lap = tuple[int, int, int]
"""CPU ns, wall ns, page faults."""
PRIMING_BYTES = 31 * 2**20


@dataclass(frozen=True)
class Effort:
    """How long a case is measured: rounds until `budget_s` are spent, but no fewer and no more than these.

    Variants far slower than the dense FFN take part in the first `slow_rounds` only, without an untimed run before:
    their ratio is clear.
    """

    budget_s: float
    min_rounds: int
    max_rounds: int
    slow_rounds: int


class Clock:
    """Times runs on one device; `ratio_of` names the figure to take ratios of: cpu_ms, wall_ms or gpu_ms."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self.ratio_of = "gpu_ms" if device.type == "cuda" else "cpu_ms" if threads == 1 else "wall_ms"
        self._cpu_ns = time.thread_time_ns if threads == 1 else time.process_time_ns

    def time_all(
        self, runs: Mapping[str, Callable[[], object]], slow: Collection[str], effort: Effort
    ) -> dict[str, dict[str, float]]:
        """Milliseconds a run by clock; on a CPU also rounds, and page faults a run where the system tells.

        Args:
            runs: by name; every one has run before.
            slow: the names that get `effort.slow_rounds`.
        """
        if self.device.type == "cuda":
            return {name: {"gpu_ms": 1e3 * self.seconds_of(run)} for name, run in runs.items()}
        result = {}
        for name, laps in self._take_turns(runs, slow, effort).items():
            cpu_ns, wall_ns, faults = np.quantile(np.array(laps), 0.25, axis=0).tolist()
            times = {"cpu_ms": round(cpu_ns / 1e6, 4), "wall_ms": round(wall_ns / 1e6, 4)}
            result[name] = {**times, "rounds": len(laps), "page_faults": round(faults)}
        return result

    def seconds_of(self, run: Callable[[], object]) -> float:
        """Of one call on its own, by the clock that ratios are taken of."""
        if self.device.type == "cuda":
            from triton.testing import do_bench

            return float(do_bench(run, return_mode="median")) / 1e3
        run()
        laps = [self._lap(run) for _ in range(7)]
        return float(np.quantile([lap[self.ratio_of == "wall_ms"] for lap in laps], 0.25)) / 1e9

    def _take_turns(
        self, runs: Mapping[str, Callable[[], object]], slow: Collection[str], effort: Effort
    ) -> dict[str, list[Lap]]:
        """Every variant's laps; each round begins with another variant."""
        names = list(runs)
        laps: dict[str, list[Lap]] = {name: [] for name in names}
        with _no_collector():
            started = time.monotonic()
            for done in range(effort.max_rounds):
                if done >= effort.min_rounds and time.monotonic() - started > effort.budget_s:
                    break
                first = done % len(names)
                for name in names[first:] + names[:first]:
                    if name not in slow:
                        runs[name]()
                    elif done >= effort.slow_rounds:
                        continue
                    laps[name].append(self._lap(runs[name]))
        return laps

    def _lap(self, run: Callable[[], object]) -> Lap:
        faults, wall, cpu = _page_faults(), time.perf_counter_ns(), self._cpu_ns()
        run()
        return self._cpu_ns() - cpu, time.perf_counter_ns() - wall, _page_faults() - faults


def prime_allocator() -> None:
    """Make glibc's thresholds what they are in a process that has run a network, whatever ran before.

    They adapt to the largest block freed so far, up to 32 MiB; until then even small buffers come from the system anew.
    """
    torch.ones(PRIMING_BYTES, dtype=torch.uint8)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch with that many threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _page_faults() -> int:
    """Of this thread so far, those that needed no disk; 0 where the system does not tell (it does on Linux)."""
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    except (ImportError, AttributeError):
        return 0


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's cycle collector, which would interrupt whichever variant is running."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
