"""`plan` in Triton: a stable counting sort of the slots by expert, without a word to the host.

Every block of slots counts its experts; a running sum over (expert, block) says where each block's slots of each expert
begin; every block then puts its slots there, in their order. Bitwise deterministic: nothing is added atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moevision.kernels.bodies import Unsupported
from moevision.kernels.triton import configs
from moevision.kernels.triton.common import MAX_EXPERTS, launch, power_of_two


@triton.jit
def one_hot_slots(index_ptr, slot, num_slots, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """(rows x experts) with a one where a slot names an expert; empty slots in column E, rows past the end nowhere."""
    valid = slot < num_slots
    index = tl.load(index_ptr + slot, mask=valid, other=-1)
    key = tl.where((index >= 0) & (index < E), index, E).to(tl.int32)
    return ((key[:, None] == tl.arange(0, BLOCK_E)[None, :]) & valid[:, None]).to(tl.int32)


@triton.jit
def count_slots_kernel(
    index_ptr, counts_ptr, num_slots, num_blocks, E: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """One program: how many of a block's slots name each expert.

    On chip: the block's one-hot experts. Read: index; written: counts (E + 1, blocks), the last row for empty slots.
    """
    block = tl.program_id(0)
    hits = one_hot_slots(index_ptr, block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK), num_slots, E, BLOCK_E)
    e = tl.arange(0, BLOCK_E)
    tl.store(counts_ptr + e.to(tl.int64) * num_blocks + block, tl.sum(hits, 0).to(tl.int64), mask=e <= E)


@triton.jit
def place_slots_kernel(
    index_ptr, start_ptr, order_ptr, num_slots, num_blocks, E: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """One program: a block's slots, written where its part of each expert's range begins.

    On chip: the block's one-hot experts and each slot's rank among those of its expert. Read: index and the starts
    (E + 1, blocks); written: order.
    """
    block = tl.program_id(0)
    slot = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    hits = one_hot_slots(index_ptr, slot, num_slots, E, BLOCK_E)
    e = tl.arange(0, BLOCK_E)
    start = tl.load(start_ptr + e.to(tl.int64) * num_blocks + block, mask=e <= E, other=0)
    place = (tl.cumsum(hits, 0) - 1).to(tl.int64) + start[None, :]
    tl.store(order_ptr + tl.sum(tl.where(hits > 0, place, 0), 1), slot, mask=slot < num_slots)


def plan(index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `reference.plan`."""
    if num_experts > MAX_EXPERTS:
        raise Unsupported(f"the kernels sort slots of at most {MAX_EXPERTS} experts, got {num_experts}")
    index_NK = index_NK.contiguous()
    num_slots, block_e = index_NK.shape[0] * index_NK.shape[1], power_of_two(num_experts + 1)
    blocks = configs.plan(block_e)
    num_blocks = triton.cdiv(num_slots, blocks.rows)
    if num_slots == 0:
        return index_NK.new_empty(0), index_NK.new_zeros(num_experts + 1)
    counts = torch.empty((num_experts + 1, num_blocks), dtype=torch.int64, device=index_NK.device)
    order_R = index_NK.new_empty(num_slots)
    constants = {"E": num_experts, "BLOCK": blocks.rows, "BLOCK_E": block_e}
    sizes = {"num_slots": num_slots, "num_blocks": num_blocks}
    launch(
        count_slots_kernel, (num_blocks,), {"index_ptr": index_NK, "counts_ptr": counts, **sizes}, constants,
        num_warps=blocks.warps,
    )  # fmt: skip
    starts = (counts.view(-1).cumsum(0) - counts.view(-1)).view(counts.shape)
    launch(
        place_slots_kernel, (num_blocks,), {"index_ptr": index_NK, "start_ptr": starts, "order_ptr": order_R, **sizes},
        constants, num_warps=blocks.warps,
    )  # fmt: skip
    return order_R, starts[:, 0].contiguous()
