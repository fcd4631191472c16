"""What the CPU bodies share: rows in tiles that fit the cache, activations that write into existing memory, and the way
from sorted slots back to items.

Shape legend as in `reference`; T is the number of rows of a tile, u the pre-activation.
"""

import numpy as np
import torch
from torch import Tensor

from moevision.kernels.cpu.workspace import Workspace

# A tile's hidden layer should stay in the second-level cache, but short tiles read the weights again and again: at a
# width of 384, tiles of 85 rows cost 20 % and of 512 rows 3 % over one product of all rows.
TILE_BYTES = 2097152
MIN_TILE_ROWS = 512


def tile_rows(hidden: int, item_bytes: int, most: int) -> int:
    """Rows of a tile whose hidden layer is `hidden` wide; no more than `most`, the longest run of rows there is."""
    return min(max(MIN_TILE_ROWS, TILE_BYTES // max(hidden * item_bytes, 1)), max(most, 1))


def activate_into(u_TH: Tensor, out_TH: Tensor, activation: str) -> Tensor:
    """`reference.activate`, written into `out_TH`, which may be `u_TH`."""
    if activation == "gelu":
        return torch.ops.aten.gelu.out(u_TH, out=out_TH)
    return torch.ops.aten.silu.out(u_TH, out=out_TH)


def activation_backward_into(dhidden_TH: Tensor, u_TH: Tensor, out_TH: Tensor, activation: str) -> Tensor:
    """dhidden * act'(u), written into `out_TH`, which may be `dhidden_TH`."""
    if activation == "gelu":
        return torch.ops.aten.gelu_backward.grad_input(dhidden_TH, u_TH, grad_input=out_TH)
    return torch.ops.aten.silu_backward.grad_input(dhidden_TH, u_TH, grad_input=out_TH)


def row_dot(a_TH: Tensor, b_TH: Tensor) -> Tensor:
    """<a_t, b_t> of every row; `b_TH` is used up."""
    return b_TH.mul_(a_TH).sum(1)


def items_of(slot_R: Tensor, slots_per_item: int) -> Tensor:
    """The item of each slot number n * K + k. A shift where it can be: integer division is slow."""
    if slots_per_item & (slots_per_item - 1) == 0:
        return slot_R if slots_per_item <= 1 else slot_R.bitwise_right_shift(slots_per_item.bit_length() - 1)
    return torch.div(slot_R, slots_per_item, rounding_mode="floor")


def inverse_of(order_R: Tensor) -> Tensor:
    """The place of each slot in `order_R`, a permutation."""
    if order_R.device.type != "cpu":
        return torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))
    inverse_R = np.empty(order_R.shape[0], dtype=np.int64)
    inverse_R[order_R.numpy()] = np.arange(order_R.shape[0])
    return torch.from_numpy(inverse_R)


def combine(y_RO: Tensor, inverse_R: Tensor, weight_NK: Tensor) -> Tensor:
    """y_n = sum_k weight_nk * y_{place of slot nk}: a bag of rows per item, in a fixed order of summation."""
    num_items, num_slots = weight_NK.shape
    if num_items == 0 or num_slots == 0 or y_RO.shape[1] == 0:
        return y_RO.new_zeros(num_items, y_RO.shape[1])
    first_N = torch.arange(0, inverse_R.shape[0], num_slots, device=y_RO.device)
    # Detached: where a gradient may be asked for, torch takes a slower body that keeps more.
    weight_R = weight_NK.detach().reshape(-1).to(y_RO.dtype)
    return torch.embedding_bag(y_RO.detach(), inverse_R, first_N, False, 0, False, weight_R)[0]


def with_ones(workspace: Workspace, rows: int, dim: int) -> Tensor:
    """A buffer for `rows` rows of x beside a column of ones, by which a product adds the bias itself."""
    x_TU = workspace.empty(rows, dim + 1)
    x_TU[:, -1] = 1
    return x_TU
