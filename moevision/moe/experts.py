"""Expert banks: E experts stored stacked, run by one operator; nothing here loops over experts.

A bank offers two forms that must agree: `routed` (only the chosen experts, through `moevision.kernels`) and `all`
(every expert on every item, the dense reference).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision import kernels
from moevision.kernels import reference
from moevision.moe.routing import Routing


class ExpertBank(nn.Module):
    """Base of the banks.

    `needs_plan` says whether `routed` reads the sorted order; dispatch skips the sort for banks whose experts share
    their matrix products.
    """

    num_experts: int
    needs_plan = True

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """sum_k weight_nk * expert_{index_nk}(x_n): (N, D) -> (N, D)."""
        raise TypeError(f"{type(self).__name__} does not define routed")

    def all(self, x_ND: Tensor) -> Tensor:
        """Every expert on every item: (N, D) -> (N, E, D)."""
        raise TypeError(f"{type(self).__name__} does not define all")

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The reference of `routed`, from every expert's output; banks that do not mix outputs override it."""
        gate_NE = reference.dense_gate(routing.weight_NK, routing.index_NK, self.num_experts)
        return torch.einsum("ne,ned->nd", gate_NE.to(x_ND.dtype), self.all(x_ND))


class FFNExperts(ExpertBank):
    """E full two-layer FFNs, D -> H -> activation -> D: the conventional MoE."""

    def __init__(self, num_experts: int, dim: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.num_experts, self.activation = num_experts, activation
        self.w1 = nn.Parameter(_uniform(num_experts, dim, hidden, fan_in=dim))
        self.b1 = nn.Parameter(_uniform(num_experts, hidden, fan_in=dim))
        self.w2 = nn.Parameter(_uniform(num_experts, hidden, dim, fan_in=hidden))
        self.b2 = nn.Parameter(_uniform(num_experts, dim, fan_in=hidden))

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """(N, D) -> (N, D) by `kernels.expert_ffn`; needs the plan."""
        if order_R is None or offsets_E1 is None:
            raise ValueError("FFNExperts.routed needs the sorted plan")
        return kernels.expert_ffn(
            x_ND, self.w1, self.b1, self.w2, self.b2, routing.weight_NK, order_R, offsets_E1, self.activation
        )

    def all(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E, D)."""
        hidden_NEH = reference.activate(torch.einsum("nd,edh->neh", x_ND, self.w1) + self.b1, self.activation)
        return torch.einsum("neh,ehd->ned", hidden_NEH, self.w2) + self.b2


class FiLMExperts(ExpertBank):
    """MoFME's experts: E cheap feature modulations of ONE shared FFN (AAAI 2024, section 3).

    Args:
        num_experts, dim, hidden: E, D, H.
        site: "input" modulates the FFN's input (the paper), "hidden" its pre-activation.
        fuse: "activations" mixes the modulations and runs the FFN once (the paper), "outputs" once per chosen one.
        spread: standard deviation of gamma around 1 and beta around 0 at the start. Experts that start identical
            collapse; experts that start as random sign flips (the released code) train badly.
    """

    needs_plan = False

    def __init__(
        self, num_experts: int, dim: int, hidden: int, *, site: str = "input", fuse: str = "activations",
        activation: str = "gelu", spread: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_experts, self.site, self.fuse, self.activation = num_experts, site, fuse, activation
        width = dim if site == "input" else hidden
        self.w1 = nn.Parameter(_uniform(dim, hidden, fan_in=dim))
        self.b1 = nn.Parameter(_uniform(hidden, fan_in=dim))
        self.w2 = nn.Parameter(_uniform(hidden, dim, fan_in=hidden))
        self.b2 = nn.Parameter(_uniform(dim, fan_in=hidden))
        self.gamma = nn.Parameter(1 + spread * torch.randn(num_experts, width))
        self.beta = nn.Parameter(spread * torch.randn(num_experts, width))

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """(N, D) -> (N, D) by `kernels.film_ffn`; needs no plan."""
        return kernels.film_ffn(
            x_ND, self.w1, self.b1, self.w2, self.b2, self.gamma, self.beta, routing.weight_NK, routing.index_NK,
            site=self.site, fuse=self.fuse, activation=self.activation,
        )  # fmt: skip

    def all(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E, D): each expert alone through the shared FFN."""
        if self.site == "input":
            u_NEH = (self.gamma * x_ND.unsqueeze(1) + self.beta) @ self.w1 + self.b1
        else:
            u_NEH = self.gamma * (x_ND @ self.w1 + self.b1).unsqueeze(1) + self.beta
        return reference.activate(u_NEH, self.activation) @ self.w2 + self.b2

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The reference of `routed`: mixing activations is not the mean of `all`, so it has its own form."""
        return reference.film_ffn(
            x_ND, self.w1, self.b1, self.w2, self.b2, self.gamma, self.beta, routing.weight_NK, routing.index_NK,
            self.site, self.fuse, self.activation,
        )  # fmt: skip


class SparseFilterExperts(ExpertBank):
    """MemoryOut's experts: E narrow bottlenecks D -> r -> SiLU -> D, that let pass what normal scenes need.

    y_n = scale * sum_k weight_nk (W_up silu(W_down x_n + b) + c) over the chosen (arXiv 2506.02535, released code).
    The paper's experts each begin with a LayerNorm of their own; its statistics are the same for all of them and its
    scale and shift are linear, so the caller normalises once and W_down and b hold the rest.

    All E codes are computed and those not chosen are multiplied by zero: two products of E * r columns, which for the
    few columns r (8 of 96) that make it a filter cost less than sorting items by expert and gathering them.

    Args:
        num_experts, dim, rank: E, D, r.
        k: how many an item uses, for the scale of the start: there is no residual beside these experts, so what comes
            out must be as large as what goes in.
        scale: of the sum; 2 in the released code.
    """

    needs_plan = False

    def __init__(self, num_experts: int, dim: int, rank: int, k: int, scale: float = 2.0) -> None:
        super().__init__()
        self.num_experts, self.scale = num_experts, scale
        self.w_down = nn.Parameter(torch.randn(num_experts, dim, rank) * dim**-0.5)
        self.b_down = nn.Parameter(torch.zeros(num_experts, rank))
        self.w_up = nn.Parameter(torch.randn(num_experts, rank, dim) * (rank * k) ** -0.5)
        self.b_up = nn.Parameter(torch.zeros(num_experts, dim))

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """(N, D) -> (N, D) by two matrix products over all experts' codes; needs no plan."""
        gate_NE = reference.dense_gate(routing.weight_NK, routing.index_NK, self.num_experts).to(x_ND.dtype)
        gate_NE = self.scale * gate_NE
        w_down_DR = self.w_down.permute(1, 0, 2).reshape(x_ND.shape[1], -1)
        code_NEr = F.silu(torch.addmm(self.b_down.flatten(), x_ND, w_down_DR)).unflatten(1, (self.num_experts, -1))
        code_NR = (code_NEr * gate_NE.unsqueeze(2)).flatten(1)
        return torch.addmm(gate_NE @ self.b_up, code_NR, self.w_up.flatten(0, 1))

    def all(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E, D): each expert alone, times `scale`."""
        code_NEr = F.silu(torch.einsum("nd,edr->ner", x_ND, self.w_down) + self.b_down)
        return self.scale * (torch.einsum("ner,erd->ned", code_NEr, self.w_up) + self.b_up)


class LinearFiLMExperts(ExpertBank):
    """The form of MoFME's released code: gamma and beta are linear in x, for every expert, then ONE shared FFN.

    z_n = sum_e r_e [(W_gamma,e x + b_gamma,e) * x + (W_beta,e x + b_beta,e)], y = FFN(z). All experts are computed for
    every item, as in that code; 2 D^2 + 2 D parameters an expert instead of 2 D.
    """

    needs_plan = False

    def __init__(self, num_experts: int, dim: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.num_experts, self.activation = num_experts, activation
        self.gamma = nn.Linear(dim, num_experts * dim)
        self.beta = nn.Linear(dim, num_experts * dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def routed(self, x_ND: Tensor, routing: Routing, order_R: Tensor | None, offsets_E1: Tensor | None) -> Tensor:
        """(N, D) -> (N, D)."""
        gate_NE = reference.dense_gate(routing.weight_NK, routing.index_NK, self.num_experts).to(x_ND.dtype)
        mixed_ND = torch.bmm(gate_NE.unsqueeze(1), self._modulated(x_ND)).squeeze(1)
        return self.down(reference.activate(self.up(mixed_ND), self.activation))

    def all(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, E, D)."""
        return self.down(reference.activate(self.up(self._modulated(x_ND)), self.activation))

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The released code's order of operations: every expert's modulation, weighted sum, shared FFN."""
        gate_NE = reference.dense_gate(routing.weight_NK, routing.index_NK, self.num_experts).to(x_ND.dtype)
        mixed_ND = (gate_NE.unsqueeze(2) * self._modulated(x_ND)).sum(1)
        return self.down(reference.activate(self.up(mixed_ND), self.activation))

    def _modulated(self, x_ND: Tensor) -> Tensor:
        shape = (x_ND.shape[0], self.num_experts, x_ND.shape[1])
        return self.gamma(x_ND).view(shape) * x_ND.unsqueeze(1) + self.beta(x_ND).view(shape)


class ConvExperts(nn.Module):
    """E separable convolutions of windows or whole pictures: depthwise 3x3, then pointwise D -> H -> activation -> O.

    The experts of MoE-Fusion (ICCV 2023) are 3x3 convolutions; separable ones cost a ninth and run through
    `kernels.grouped_conv` and `kernels.expert_ffn`. Routing is per window, so this bank takes and gives maps, one map a
    slot, and leaves their combination to the caller, who may not want a sum.
    """

    def __init__(self, num_experts: int, dim: int, hidden: int, out: int, activation: str = "gelu") -> None:
        super().__init__()
        self.num_experts, self.activation = num_experts, activation
        self.depthwise = nn.Parameter(_uniform(num_experts, dim, 3, 3, fan_in=9))
        self.depthwise_bias = nn.Parameter(_uniform(num_experts, dim, fan_in=9))
        self.w1 = nn.Parameter(_uniform(num_experts, dim, hidden, fan_in=dim))
        self.b1 = nn.Parameter(_uniform(num_experts, hidden, fan_in=dim))
        self.w2 = nn.Parameter(_uniform(num_experts, hidden, out, fan_in=hidden))
        self.b2 = nn.Parameter(_uniform(num_experts, out, fan_in=hidden))

    def forward(self, x_NCHW: Tensor, index_N: Tensor) -> Tensor:
        """Window n through expert index_n, borders replicated; only the chosen experts run.

        Args:
            x_NCHW: windows, C = dim.
            index_N: int64; outside 0..E-1 = empty, which gives zeros.

        Returns:
            (N, out, H, W) in channels-last memory.
        """
        windows, _, height, width = x_NCHW.shape
        y_NCHW = kernels.grouped_conv(
            F.pad(x_NCHW, (1, 1, 1, 1), mode="replicate"), self.depthwise, self.depthwise_bias, index_N
        )
        if torch.compiler.is_compiling():  # the operators below would have every expert at work in a graph
            return self._pointwise(y_NCHW, index_N)
        y_RD = y_NCHW.permute(0, 2, 3, 1).reshape(windows * height * width, y_NCHW.shape[1])
        index_R1 = index_N.repeat_interleave(height * width).unsqueeze(1)
        order_R, offsets_E1 = kernels.plan(index_R1, self.num_experts)
        gate_R1 = y_RD.new_ones(y_RD.shape[0], 1, dtype=torch.float32 if y_RD.dtype != torch.float64 else y_RD.dtype)
        y_RO = kernels.expert_ffn(
            y_RD, self.w1, self.b1, self.w2, self.b2, gate_R1, order_R, offsets_E1, self.activation
        )
        return y_RO.view(windows, height, width, y_RO.shape[1]).permute(0, 3, 1, 2)

    def _pointwise(self, y_NCHW: Tensor, index_N: Tensor) -> Tensor:
        """The pointwise layers in plain torch: every window's weights are gathered, so only its expert works."""
        height, width = y_NCHW.shape[2:]
        empty_N = reference.is_empty(index_N, self.num_experts)
        w1_NDF, b1_NF, w2_NFO, b2_NO = (
            p[index_N.masked_fill(empty_N, 0)] for p in (self.w1, self.b1, self.w2, self.b2)
        )
        y_NLD = y_NCHW.flatten(2).transpose(1, 2)
        hidden_NLF = reference.activate(y_NLD @ w1_NDF + b1_NF[:, None], self.activation)
        y_NOL = (hidden_NLF @ w2_NFO + b2_NO[:, None]).masked_fill(empty_N[:, None, None], 0).transpose(1, 2)
        return y_NOL.unflatten(2, (height, width))

    def all(self, x_NCHW: Tensor) -> Tensor:
        """Every expert on every window, in plain torch: (N, C, H, W) -> (N, E, O, H, W)."""
        padded_NCHW = F.pad(x_NCHW, (1, 1, 1, 1), mode="replicate")
        windows_NCHWPQ = padded_NCHW.unfold(2, 3, 1).unfold(3, 3, 1)
        y_NEHWD = torch.einsum("nchwpq,ecpq->nehwc", windows_NCHWPQ, self.depthwise)
        y_NEHWD = y_NEHWD + self.depthwise_bias[:, None, None]
        hidden_NEHWF = reference.activate(
            torch.einsum("nehwd,edf->nehwf", y_NEHWD, self.w1) + self.b1[:, None, None], self.activation
        )
        return torch.einsum("nehwf,efo->neohw", hidden_NEHWF, self.w2) + self.b2[:, :, None, None]


class DenseFFN(nn.Module):
    """A plain two-layer FFN over the last dimension: the arm without experts, and the shared expert of a layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(x)))


def _uniform(*shape: int, fan_in: int) -> Tensor:
    bound = fan_in**-0.5
    return torch.empty(*shape).uniform_(-bound, bound)
