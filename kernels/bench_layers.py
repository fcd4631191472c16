"""Whole MoE layers of other libraries, router included, for `moevision bench kernels` to compare with.

They get the same items, width, experts and slots, and hidden layers with no more matrix FLOP than ours has: gated
experts have three matrices, so two thirds of the hidden width. Where they choose by chance or by a threshold whether an
item gets its second expert, they always take it; where experts have a capacity, it is the mean load (their default is
that or less), so that they compute as many rows. Each is imported when it is built; ModuleNotFoundError says it is not
installed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from moevision.kernels.roofline import Size

ROW_MULTIPLE = 8  # grouped_mm takes rows of multiples of 16 bytes, 8 of bf16


class UnavailableError(Exception):
    """Why a layer cannot be built for these sizes, in a few words."""


def not_given(size: Size) -> nn.Module:
    """Our layer where the caller handed none over."""
    raise UnavailableError("no layer given: the kernels know nothing of moevision.moe")


def mixtral(size: Size, implementation: str) -> nn.Module:
    """transformers' Mixtral block: a linear router and SwiGLU experts without biases."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=size.dim, intermediate_size=size.hidden * 2 // 3 // ROW_MULTIPLE * ROW_MULTIPLE,
        num_local_experts=size.experts, num_experts_per_tok=size.slots, experts_implementation=implementation,
    )  # fmt: skip
    block: nn.Module = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for parameter in block.parameters():  # made uninitialised
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return block


def st_moe(size: Size) -> nn.Module:
    """st-moe-pytorch: top-n gating, one-hot dispatch, GEGLU experts."""
    from st_moe_pytorch import MoE

    layer: nn.Module = MoE(
        dim=size.dim, num_experts=size.experts, gating_top_n=size.slots, expert_hidden_mult=size.hidden / size.dim,
        threshold_train=0.0, threshold_eval=0.0,
        capacity_factor_train=float(size.slots), capacity_factor_eval=float(size.slots),
    )  # fmt: skip
    return layer


def mixture_of_experts(size: Size) -> nn.Module:
    """mixture-of-experts: top-2 gating, one-hot dispatch, experts without biases, here with our GELU."""
    from mixture_of_experts import MoE

    if size.slots != 2:
        raise UnavailableError("it has top-2 only")
    layer: nn.Module = MoE(
        dim=size.dim, num_experts=size.experts, hidden_dim=size.hidden, activation=nn.GELU,
        second_policy_train="all", second_policy_eval="all", capacity_factor_train=2.0, capacity_factor_eval=2.0,
    )  # fmt: skip
    return layer


PEERS: dict[str, Callable[[Size], nn.Module]] = {
    "mixtral": partial(mixtral, implementation="eager"),
    "mixtral_grouped_mm": partial(mixtral, implementation="grouped_mm"),
    "st_moe_pytorch": st_moe,
    "mixture_of_experts": mixture_of_experts,
}
