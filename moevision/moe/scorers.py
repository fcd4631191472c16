"""Scorers: items to logits over experts, among them the uncertainty-aware router of MoFME in three arms.

The paper (MoFME, AAAI 2024) whitens routing vectors by the covariance of Monte-Carlo dropout passes. Taken literally
the result is signed and sums to zero; `LiteralUncertaintyScorer` keeps it for comparison. `RepairedUncertaintyScorer`
uses the same samples as a precision on logits. `ExactMomentScorer` needs no samples: dropout before a linear map has
exact moments. All arms act alike in training and evaluation, so that there is no train/test mismatch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.kernels import reference


class Scorer(nn.Module):
    """Base: forward(x_ND) -> logits_NE (at least float32)."""

    num_experts: int

    def projection(self) -> tuple[Tensor, float] | None:
        """(weight_ED, variance_scale) if `kernels.route` can compute this scorer, else None."""
        return None

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        raise TypeError(f"{type(self).__name__} does not define forward")


class LinearScorer(Scorer):
    """logits = W x, in at least float32 because half precision flips top-k choices."""

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.randn(num_experts, dim) * dim**-0.5)

    def projection(self) -> tuple[Tensor, float] | None:
        """Always fusable."""
        return self.weight, 0.0

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        return reference.router_logits(x_ND, self.weight, 0.0)


class PooledScorer(Scorer):
    """logits = SCALE * (W2 relu(W1 x + b1) + b2), for routers that see one vector of pooled features a picture.

    Such routers get one gradient a picture where others get one a pixel: logits that are SCALE times as steep in the
    weights let them learn in as many steps. Features should be of about unit variance.

    Args:
        dim: D.
        hidden: width between; small, for there are few pictures to learn from.
        num_experts: E.
    """

    SCALE = 4.0

    def __init__(self, dim: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.hidden, self.logits = nn.Linear(dim, hidden), nn.Linear(hidden, num_experts)
        nn.init.zeros_(self.logits.weight)  # the first choices are the noise's
        nn.init.zeros_(self.logits.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        logits_NE = self.SCALE * self.logits(F.relu(self.hidden(x_ND)))
        return logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()


class ExactMomentScorer(LinearScorer):
    """Expected logits under router dropout, divided by their exact uncertainty; deterministic, no samples.

    Args:
        dim: D.
        num_experts: E.
        dropout: rate p of the dropout whose moments are taken, 0 <= p < 1.
    """

    def __init__(self, dim: int, num_experts: int, dropout: float = 0.1) -> None:
        super().__init__(dim, num_experts)
        self.variance_scale = dropout / (1 - dropout)

    def projection(self) -> tuple[Tensor, float] | None:
        """Always fusable: the second moment is one more product in the same operator."""
        return self.weight, self.variance_scale

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        return reference.router_logits(x_ND, self.weight, self.variance_scale)


class _SampledScorer(LinearScorer):
    """Shared part of the Monte-Carlo arms: M dropout passes of the linear router, seeded by the call's own generator.

    The same masks are drawn in every call (seed fixed at construction), so evaluation is bit-equal from run to run.
    """

    def __init__(self, dim: int, num_experts: int, dropout: float = 0.1, samples: int = 5, seed: int = 0) -> None:
        super().__init__(dim, num_experts)
        self.dropout, self.samples, self.seed = dropout, samples, seed

    def projection(self) -> tuple[Tensor, float] | None:
        """Not fusable."""
        return None

    def sampled_logits(self, x_ND: Tensor) -> Tensor:
        """(M, N, E) logits under M dropout masks over the width, the same for all items: batching changes nothing."""
        x_ND = x_ND if x_ND.dtype == torch.float64 else x_ND.float()
        generator = torch.Generator().manual_seed(self.seed)
        keep_MD = torch.rand(self.samples, x_ND.shape[1], generator=generator) >= self.dropout
        keep_MD = keep_MD.to(x_ND.device, x_ND.dtype) / (1 - self.dropout)
        return torch.einsum("nd,md,ed->mne", x_ND, keep_MD, self.weight.to(x_ND.dtype))


class LiteralUncertaintyScorer(_SampledScorer):
    """The paper's equation as written: r' = S^-1 (r - mu) / ||.||, with mu, S over M dropout passes of the softmax.

    The result is signed and sums to about zero; as logits of a softmax it is at least a valid router. Kept as the
    documented literal arm (research notes 1.4), not for use.

    Args:
        dim, num_experts, dropout, samples, seed: as in the base.
        ridge: added to the covariance's diagonal, which is singular by construction (routing vectors sum to 1).
    """

    def __init__(
        self, dim: int, num_experts: int, dropout: float = 0.1, samples: int = 5, seed: int = 0, ridge: float = 1e-5
    ) -> None:
        super().__init__(dim, num_experts, dropout, samples, seed)
        self.ridge = ridge

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        probs_MNE = self.sampled_logits(x_ND).softmax(-1)
        mean_NE = probs_MNE.mean(0)
        centred_MNE = probs_MNE - mean_NE
        covariance_NEE = torch.einsum("mne,mnf->nef", centred_MNE, centred_MNE) / max(self.samples - 1, 1)
        identity_EE = torch.eye(self.num_experts, device=x_ND.device, dtype=mean_NE.dtype)
        probs_NE = reference.router_logits(x_ND, self.weight, 0.0).softmax(-1)
        whitened_NE = torch.linalg.solve(covariance_NEE + self.ridge * identity_EE, probs_NE - mean_NE)
        return F.normalize(whitened_NE, dim=-1)


class RepairedUncertaintyScorer(_SampledScorer):
    """The sampled moments used as a precision on logits: z = mu / sqrt(1 + pi/8 * shrunk variance).

    The M-sample variance is shrunk towards its mean over experts (a diagonal Ledoit-Wolf form), since five samples
    estimate it to some 50 %.
    """

    def __init__(
        self, dim: int, num_experts: int, dropout: float = 0.1, samples: int = 5, seed: int = 0, shrinkage: float = 0.25
    ) -> None:
        super().__init__(dim, num_experts, dropout, samples, seed)
        self.shrinkage = shrinkage

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        logits_MNE = self.sampled_logits(x_ND)
        variance_NE = logits_MNE.var(0, unbiased=self.samples > 1)
        shrunk_NE = torch.lerp(variance_NE, variance_NE.mean(-1, keepdim=True).expand_as(variance_NE), self.shrinkage)
        return logits_MNE.mean(0) * torch.rsqrt(1 + reference.PROBIT_SCALE * shrunk_NE)
