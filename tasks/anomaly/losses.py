"""What a good prediction of the next frame is (arXiv 2506.02535, released code): all weights 1."""

from torch import Tensor
from torch.nn import functional as F


def prediction_loss(predicted: Tensor, following: Tensor) -> Tensor:
    """Mean squared error of the predicted frame; any shape, in [-1, 1]."""
    return F.mse_loss(predicted, following)


def motion_loss(predicted: Tensor, following: Tensor, last: Tensor) -> Tensor:
    """Mean of what the prediction is further from the next frame than from the last: it must not stay behind.

    max(0, (predicted - next)^2 - (predicted - last)^2), zero where nothing moves.
    """
    return F.relu((predicted - following).square() - (predicted - last).square()).mean()


def semantic_loss(predicted_BS: Tensor, semantic_BS: Tensor) -> Tensor:
    """1 - cosine of the predicted and the given description of the scene."""
    return (1 - F.cosine_similarity(predicted_BS, semantic_BS, dim=1)).mean()
