"""Tuned CPU bodies, forward and backward.

What costs time at vision widths is not the matrix products but page faults, copies and the activation. So rows are
processed in tiles whose hidden layer fits the cache and lives in one reused buffer, products go into existing memory
(`out=`), the activation works in place, sorted rows return to their items by the inverse permutation (no scatter-add,
hence deterministic), and each backward is one operator that recomputes the cheap parts.

Shape legend as in `reference`; T is the number of rows of a tile, u the pre-activation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.kernels import reference

# A tile's hidden layer should stay in the shared cache, but short tiles read the weights again and again: at a width of
# 384, tiles of 85 rows cost 20 % and of 512 rows 3 % over one product of all rows.
TILE_BYTES = 2 * 1024 * 1024
TILE_ROWS = 512


def route(x_ND: Tensor, w_ED: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.route`; a partial sort, exact about ties."""
    logits_NE = reference.router_logits(x_ND, w_ED, variance_scale)
    index_NK = _top_k_lowest_first(logits_NE, k)
    gate_NK = logits_NE.gather(1, index_NK).softmax(dim=1)
    counts_E = torch.bincount(index_NK.view(-1), minlength=w_ED.shape[0])
    return gate_NK, index_NK, counts_E, logits_NE.softmax(dim=1)


def _top_k_lowest_first(logits_NE: Tensor, k: int) -> Tensor:
    # torch.topk breaks ties arbitrarily. Ties are rare: only the rows that have one (or a NaN) pay for a stable sort.
    num_experts = logits_NE.shape[1]
    value_NK, index_NK = logits_NE.topk(min(k + 1, num_experts), dim=1)
    unclear_N = ~(value_NK[:, 1:] < value_NK[:, :-1]).all(dim=1)
    index_NK = index_NK[:, :k].contiguous()
    if unclear_N.any():
        index_NK[unclear_N] = reference.top_k(logits_NE[unclear_N], k)
    return index_NK


def route_backward(
    dgate_NK: Tensor, dprobs_NE: Tensor, x_ND: Tensor, w_ED: Tensor,
    gate_NK: Tensor, index_NK: Tensor, probs_NE: Tensor, variance_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and w; both softmaxes, then the probit scaling, then the projection."""
    x, w = x_ND.to(gate_NK.dtype), w_ED.to(gate_NK.dtype)
    dz_NE = probs_NE * (dprobs_NE - (probs_NE * dprobs_NE).sum(1, keepdim=True))
    dz_NE.scatter_add_(1, index_NK, gate_NK * (dgate_NK - (gate_NK * dgate_NK).sum(1, keepdim=True)))
    if variance_scale == 0.0:
        return (dz_NE @ w).to(x_ND.dtype), (dz_NE.T @ x).to(w_ED.dtype)
    x2, w2 = x.square(), w.square()
    scale_NE = torch.rsqrt(1 + reference.PROBIT_SCALE * variance_scale * (x2 @ w2.T))
    dmean_NE = dz_NE * scale_NE
    dvariance_NE = -0.5 * reference.PROBIT_SCALE * variance_scale * dmean_NE * (x @ w.T) * scale_NE.square()
    dx = dmean_NE @ w + 2 * x * (dvariance_NE @ w2)
    dw = dmean_NE.T @ x + 2 * w * (dvariance_NE.T @ x2)
    return dx.to(x_ND.dtype), dw.to(w_ED.dtype)


def expert_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y (N, D) and, when `save`, the pre-activations (R, H) in sorted order (else an empty tensor)."""
    num_slots, (num_experts, _, hidden) = order_R.shape[0], w1_EDH.shape
    offsets = offsets_E1.tolist()
    item_R = torch.div(order_R, max(gate_NK.shape[1], 1), rounding_mode="floor")
    y_RD = x_ND.new_empty(num_slots, w2_EHD.shape[2])
    y_RD[offsets[-1] :] = 0
    u_RH = x_ND.new_empty((num_slots if save else 0, hidden))
    rows = _tile_rows(hidden, x_ND.element_size())
    scratch_TH = x_ND.new_empty(rows, hidden)
    for expert in range(num_experts):
        for start in range(offsets[expert], offsets[expert + 1], rows):
            stop = min(start + rows, offsets[expert + 1])
            u_TH = u_RH[start:stop] if save else scratch_TH[: stop - start]
            torch.addmm(b1_EH[expert], x_ND.index_select(0, item_R[start:stop]), w1_EDH[expert], out=u_TH)
            hidden_TH = _activate_into(u_TH, scratch_TH[: stop - start], activation)
            torch.addmm(b2_ED[expert], hidden_TH, w2_EHD[expert], out=y_RD[start:stop])
    return _combine(y_RD, gate_NK, order_R), u_RH


def expert_ffn_backward(
    dy_ND: Tensor, x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor,
    gate_NK: Tensor, order_R: Tensor, offsets_E1: Tensor, u_RH: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2, b2 and gate. The gate's needs no expert output: dgate = <dy W2^T, h> + <dy, b2>."""
    num_items, num_slots = gate_NK.shape
    dy_ND, offsets = dy_ND.contiguous(), offsets_E1.tolist()
    item_R = torch.div(order_R, max(num_slots, 1), rounding_mode="floor")
    gate_R = gate_NK.reshape(num_items * num_slots).index_select(0, order_R).to(x_ND.dtype)
    dgate_R, dx_RD = torch.zeros_like(gate_R), x_ND.new_zeros(order_R.shape[0], x_ND.shape[1])
    dw1_EDH, db1_EH, dw2_EHD, db2_ED = (_zeros_like_contiguous(t) for t in (w1_EDH, b1_EH, w2_EHD, b2_ED))
    for expert in range(w1_EDH.shape[0]):
        rows = slice(offsets[expert], offsets[expert + 1])
        if rows.start == rows.stop:
            continue
        x_TD, dy_TD, u_TH = x_ND.index_select(0, item_R[rows]), dy_ND.index_select(0, item_R[rows]), u_RH[rows]
        hidden_TH = reference.activate(u_TH, activation)
        dhidden_TH = dy_TD @ w2_EHD[expert].T
        dgate_R[rows] = (dhidden_TH * hidden_TH).sum(1) + dy_TD @ b2_ED[expert]
        gated_dy_TD = dy_TD.mul_(gate_R[rows, None])
        torch.mm(hidden_TH.T, gated_dy_TD, out=dw2_EHD[expert])
        torch.sum(gated_dy_TD, 0, out=db2_ED[expert])
        du_TH = _activation_backward(dhidden_TH.mul_(gate_R[rows, None]), u_TH, activation)
        torch.mm(x_TD.T, du_TH, out=dw1_EDH[expert])
        torch.sum(du_TH, 0, out=db1_EH[expert])
        torch.mm(du_TH, w1_EDH[expert].T, out=dx_RD[rows])
    inverse_R = _inverse(order_R)
    dx_ND = dx_RD.index_select(0, inverse_R).view(num_items, num_slots, x_ND.shape[1]).sum(1)
    dgate_NK = dgate_R.index_select(0, inverse_R).view(num_items, num_slots).to(gate_NK.dtype)
    return dx_ND, dw1_EDH, db1_EH, dw2_EHD, db2_ED, dgate_NK


def film_ffn(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HD: Tensor, b2_D: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, site: str, fuse: str, activation: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y (N, D) and, when `save` and the FFN runs once, the first product's result (N, H)."""
    num_items, hidden = x_ND.shape[0], w1_DH.shape[1]
    y_ND = x_ND.new_empty(num_items, w2_HD.shape[1])
    keep = save and fuse == "activations"
    u_NH = x_ND.new_empty((num_items if keep else 0, hidden))
    rows = _tile_rows(hidden, x_ND.element_size())
    scratch_TH = x_ND.new_empty(min(rows, num_items), hidden)
    gate_NE = reference.dense_gate(gate_NK, index_NK, gamma_EF.shape[0]).to(x_ND.dtype)
    film_2TF = x_ND.new_empty(2, min(rows, num_items), gamma_EF.shape[1])
    for start in range(0, num_items, rows):
        tile = slice(start, min(start + rows, num_items))
        x_TD, h_TH = x_ND[tile], scratch_TH[: tile.stop - start]
        if fuse == "activations":
            gamma_TF = torch.mm(gate_NE[tile], gamma_EF, out=film_2TF[0, : tile.stop - start])
            beta_TF = torch.mm(gate_NE[tile], beta_EF, out=film_2TF[1, : tile.stop - start])
            u_TH = u_NH[tile] if keep else h_TH
            _film_hidden(x_TD, w1_DH, b1_H, gamma_TF, beta_TF, site, activation, u_TH, h_TH)
            torch.addmm(b2_D, h_TH, w2_HD, out=y_ND[tile])
            continue
        slots = _film_slots(gate_NK[tile], index_NK[tile], gamma_EF, beta_EF, fuse, x_ND.dtype)
        total_TH, gate_total_T1 = torch.zeros_like(h_TH), x_ND.new_zeros(h_TH.shape[0], 1)
        for gate_T1, gamma_TF, beta_TF in slots:
            _film_hidden(x_TD, w1_DH, b1_H, gamma_TF, beta_TF, site, activation, h_TH, h_TH)
            total_TH.addcmul_(gate_T1, h_TH)
            gate_total_T1 += gate_T1
        torch.addmm(gate_total_T1 * b2_D, total_TH, w2_HD, out=y_ND[tile])
    return y_ND, u_NH


def film_ffn_backward(
    dy_ND: Tensor, x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HD: Tensor, b2_D: Tensor,
    gamma_EF: Tensor, beta_EF: Tensor, gate_NK: Tensor, index_NK: Tensor, u_NH: Tensor,
    site: str, fuse: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2, b2, gamma, beta, gate."""
    dy_ND = dy_ND.contiguous()
    single = fuse == "activations"
    dhidden_NH = dy_ND @ w2_HD.T
    dx_ND, dw1_DH, db1_H = torch.zeros_like(x_ND), torch.zeros_like(w1_DH), torch.zeros_like(b1_H)
    dgamma_EF, dbeta_EF = _zeros_like_contiguous(gamma_EF), _zeros_like_contiguous(beta_EF)
    dgate_NK, hidden_sum_NH = torch.zeros_like(gate_NK), None
    gate_NE = reference.dense_gate(gate_NK, index_NK, gamma_EF.shape[0]).to(x_ND.dtype)
    for slot, (gate_N1, gamma_NF, beta_NF) in enumerate(
        _film_slots(gate_NK, index_NK, gamma_EF, beta_EF, fuse, x_ND.dtype)
    ):
        at_input = site == "input"
        z_ND = torch.addcmul(beta_NF, gamma_NF, x_ND) if at_input else x_ND
        u_NH1 = u_NH if u_NH.shape[0] else torch.addmm(b1_H, z_ND, w1_DH)
        m_NH = u_NH1 if at_input else torch.addcmul(beta_NF, gamma_NF, u_NH1)
        hidden_NH = reference.activate(m_NH, activation)
        dm_NH = _activation_backward(dhidden_NH if single else gate_N1 * dhidden_NH, m_NH, activation)
        du_NH = dm_NH if at_input else dm_NH * gamma_NF
        dw1_DH.addmm_(z_ND.T, du_NH)
        db1_H += du_NH.sum(0)
        dz_ND = du_NH @ w1_DH.T
        dx_ND += dz_ND * gamma_NF if at_input else dz_ND
        dfilm_NF, source_NF = (dz_ND, x_ND) if at_input else (dm_NH, u_NH1)
        scaled_NF = dfilm_NF * source_NF
        if single:
            dgamma_EF, dbeta_EF = gate_NE.T @ scaled_NF, gate_NE.T @ dfilm_NF
            dgate_NE = (scaled_NF @ gamma_EF.T).addmm_(dfilm_NF, beta_EF.T)
            dgate_NK = torch.where(index_NK < 0, 0, dgate_NE.gather(1, index_NK.clamp(min=0))).to(gate_NK.dtype)
            hidden_sum_NH = hidden_NH
            continue
        one_hot_NE = F.one_hot(index_NK[:, slot].clamp(min=0), gamma_EF.shape[0]).to(x_ND.dtype)
        dgamma_EF.addmm_(one_hot_NE.T, scaled_NF)
        dbeta_EF.addmm_(one_hot_NE.T, dfilm_NF)
        dgate_N = (dhidden_NH * hidden_NH).sum(1) + dy_ND @ b2_D
        dgate_NK[:, slot] = torch.where(index_NK[:, slot] < 0, 0, dgate_N)
        gated_NH = gate_N1 * hidden_NH
        hidden_sum_NH = gated_NH if hidden_sum_NH is None else hidden_sum_NH.add_(gated_NH)
    dw2_HD = torch.zeros_like(w2_HD) if hidden_sum_NH is None else hidden_sum_NH.T @ dy_ND
    db2_D = dy_ND.sum(0) if single else (gate_NE.sum(1, keepdim=True) * dy_ND).sum(0)
    return dx_ND, dw1_DH, db1_H, dw2_HD, db2_D, dgamma_EF, dbeta_EF, dgate_NK


def _film_slots(
    gate_NK: Tensor, index_NK: Tensor, gamma_EF: Tensor, beta_EF: Tensor, fuse: str, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(gate, gamma, beta) to run: one mixed pair with gate 1, or every slot's own pair with its gate."""
    if fuse == "activations":
        gate_NE = reference.dense_gate(gate_NK, index_NK, gamma_EF.shape[0]).to(dtype)
        yield gate_NE.new_ones(1, 1), gate_NE @ gamma_EF, gate_NE @ beta_EF
        return
    for slot in range(index_NK.shape[1]):
        index_N = index_NK[:, slot]
        gate_N1 = torch.where(index_N < 0, 0, gate_NK[:, slot]).unsqueeze(1).to(dtype)
        safe_N = index_N.clamp(min=0)
        yield gate_N1, gamma_EF.index_select(0, safe_N), beta_EF.index_select(0, safe_N)


def _film_hidden(
    x_TD: Tensor, w1_DH: Tensor, b1_H: Tensor, gamma_TF: Tensor, beta_TF: Tensor,
    site: str, activation: str, u_TH: Tensor, hidden_TH: Tensor,
) -> None:  # fmt: skip
    """Writes the first product into `u_TH` and the modulated, activated hidden layer into `hidden_TH`.

    `beta_TF` is used up.
    """
    if site == "input":
        torch.addmm(b1_H, torch.addcmul(beta_TF, gamma_TF, x_TD, out=beta_TF), w1_DH, out=u_TH)
        _activate_into(u_TH, hidden_TH, activation)
        return
    torch.addmm(b1_H, x_TD, w1_DH, out=u_TH)
    torch.addcmul(beta_TF, gamma_TF, u_TH, out=hidden_TH)
    _activate_into(hidden_TH, hidden_TH, activation)


def _activate_into(u_TH: Tensor, out_TH: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.ops.aten.gelu.out(u_TH, out=out_TH)
    return torch.ops.aten.silu.out(u_TH, out=out_TH)


def _activation_backward(dhidden_TH: Tensor, u_TH: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(dhidden_TH, u_TH)
    return torch.ops.aten.silu_backward(dhidden_TH, u_TH)


def _combine(y_RD: Tensor, gate_NK: Tensor, order_R: Tensor) -> Tensor:
    num_items, num_slots = gate_NK.shape
    y_NKD = y_RD.index_select(0, _inverse(order_R)).view(num_items, num_slots, y_RD.shape[1])
    return torch.bmm(gate_NK.unsqueeze(1).to(y_RD.dtype), y_NKD).squeeze(1)


def _inverse(order_R: Tensor) -> Tensor:
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.shape[0], device=order_R.device)
    return inverse_R


def _tile_rows(hidden: int, item_bytes: int) -> int:
    return max(TILE_ROWS, TILE_BYTES // max(hidden * item_bytes, 1))


def _zeros_like_contiguous(t: Tensor) -> Tensor:
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device)
