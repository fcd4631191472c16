"""What the operators compute, written to be read: plain differentiable torch, no tiling, no reuse.

Shape legend: N items, D width, H hidden, O output width, E experts, K slots an item, F = D or H (where FiLM acts). An
index outside 0..E-1 marks an empty slot; it contributes nothing. These bodies are the specification the other paths are
tested against.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.kernels.quantization import dequantize

PROBIT_SCALE = math.pi / 8


def activate(u: Tensor, activation: str) -> Tensor:
    """`gelu` (exact) or `silu`, elementwise."""
    return F.gelu(u) if activation == "gelu" else F.silu(u)


def router_logits(x_ND: Tensor, w_ED: Tensor, variance_scale: float) -> Tensor:
    """Logits in float32; with `variance_scale` = p / (1 - p) they are divided by their dropout uncertainty.

    Dropout with rate p on x gives a linear router's logits exact moments: mean x wT and variance
    p / (1 - p) * (x^2)(w^2)T. Scaling the mean by 1 / sqrt(1 + pi / 8 * variance) is the probit approximation of the
    expected softmax (MacKay 1992), so uncertain experts are flattened without drawing a sample.
    """
    x_ND, w_ED = _at_least_float32(x_ND), _at_least_float32(w_ED)
    logits_NE = x_ND @ w_ED.T
    if variance_scale == 0.0:
        return logits_NE
    variance_NE = variance_scale * (x_ND.square() @ w_ED.square().T)
    return logits_NE * torch.rsqrt(1 + PROBIT_SCALE * variance_NE)


def top_k(logits_NE: Tensor, k: int) -> Tensor:
    """Indices (N, K) of the k largest logits, ties to the lowest expert, NaN counted as the largest."""
    return torch.sort(logits_NE.nan_to_num(nan=math.inf), dim=1, descending=True, stable=True).indices[:, :k]


def route(x_ND: Tensor, w_ED: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate weights (N, K) that sum to 1, expert indices (N, K), load (E,) and probabilities (N, E)."""
    logits_NE = router_logits(x_ND, w_ED, variance_scale)
    index_NK = top_k(logits_NE, k)
    gate_NK = logits_NE.gather(1, index_NK).softmax(dim=1)
    counts_E = torch.bincount(index_NK.reshape(-1), minlength=w_ED.shape[0])
    return gate_NK, index_NK, counts_E, logits_NE.softmax(dim=1)


def plan(index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Slots n * K + k in stable expert order, empty slots last, and each expert's range in that order."""
    slots_R = index_NK.reshape(index_NK.shape[0] * index_NK.shape[1])
    key_R = torch.where(is_empty(slots_R, num_experts), num_experts, slots_R)
    order_R = torch.sort(key_R, stable=True).indices
    counts_E = torch.bincount(key_R, minlength=num_experts + 1)[:num_experts]
    return order_R, F.pad(counts_E.cumsum(0), (1, 0))


def expert_ffn(
    x_ND: Tensor, w1_EDH: Tensor, b1_EH: Tensor, w2_EHO: Tensor, b2_EO: Tensor,
    gate_NK: Tensor, index_NK: Tensor, activation: str,
) -> Tensor:  # fmt: skip
    """y_n = sum_k gate_nk * FFN_{index_nk}(x_n), by computing every expert on every item."""
    hidden_NEH = activate(torch.einsum("nd,edh->neh", x_ND, w1_EDH) + b1_EH, activation)
    y_NEO = torch.einsum("neh,eho->neo", hidden_NEH, w2_EHO) + b2_EO
    return torch.einsum("ne,neo->no", dense_gate(gate_NK, index_NK, w1_EDH.shape[0]).to(x_ND.dtype), y_NEO)


def film_ffn(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, w2_HO: Tensor, b2_O: Tensor, gamma_EF: Tensor, beta_EF: Tensor,
    gate_NK: Tensor, index_NK: Tensor, site: str, fuse: str, activation: str,
) -> Tensor:  # fmt: skip
    """One shared FFN, modulated by FiLM experts at its input (F = D) or hidden layer (F = H).

    `fuse="activations"` mixes the modulations and runs the FFN once (MoFME, AAAI 2024); `fuse="outputs"` runs it for
    every chosen expert and mixes the results.
    """
    if fuse == "activations":
        gate_NE = dense_gate(gate_NK, index_NK, gamma_EF.shape[0]).to(x_ND.dtype)
        return film_pass(x_ND, w1_DH, b1_H, gate_NE @ gamma_EF, gate_NE @ beta_EF, site, activation) @ w2_HO + b2_O
    y_NO = x_ND.new_zeros(x_ND.shape[0], w2_HO.shape[1])
    for slot in range(index_NK.shape[1]):
        index_N = index_NK[:, slot]
        empty_N = is_empty(index_N, gamma_EF.shape[0])
        gate_N1 = torch.where(empty_N, 0, gate_NK[:, slot]).unsqueeze(1).to(x_ND.dtype)
        safe_N = index_N.masked_fill(empty_N, 0)
        gamma_NF, beta_NF = gamma_EF[safe_N], beta_EF[safe_N]
        hidden_NH = film_pass(x_ND, w1_DH, b1_H, gamma_NF, beta_NF, site, activation)
        y_NO = y_NO + gate_N1 * (hidden_NH @ w2_HO + b2_O)
    return y_NO


def film_pass(
    x_ND: Tensor, w1_DH: Tensor, b1_H: Tensor, gamma_NF: Tensor, beta_NF: Tensor, site: str, activation: str
) -> Tensor:
    """The hidden layer (N, H) under modulations of every item, (N, D) or (N, H)."""
    if site == "input":
        return activate((gamma_NF * x_ND + beta_NF) @ w1_DH + b1_H, activation)
    return activate(gamma_NF * (x_ND @ w1_DH + b1_H) + beta_NF, activation)


def dense_gate(gate_NK: Tensor, index_NK: Tensor, num_experts: int) -> Tensor:
    """Gate weights as an (N, E) matrix; empty slots add nothing."""
    empty_NK = is_empty(index_NK, num_experts)
    weight_NK = torch.where(empty_NK, torch.zeros_like(gate_NK), gate_NK)
    index_NK = index_NK.masked_fill(empty_NK, 0)
    return gate_NK.new_zeros(gate_NK.shape[0], num_experts).scatter_add(1, index_NK, weight_NK)


def is_empty(index: Tensor, num_experts: int) -> Tensor:
    """Which slots name no expert."""
    return (index < 0) | (index >= num_experts)


def grouped_conv(x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor, index_N: Tensor) -> Tensor:
    """Depthwise convolution of window n by the kernels of expert index_n; zeros where that names none."""
    empty_N = is_empty(index_N, w_ECPQ.shape[0])
    index_N = index_N.masked_fill(empty_N, 0)
    (height, width), channels = w_ECPQ.shape[2:], x_NCHW.shape[1]
    x_NCYXPQ = x_NCHW.unfold(2, height, 1).unfold(3, width, 1)
    y_NCYX = torch.einsum("ncyxpq,ncpq->ncyx", x_NCYXPQ, w_ECPQ[index_N])
    y_NCYX = y_NCYX + b_EC[index_N].view(-1, channels, 1, 1)
    return torch.where(empty_N.view(-1, 1, 1, 1), 0, y_NCYX)


def quant_linear(
    x_ND: Tensor, packed_PH: Tensor, scale_GH: Tensor, offset_GH: Tensor, bits: int, group: int
) -> Tensor:  # fmt: skip
    """x @ w with the weights a packed matrix stands for, rounded to x's type."""
    return x_ND @ dequantize(packed_PH, scale_GH, offset_GH, bits, group, x_ND.shape[1]).to(x_ND.dtype)


def _at_least_float32(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()
