"""Losses of segmentation: weighted cross-entropy for every pixel, and the Jaccard index that the benchmark counts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.datasets.segmentation import IGNORE


def class_weights(counts_K: Tensor) -> Tensor:
    """Weights (K,) with mean 1 over pixels, falling with the square root of how often a class is seen.

    The full inverse would let a few poles outweigh the road; classes that never occur weigh nothing.
    """
    share_K = counts_K.double() / counts_K.sum().clamp_min(1)
    weight_K = torch.where(share_K > 0, share_K.clamp_min(1e-4).rsqrt(), torch.zeros_like(share_K))
    return (weight_K / (weight_K * share_K).sum().clamp_min(1e-12)).float()


def cross_entropy(logits_BKHW: Tensor, labels_BHW: Tensor, weights_K: Tensor) -> Tensor:
    """Mean over the pixels that have a label, weighted; 0 where none has."""
    loss_BHW = F.cross_entropy(logits_BKHW, labels_BHW, weights_K, ignore_index=IGNORE, reduction="none")
    return loss_BHW.sum() / (labels_BHW != IGNORE).sum().clamp_min(1)


def jaccard_loss(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """1 - soft Jaccard index, the mean over the classes that occur in the batch (Rahman and Wang, ISVC 2016)."""
    seen_BHW = labels_BHW != IGNORE
    probability_BKHW = logits_BKHW.softmax(1) * seen_BHW.unsqueeze(1)
    truth_BHW = labels_BHW.masked_fill(~seen_BHW, 0)
    hit_BHW = probability_BKHW.gather(1, truth_BHW.unsqueeze(1)).squeeze(1)
    classes = logits_BKHW.shape[1]
    truth_N = truth_BHW[seen_BHW]
    count_K = torch.bincount(truth_N, minlength=classes).to(logits_BKHW.dtype)
    both_K = logits_BKHW.new_zeros(classes).index_add(0, truth_N, hit_BHW[seen_BHW])
    either_K = count_K + probability_BKHW.sum((0, 2, 3)) - both_K
    occurs_K = count_K > 0
    index_K = both_K / either_K.clamp_min(1e-6)
    return 1 - (index_K * occurs_K).sum() / occurs_K.sum().clamp_min(1)
