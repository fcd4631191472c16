"""One Mixture-of-Experts layer for every task: router, expert bank and dispatcher are three objects (design section 4).

Shape legend of the folder: N items (pixels, tokens), D width, H hidden, E experts, K slots an item, R = N * K.
"""

from moevision.moe.dispatch import Dense, Dispatcher, Plan, Sorted
from moevision.moe.experts import (
    ConvExperts,
    ExpertBank,
    FFNExperts,
    FiLMExperts,
    LinearFiLMExperts,
    SparseFilterExperts,
)
from moevision.moe.layer import MoELayer
from moevision.moe.losses import BalanceLoss, importance_loss, load_loss, switch_loss, z_loss
from moevision.moe.routing import Context, LayerRecord, Router, Routing, Window
from moevision.moe.scorers import (
    ExactMomentScorer,
    LinearScorer,
    LiteralUncertaintyScorer,
    PooledScorer,
    RepairedUncertaintyScorer,
    Scorer,
)
from moevision.moe.selectors import NoisyTopK, Selector, SoftAll, TopK

__all__ = [
    "BalanceLoss",
    "Context",
    "ConvExperts",
    "Dense",
    "Dispatcher",
    "ExactMomentScorer",
    "ExpertBank",
    "FFNExperts",
    "FiLMExperts",
    "LayerRecord",
    "LinearFiLMExperts",
    "LinearScorer",
    "LiteralUncertaintyScorer",
    "MoELayer",
    "NoisyTopK",
    "Plan",
    "PooledScorer",
    "RepairedUncertaintyScorer",
    "Router",
    "Routing",
    "Scorer",
    "Selector",
    "SoftAll",
    "Sorted",
    "SparseFilterExperts",
    "TopK",
    "Window",
    "importance_loss",
    "load_loss",
    "switch_loss",
    "z_loss",
]
