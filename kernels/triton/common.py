"""What the kernels share: products that are right in the interpreter too, activations, and where a row tile lies.

Rules of the kernels (each has bitten somebody): everything loaded is made float32 before arithmetic, products excepted;
sizes in loops are compile-time constants, strides and item counts are not; offsets into tensors are int64; no float
atomics, so results are bitwise deterministic; every masked load says what stands outside.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Read when triton is first imported, as the decorator itself does.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# Above this width the fused kernels' tiles do not fit a program.
FUSED_WIDTH = 256
# One program compares its items with all experts at once.
MAX_EXPERTS = 256


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. The interpreter multiplies bfloat16 as bit patterns, so there both are widened first."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    """gelu (exact) or silu of a float32 block."""
    if ACTIVATION == "gelu":
        return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    return u * tl.sigmoid(u)


@triton.jit
def activation_slope(u, ACTIVATION: tl.constexpr):
    """The activation's derivative at a float32 block."""
    if ACTIVATION == "gelu":
        return 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    s = tl.sigmoid(u)
    return s * (1.0 + u * (1.0 - s))


@triton.jit
def locate_tile(offsets_ptr, tile, num_rows, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr):
    """(expert, first row, last row + 1) of a row tile, read from the plan's offsets: no tile has rows of two experts.

    Expert E stands for the empty slots at the end; an expert of -1 says that there is no such tile. Every program finds
    its own tile in E + 1 numbers, so the host never waits for the counts; there are at most `num_tiles` tiles.
    """
    e = tl.arange(0, BLOCK_E)
    first = tl.load(offsets_ptr + e, mask=e <= E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    end = tl.where(e == E, num_rows, end)
    tiles = tl.where(e <= E, (end - first + BLOCK_R - 1) // BLOCK_R, 0)
    after = tl.cumsum(tiles, 0)
    expert = tl.sum((after <= tile).to(tl.int32), 0)
    mine = e == expert
    start = tl.sum(tl.where(mine, first + (tile - (after - tiles)) * BLOCK_R, 0), 0)
    stop = tl.sum(tl.where(mine, end, 0), 0)
    return tl.where(expert <= E, expert, -1), start, stop


def num_tiles(num_rows: int, num_experts: int, block: int) -> int:
    """The most row tiles there can be: a grid known without looking at the routing."""
    return triton.cdiv(num_rows, block) + num_experts + 1


def power_of_two(size: int, least: int = 16) -> int:
    """The block size that holds `size`; matrix instructions want at least 16."""
    return max(triton.next_power_of_2(size), least)


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: exactly, unless torch was told that TensorFloat-32 will do."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    return "tf32"


def unit_stride(t: Tensor) -> Tensor:
    """`t` itself if its last dimension is contiguous, else a copy: kernels take row strides only."""
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch: what ahead-of-time compilation needs."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]


_recording: list[Launch] | None = None


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, kernels are not run but written down; with fake tensors the launchers then need no device at all."""
    global _recording
    _recording, before = [], _recording
    try:
        yield _recording
    finally:
        _recording = before


def recording() -> bool:
    """Whether launches are only written down."""
    return _recording is not None


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], constants: dict[str, Any], *,
    num_warps: int, num_stages: int = 2,
) -> None:  # fmt: skip
    """Run `kernel` on `grid`, nothing for an empty one. `arguments` by name at run time, `constants` compiled in."""
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if _recording is not None:
        _recording.append(Launch(kernel, arguments, constants, options))
    elif all(grid):
        kernel[grid](**arguments, **constants, **options)


def kernel_name(kernel: Callable[..., Any]) -> str:
    """A kernel's name, whether it is compiled or interpreted."""
    return str(getattr(kernel, "fn", kernel).__name__)
