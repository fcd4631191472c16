"""`route` on the CPU: a partial sort, exact about ties."""

import torch
from torch import Tensor

from moevision.kernels import reference


def route(x_ND: Tensor, w_ED: Tensor, k: int, variance_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.route`."""
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
