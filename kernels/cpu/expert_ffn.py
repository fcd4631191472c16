"""`expert_ffn` on the CPU, forward and backward.

What costs time at vision widths is not the matrix products but page faults, copies and the activation. So sorted rows
go through in tiles whose hidden layer stays in the cache and lives in a buffer kept from call to call, products go into
existing memory (`out=`), the activation works in place, and rows return to their items as bags (no scatter-add, hence
deterministic). A column of ones beside the gathered rows adds the first bias within the product, where `addmm` would
first write it into every row.

Shape legend as in `reference`; T is the number of rows of a tile, U = D + 1, u the pre-activation.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from moevision.kernels.cpu import tiles
from moevision.kernels.cpu.workspace import Workspace


def expert_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y (N, O) and, when `save`, the pre-activations (R, H) in sorted order (else an empty tensor)."""
    num_slots, hidden = order_R.shape[0], w1_EDH.shape[2]
    offsets = offsets_E1.tolist()
    rows = tiles.tile_rows(hidden, x_ND.element_size(), _longest(offsets))
    item_R = tiles.items_of(order_R, gate_NK.shape[1])
    w1_EUH = torch.cat((w1_EDH, b1_EH.unsqueeze(1)), 1)
    work = Workspace(x_ND)
    x_TU, hidden_TH = tiles.with_ones(work, rows, x_ND.shape[1]), work.empty(rows, hidden)
    y_RO = work.empty(num_slots, w2_EHO.shape[2])
    y_RO[offsets[-1] :] = 0
    u_RH = x_ND.new_empty((num_slots if save else 0, hidden))
    for expert, start, stop in _tiles(offsets, rows):
        tile = slice(0, stop - start)
        torch.index_select(x_ND, 0, item_R[start:stop], out=x_TU[tile, :-1])
        u_TH = torch.mm(x_TU[tile], w1_EUH[expert], out=u_RH[start:stop] if save else hidden_TH[tile])
        tiles.activate_into(u_TH, hidden_TH[tile], activation)
        torch.addmm(b2_EO[expert], hidden_TH[tile], w2_EHO[expert], out=y_RO[start:stop])
    return tiles.combine(y_RO, tiles.inverse_of(order_R), _gate_of_full(gate_NK, order_R, offsets[-1])), u_RH


def expert_ffn_backward(
    dy_NO: Tensor, x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, u_RH: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2, b2 and gate.

    The gate multiplies no row of the hidden layer: it scales rows of dy (for w2), rows of x (for w1, and through the
    column of ones for b1), and the bags in which dx returns to its items. dgate = <dy W2^T, h> + <dy, b2>.
    """
    num_slots, dim, hidden = order_R.shape[0], x_ND.shape[1], w1_EDH.shape[2]
    dy_NO, offsets = dy_NO.contiguous(), offsets_E1.tolist()
    rows = tiles.tile_rows(hidden, x_ND.element_size(), _longest(offsets))
    item_R = tiles.items_of(order_R, gate_NK.shape[1])
    gate_NK1 = _gate_of_full(gate_NK, order_R, offsets[-1])
    gate_R = gate_NK1.reshape(num_slots).index_select(0, order_R).to(x_ND.dtype)
    work = Workspace(x_ND)
    x_TU, dy_TO = work.empty(rows, dim + 1), work.empty(rows, w2_EHO.shape[2])
    hidden_TH, dhidden_TH = work.empty(rows, hidden), work.empty(rows, hidden)
    dgate_R, dx_RD = gate_R.new_zeros(num_slots), work.empty(num_slots, dim)
    dx_RD[offsets[-1] :] = 0
    dw1_EUH, dw2_EHO = x_ND.new_empty(w1_EDH.shape[0], dim + 1, hidden), x_ND.new_empty(w2_EHO.shape)
    db2_EO = x_ND.new_zeros(b2_EO.shape)
    for expert, (first, end) in enumerate(itertools.pairwise(offsets)):
        if first == end:
            dw1_EUH[expert], dw2_EHO[expert] = 0, 0
    for expert, start, stop in _tiles(offsets, rows):
        tile = slice(0, stop - start)
        x_tU, dy_tO, h_tH, dh_tH = x_TU[tile], dy_TO[tile], hidden_TH[tile], dhidden_TH[tile]
        gate_t1, u_tH = gate_R[start:stop].unsqueeze(1), u_RH[start:stop]
        torch.index_select(dy_NO, 0, item_R[start:stop], out=dy_tO)
        tiles.activate_into(u_tH, h_tH, activation)
        torch.mm(dy_tO, w2_EHO[expert].T, out=dh_tH)
        b2_dot_t = torch.mv(dy_tO, b2_EO[expert])
        dy_tO.mul_(gate_t1)
        # The first tile of an expert writes its gradients, the others add to them.
        kept = int(start > offsets[expert])
        torch.addmm(dw2_EHO[expert], h_tH.T, dy_tO, beta=kept, out=dw2_EHO[expert])
        db2_EO[expert] += dy_tO.sum(0)
        torch.add(tiles.row_dot(dh_tH, h_tH), b2_dot_t, out=dgate_R[start:stop])
        tiles.activation_backward_into(dh_tH, u_tH, dh_tH, activation)
        torch.mm(dh_tH, w1_EDH[expert].T, out=dx_RD[start:stop])
        torch.index_select(x_ND, 0, item_R[start:stop], out=x_tU[:, :-1])
        x_tU[:, :-1].mul_(gate_t1)
        x_tU[:, -1:] = gate_t1
        torch.addmm(dw1_EUH[expert], x_tU.T, dh_tH, beta=kept, out=dw1_EUH[expert])
    inverse_R = tiles.inverse_of(order_R)
    dx_ND = tiles.combine(dx_RD, inverse_R, gate_NK1)
    dgate_NK = dgate_R.index_select(0, inverse_R).view(gate_NK.shape).to(gate_NK.dtype)
    # Copies also of one expert, where the parts are contiguous as they lie: outputs must not share memory.
    dw1_EDH, db1_EH = dw1_EUH[:, :-1].clone(memory_format=torch.contiguous_format), dw1_EUH[:, -1].clone()
    return dx_ND, dw1_EDH, db1_EH, dw2_EHO, db2_EO, dgate_NK


def _longest(offsets: list[int]) -> int:
    return max((end - first for first, end in itertools.pairwise(offsets)), default=0)


def _tiles(offsets: list[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """(expert, first row, last row + 1) of every tile; no tile has rows of two experts."""
    for expert, (first, end) in enumerate(itertools.pairwise(offsets)):
        for start in range(first, end, rows):
            yield expert, start, min(start + rows, end)


def _gate_of_full(gate_NK: Tensor, order_R: Tensor, num_full: int) -> Tensor:
    """The gate with zeros in empty slots, whatever stood there."""
    if num_full == order_R.shape[0]:
        return gate_NK
    return gate_NK.contiguous().view(-1).index_fill(0, order_R[num_full:], 0).view(gate_NK.shape)
