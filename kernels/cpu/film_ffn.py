"""`film_ffn` on the CPU, forward and backward: tile by tile, with the modulations of a tile's items as bags of rows.

gamma and beta stand side by side in one table, so that one bag of k rows an item mixes both. The FFN runs in "passes":
one with the mixed modulation (`fuse="activations"`), or one per slot. Buffers are reused from tile to tile; a column of
ones adds the first bias within the product (see `expert_ffn`).

Shape legend as in `reference`; T is the number of rows of a tile, U = D + 1, u the pre-activation, m the modulated one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from moevision.kernels import reference
from moevision.kernels.cpu import tiles
from moevision.kernels.cpu.workspace import Workspace


class _Pass(NamedTuple):
    """One run of the FFN over a tile: the modulation of every row and the weight of the run's result."""

    slot: int
    gamma_TF: Tensor
    beta_TF: Tensor
    gate_T1: Tensor | None


class _Film(NamedTuple):
    """Modulations ready for bags: table_E2F = (gamma, beta), and gate and index with nothing left in empty slots."""

    table_E2F: Tensor
    gate_NK: Tensor
    index_NK: Tensor
    mixed: bool

    def passes(self, tile: slice) -> Iterator[_Pass]:
        """The runs over the items of `tile`."""
        gate_TK, index_TK = self.gate_NK[tile], self.index_NK[tile]
        width = self.table_E2F.shape[1] // 2
        if self.mixed:
            film_T2F = tiles.combine(self.table_E2F, index_TK.reshape(-1), gate_TK)
            yield _Pass(0, film_T2F[:, :width], film_T2F[:, width:], None)
            return
        for slot in range(index_TK.shape[1]):
            film_T2F = self.table_E2F.index_select(0, index_TK[:, slot])
            yield _Pass(slot, film_T2F[:, :width], film_T2F[:, width:], gate_TK[:, slot].unsqueeze(1))


def film_ffn(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y (N, O) and, when `save` and the FFN runs once, u before its modulation (N, H), else an empty tensor."""
    num_items, hidden = x_ND.shape[0], w1_DH.shape[1]
    film = _film(gamma_EF, beta_EF, gate_NK, index_NK, fuse, x_ND.dtype)
    keep = save and film.mixed
    rows = tiles.tile_rows(hidden, x_ND.element_size(), num_items)
    w1_UH = torch.cat((w1_DH, b1_H.unsqueeze(0)))
    y_NO, u_NH = x_ND.new_empty(num_items, w2_HO.shape[1]), x_ND.new_empty((num_items if keep else 0, hidden))
    work = Workspace(x_ND)
    z_TU, hidden_TH = tiles.with_ones(work, rows, x_ND.shape[1]), work.empty(rows, hidden)
    for start in range(0, num_items, rows):
        tile = slice(start, min(start + rows, num_items))
        z_tU, h_tH = z_TU[: tile.stop - start], hidden_TH[: tile.stop - start]
        u_tH = u_NH[tile] if keep else h_tH
        total_tH, gate_total_t1 = h_tH, None
        for one in film.passes(tile):
            _first_product(x_ND[tile], w1_UH, one, site, z_tU, u_tH)
            m_tH = u_tH if site == "input" else torch.addcmul(one.beta_TF, one.gamma_TF, u_tH, out=h_tH)
            tiles.activate_into(m_tH, h_tH, activation)
            if one.gate_T1 is None:
                continue
            if gate_total_t1 is None:
                total_tH, gate_total_t1 = h_tH * one.gate_T1, one.gate_T1
            else:
                total_tH.addcmul_(one.gate_T1, h_tH)
                gate_total_t1 = gate_total_t1 + one.gate_T1
        b2_tO = b2_O if gate_total_t1 is None else gate_total_t1 * b2_O
        torch.addmm(b2_tO, total_tH, w2_HO, out=y_NO[tile])
    if not film.mixed and index_NK.shape[1] == 0:
        y_NO.zero_()
    return y_NO, u_NH


def film_ffn_backward(
    dy_NO: Tensor, x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor,
    gamma_EF: Tensor, beta_EF: Tensor, gate_NK: Tensor, index_NK: Tensor, u_NH: Tensor,
    site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2, b2, gamma, beta, gate."""
    num_items, hidden = x_ND.shape[0], w1_DH.shape[1]
    dy_NO = dy_NO.contiguous()
    film = _film(gamma_EF, beta_EF, gate_NK, index_NK, fuse, x_ND.dtype)
    rows = tiles.tile_rows(hidden, x_ND.element_size(), num_items)
    w1_UH = torch.cat((w1_DH, b1_H.unsqueeze(0)))
    dx_ND, dw1_UH, dw2_HO = x_ND.new_empty(x_ND.shape), torch.zeros_like(w1_UH), x_ND.new_zeros(w2_HO.shape)
    db2_O, dtable_E2F = x_ND.new_zeros(b2_O.shape), torch.zeros_like(film.table_E2F)
    dgate_NK = x_ND.new_zeros(gate_NK.shape)
    work = Workspace(x_ND)
    z_TU, dm_TH, buffers_3TH = (
        tiles.with_ones(work, rows, x_ND.shape[1]), work.empty(rows, hidden), work.empty(3, rows, hidden)
    )  # fmt: skip
    for start in range(0, num_items, rows):
        tile = slice(start, min(start + rows, num_items))
        size = tile.stop - start
        z_tU, (h_tH, m_tH, dh_tH), dm_tH = z_TU[:size], buffers_3TH[:, :size].unbind(), dm_TH[:size]
        x_tD, dy_tO, dx_tD = x_ND[tile], dy_NO[tile], dx_ND[tile].zero_()
        torch.mm(dy_tO, w2_HO.T, out=dh_tH)
        for one in film.passes(tile):
            u_tH = u_NH[tile] if u_NH.shape[0] else _first_product(x_tD, w1_UH, one, site, z_tU, h_tH)
            if u_NH.shape[0]:
                _first_input(x_tD, one, site, z_tU)
            m_tH = u_tH if site == "input" else torch.addcmul(one.beta_TF, one.gamma_TF, u_tH, out=m_tH)
            tiles.activation_backward_into(dh_tH, m_tH, dm_tH, activation)
            if one.gate_T1 is not None:
                dm_tH.mul_(one.gate_T1)
            if site == "input":
                dz_tD = dm_tH @ w1_DH.T
                dw1_UH.addmm_(z_tU.T, dm_tH)
                dx_tD.addcmul_(dz_tD, one.gamma_TF)
                dfilm_t2F = torch.cat((dz_tD * x_tD, dz_tD), 1)
            else:
                dfilm_t2F = torch.cat((dm_tH * u_tH, dm_tH), 1)
                du_tH = dm_tH.mul_(one.gamma_TF)
                dw1_UH.addmm_(z_tU.T, du_tH)
                dx_tD.addmm_(du_tH, w1_DH.T)
            # u is not needed any more, so its buffer may take the hidden layer.
            tiles.activate_into(m_tH, h_tH, activation)
            if one.gate_T1 is not None:
                dgate_t = torch.addmv((dh_tH * h_tH).sum(1), dy_tO, b2_O)
                dgate_NK[tile, one.slot] = dgate_t
                h_tH.mul_(one.gate_T1)
            dw2_HO.addmm_(h_tH.T, dy_tO)
            _film_gradient(film, tile, one, dfilm_t2F, dtable_E2F, dgate_NK)
        weighted_tO = dy_tO if film.mixed else dy_tO * film.gate_NK[tile].sum(1, keepdim=True)
        db2_O += weighted_tO.sum(0)
    dgate_NK = dgate_NK.masked_fill_(reference.is_empty(index_NK, gamma_EF.shape[0]), 0).to(gate_NK.dtype)
    dgamma_EF, dbeta_EF = (half.contiguous() for half in dtable_E2F.chunk(2, 1))
    return dx_ND, dw1_UH[:-1].contiguous(), dw1_UH[-1].clone(), dw2_HO, db2_O, dgamma_EF, dbeta_EF, dgate_NK


def _film(
    gamma_EF: Tensor, beta_EF: Tensor, gate_NK: Tensor, index_NK: Tensor, fuse: str, dtype: torch.dtype
) -> _Film:  # fmt: skip
    empty_NK = reference.is_empty(index_NK, gamma_EF.shape[0])
    gate_NK, index_NK = gate_NK.masked_fill(empty_NK, 0).to(dtype), index_NK.masked_fill(empty_NK, 0)
    return _Film(torch.cat((gamma_EF, beta_EF), 1), gate_NK, index_NK, fuse == "activations")


def _first_input(x_TD: Tensor, one: _Pass, site: str, z_TU: Tensor) -> None:
    """The first product's left side beside its column of ones."""
    if site == "input":
        torch.addcmul(one.beta_TF, one.gamma_TF, x_TD, out=z_TU[:, :-1])
    else:
        z_TU[:, :-1] = x_TD


def _first_product(x_TD: Tensor, w1_UH: Tensor, one: _Pass, site: str, z_TU: Tensor, u_TH: Tensor) -> Tensor:
    _first_input(x_TD, one, site, z_TU)
    return torch.mm(z_TU, w1_UH, out=u_TH)


def _film_gradient(
    film: _Film, tile: slice, one: _Pass, dfilm_T2F: Tensor, dtable_E2F: Tensor, dgate_NK: Tensor
) -> None:  # fmt: skip
    """Adds the table's gradient of one pass; for a mixed pass also writes the gates' gradient."""
    num_experts = film.table_E2F.shape[0]
    if film.mixed:
        gate_TE = reference.dense_gate(film.gate_NK[tile], film.index_NK[tile], num_experts)
        dtable_E2F.addmm_(gate_TE.T, dfilm_T2F)
        dgate_NK[tile] = (dfilm_T2F @ film.table_E2F.T).gather(1, film.index_NK[tile])
        return
    one_hot_TE = torch.nn.functional.one_hot(film.index_NK[tile, one.slot], num_experts).to(dfilm_T2F.dtype)
    dtable_E2F.addmm_(one_hot_TE.T, dfilm_T2F)
