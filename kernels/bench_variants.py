"""Other ways to compute what the operators compute, for `moevision bench kernels` to compare with.

Each is written as fast as plain torch allows: they share our counting sort (`plan`), return rows to items as bags, and
what a library call cannot do (a bias per group) costs as little as it can. All are differentiable by autograd, and all
but `dense_ffn` give the same numbers as the operator (tests/kernels/test_bench.py).

Shape legend as in `ops`: N items, D width, H hidden, E experts, K slots an item, R = N * K,
C rows of the fullest expert.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.kernels import ops, reference


def dense_ffn(x_RD: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HD: Tensor, b2_D: Tensor) -> Tensor:
    """One FFN without experts on R rows: the products of an expert FFN, and nothing of what routing adds."""
    return torch.addmm(b2_D, F.gelu(torch.addmm(b1_H, x_RD, w1_DH)), w2_HD)


def sorted_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor, gate_NK: Tensor, index_NK: Tensor
) -> Tensor:  # fmt: skip
    """Ours, as a layer uses it: `plan` and `expert_ffn`."""
    order_R, offsets_E1 = ops.plan(index_NK, w1_EDH.shape[0])
    return ops.expert_ffn(x_ND, w1_EDH, b1_EH, w2_EHD, b2_ED, gate_NK, order_R, offsets_E1)


def looped_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor, gate_NK: Tensor, index_NK: Tensor
) -> Tensor:  # fmt: skip
    """One expert after the other: find its items, run them, add them to the output."""
    y_ND = torch.zeros_like(x_ND)
    for expert in range(w1_EDH.shape[0]):
        item_M, slot_M = torch.where(index_NK == expert)
        if item_M.shape[0] == 0:
            continue
        x_MD, gate_M1 = x_ND.index_select(0, item_M), gate_NK[item_M, slot_M].unsqueeze(1)
        y_MD = dense_ffn(x_MD, w1_EDH[expert], b1_EH[expert], w2_EHD[expert], b2_ED[expert])
        y_ND.index_add_(0, item_M, y_MD * gate_M1.to(y_MD.dtype))
    return y_ND


def grouped_mm_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor, gate_NK: Tensor, index_NK: Tensor
) -> Tensor:  # fmt: skip
    """torch's grouped product on sorted rows.

    It has no bias yet. Gathering one a row is the usual way and up to twice as slow as this: the first is a column of
    ones beside x, the second is added to the mixed rows. Rows must be multiples of 16 bytes, so zeros fill up.
    """
    order_R, offsets_E1 = ops.plan(index_NK, w1_EDH.shape[0])
    ends_E = offsets_E1[1:].to(torch.int32)
    extra = 16 // x_ND.element_size()
    ones_NX = F.pad(x_ND.new_ones(x_ND.shape[0], 1), (0, extra - 1))
    bias_EXH = F.pad(b1_EH.unsqueeze(1), (0, 0, 0, extra - 1))
    x_RU = torch.cat((x_ND, ones_NX), 1).index_select(0, _items(order_R, index_NK))
    hidden_RH = F.gelu(F.grouped_mm(x_RU, torch.cat((w1_EDH, bias_EXH), 1), offs=ends_E))
    y_ND = _combine(F.grouped_mm(hidden_RH, w2_EHD, offs=ends_E), order_R, gate_NK)
    return y_ND + reference.dense_gate(gate_NK, index_NK, w1_EDH.shape[0]).to(y_ND.dtype) @ b2_ED


def padded_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHD: Tensor, b2_ED: Tensor, gate_NK: Tensor, index_NK: Tensor
) -> Tensor:  # fmt: skip
    """Every expert padded to the fullest one's rows, then batched products."""
    num_experts, dim, _ = w1_EDH.shape
    order_R, offsets_E1 = ops.plan(index_NK, num_experts)
    most = int(offsets_E1.diff().max())
    expert_R = index_NK.reshape(-1).index_select(0, order_R)
    shift_E = torch.arange(num_experts, device=x_ND.device) * most - offsets_E1[:-1]
    place_R = torch.arange(order_R.shape[0], device=x_ND.device) + shift_E.index_select(0, expert_R)
    x_RD = x_ND.index_select(0, _items(order_R, index_NK))
    x_ECD = x_ND.new_zeros(num_experts * most, dim).index_copy(0, place_R, x_RD).view(num_experts, most, dim)
    hidden_ECH = F.gelu(torch.baddbmm(b1_EH.unsqueeze(1), x_ECD, w1_EDH))
    y_ECD = torch.baddbmm(b2_ED.unsqueeze(1), hidden_ECH, w2_EHD)
    return _combine(y_ECD.flatten(0, 1).index_select(0, place_R), order_R, gate_NK)


def eager_film(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HD: Tensor, b2_D: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, *, site: str,
) -> Tensor:  # fmt: skip
    """The FiLM mixture in plain torch: modulations mixed by a product with the dense gate, then one FFN."""
    gate_NE = reference.dense_gate(gate_NK, index_NK, gamma_EF.shape[0]).to(x_ND.dtype)
    gamma_NF, beta_NF = gate_NE @ gamma_EF, gate_NE @ beta_EF
    if site == "input":
        return dense_ffn(torch.addcmul(beta_NF, gamma_NF, x_ND), w1_DH, b1_H, w2_HD, b2_D)
    u_NH = torch.addcmul(beta_NF, gamma_NF, torch.addmm(b1_H, x_ND, w1_DH))
    return torch.addmm(b2_D, F.gelu(u_NH), w2_HD)


def looped_conv(x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor, index_N: Tensor) -> Tensor:
    """One expert after the other: find its windows, convolve them, put them where they belong."""
    height, width = (x - w + 1 for x, w in zip(x_NCHW.shape[2:], w_ECPQ.shape[2:], strict=True))
    y_NCYX = x_NCHW.new_zeros(*x_NCHW.shape[:2], height, width)
    for expert in range(w_ECPQ.shape[0]):
        window_M = torch.where(index_N == expert)[0]
        if window_M.shape[0]:
            x_MCHW, kernel_C1PQ = x_NCHW.index_select(0, window_M), w_ECPQ[expert].unsqueeze(1)
            y_MCYX = F.conv2d(x_MCHW, kernel_C1PQ, b_EC[expert], groups=x_NCHW.shape[1])
            y_NCYX = y_NCYX.index_copy(0, window_M, y_MCYX)
    return y_NCYX


def eager_route(x_ND: Tensor, w_ED: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate, index, counts and probabilities in plain torch; torch's top-k leaves the order of ties open."""
    logits_NE = x_ND.float() @ w_ED.float().T
    value_NK, index_NK = logits_NE.topk(k, dim=1)
    counts_E = torch.bincount(index_NK.view(-1), minlength=w_ED.shape[0])
    return value_NK.softmax(1), index_NK, counts_E, logits_NE.softmax(1)


def _items(order_R: Tensor, index_NK: Tensor) -> Tensor:
    return order_R if index_NK.shape[1] == 1 else torch.div(order_R, index_NK.shape[1], rounding_mode="floor")


def _combine(y_RD: Tensor, order_R: Tensor, gate_NK: Tensor) -> Tensor:
    """Sorted rows to items as bags: measured faster than index_add, and than a gather and a batched product."""
    slot_R = torch.arange(order_R.shape[0], device=order_R.device)
    place_NK = torch.empty_like(order_R).scatter_(0, order_R, slot_R).view(gate_NK.shape)
    return F.embedding_bag(place_NK, y_RD, per_sample_weights=gate_NK.to(y_RD.dtype), mode="sum")
