"""Block sizes of the kernels, by formula: what fits the registers and the shared memory of every supported device.

The formulas come from ahead-of-time compilation (tests/kernels/budgets.json has what every packaged choice takes);
which of the fitting choices is fastest only a device can tell: `moevision tune` measures there and `tuned` remembers.
"""

import torch

from moevision.kernels.triton.tuned import Blocks as Blocks
from moevision.kernels.triton.tuned import tunable


@tunable
def expert_ffn(width: int, dtype: torch.dtype, rows_per_expert: int) -> Blocks:
    """The fused forward kernel; `width` is the larger of D and O, rows an expert are rounded up to a power of two."""
    rows = 16 if rows_per_expert <= 16 else 32 if rows_per_expert <= 32 else 64
    if dtype == torch.float32:
        if width > 128:
            return Blocks(16, 16, 256, 4, 2)
        return Blocks(16, 32, 256, 8, 1) if rows == 16 else Blocks(32, 16, 256, 8, 1)
    if width <= 64:
        return Blocks(rows, 64, 256, 8 if rows == 64 else 4, 2)
    return Blocks(rows, 32, 256, 4 if width <= 128 else 8, 2)


@tunable
def expert_ffn_backward(width: int, dtype: torch.dtype) -> Blocks:
    """The kernel of du, dgate and dx; above 256 it goes through dy in blocks of `columns`."""
    if width > 256:
        return Blocks(32, 32, 64, 4, 1 if dtype == torch.float32 else 2)
    if dtype == torch.float32:
        return Blocks(32, 32, 256, 4 if width <= 64 else 8, 1)
    return Blocks(64 if width <= 64 else 32 if width <= 128 else 16, 32, 256, 4, 1)


@tunable
def grouped_gemm(columns: int, dtype: torch.dtype) -> Blocks:
    """Grouped products of the wide path."""
    if dtype == torch.float32:
        return Blocks(64, 32, 64, 4, 1)
    return Blocks(64, 32, 128, 8, 3) if columns > 64 else Blocks(64, 32, 64, 4, 3)


@tunable
def weight_gradient(m_size: int, n_size: int, dtype: torch.dtype) -> Blocks:
    """Products over an expert's rows; `inner` counts rows of the result."""
    rows_m, columns = 64 if m_size > 32 else 32, 64 if n_size > 32 else 32
    if dtype == torch.float32:
        return Blocks(32, rows_m, columns, 8 if rows_m == columns == 64 else 4, 1)
    return Blocks(32, rows_m, columns, 4, 3)


def row_splits(num_rows: int, num_experts: int, cells: int) -> int:
    """In how many parts an expert's rows are summed, so that there are programs for every multiprocessor."""
    wanted = -(-264 // max(num_experts * cells, 1))
    return max(1, min(wanted, num_rows // (256 * max(num_experts, 1)), 32))


@tunable
def route(block_e: int) -> Blocks:
    """The router, forward and the logits' gradients; `inner` steps through the width.

    `block_e`, a power of two, holds all experts.
    """
    if block_e == 16:
        return Blocks(32, 32, block_e, 4, 1)
    # 256 experts take all the registers there are; with 8 warps in place of 4 no more would run at once.
    return Blocks(max(2048 // block_e, 16), 16, block_e, 4, 1)


def moment_gradient() -> Blocks:
    """The gradients of what the router multiplies; `inner` steps through the terms."""
    return Blocks(32, 32, 32, 4, 1)


def moment_parts(num_terms: int, cells: int) -> int:
    """In how many parts such a gradient is summed, so that there are programs for every multiprocessor."""
    return max(1, min(-(-264 // max(cells, 1)), num_terms // 256))


@tunable
def film_ffn(site: str, fuse: str, width: int, dtype: torch.dtype) -> Blocks:
    """The FiLM forward kernel; `width` is the larger of D and O."""
    if dtype == torch.float32:
        return Blocks(32 if width <= 128 else 16, 16 if 64 < width <= 128 else 32, 256, 8, 1)
    if fuse == "outputs" and width > 128:
        return Blocks(32, 32, 256, 8, 2 if site == "input" else 1)
    few = width <= 64 and (site, fuse) == ("input", "activations")
    return Blocks(64, 32, 256, 4 if few else 8, 2)


@tunable
def film_ffn_backward(site: str, fuse: str, width: int, dtype: torch.dtype) -> Blocks:
    """The FiLM kernel of all gradients that belong to rows. Under a hidden site there is more to keep for each of them,
    218 registers at a width of 128; with 8 warps in place of 4 no more would run at once.
    """
    if dtype == torch.float32:
        return Blocks(32, 16, 256, 8, 1) if width <= 64 else Blocks(16, 32, 256, 4, 1)
    return Blocks(32, 32 if site == "input" else 16, 256, 4 if width <= 128 else 8, 2)


@tunable
def grouped_conv(positions: int) -> Blocks:
    """Convolutions of windows with so many `positions`: `rows` are channels, `columns` positions."""
    columns = min(max(1 << (max(positions, 1) - 1).bit_length(), 16), 256)
    return Blocks(1024 // columns, 0, columns, 4, 1)


@tunable
def segment_sum(num_experts: int, width: int, dtype: torch.dtype) -> Blocks:
    """Sums of rows by expert: `inner` counts experts, `columns` features."""
    experts = 16 if num_experts <= 16 else 32 if num_experts <= 32 else 64
    return Blocks(32, experts, 64 if width > 32 else 32, 4, 1 if dtype == torch.float32 else 3)


def segment_parts(num_rows: int, cells: int) -> int:
    """In how many parts the rows are summed: programs for every multiprocessor, each with several blocks of rows."""
    return max(1, min(-(-264 // max(cells, 1)), num_rows // 128, 256))


@tunable
def plan(block_e: int) -> Blocks:
    """Blocks of slots whose one-hot experts fit the registers; `block_e`, a power of two, holds all experts."""
    return Blocks(max(16, min(8192 // block_e, 256)), 1, block_e, 4, 1)


@tunable
def quant_linear(columns: int, dtype: torch.dtype) -> Blocks:
    """Products with weights unpacked on the way; `inner` divides the int4 groups of 64."""
    exact = dtype == torch.float32
    return Blocks(32 if exact else 64, 32, 64 if columns > 32 else 32, 4, 1 if exact else 2)
