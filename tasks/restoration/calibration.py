"""Whether probabilities mean what they say: calibration measures, temperature scaling, a linear probe.

Plain functions on float64 arrays; N items, C classes, F features.
"""

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BINS = 15


def expected_calibration_error(confidence_N: FloatArray, correct_N: FloatArray, bins: int = BINS) -> float:
    """Mean |accuracy - confidence| over equal-width bins, weighted by how many items fall in (Guo et al. 2017)."""
    bin_N = np.clip((confidence_N * bins).astype(np.int64), 0, bins - 1)
    gap_B = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=bins)
    return float(np.abs(gap_B).sum() / len(confidence_N))


def calibration(probs_NC: FloatArray, target_N: IntArray) -> dict[str, float]:
    """Accuracy, mean confidence, ECE-15, negative log likelihood and Brier score of predicted classes."""
    correct_N = (probs_NC.argmax(1) == target_N).astype(np.float64)
    confidence_N = probs_NC.max(1)
    likelihood_N = np.clip(probs_NC[np.arange(len(target_N)), target_N], 1e-12, None)
    one_hot_NC = np.eye(probs_NC.shape[1])[target_N]
    return {
        "accuracy": float(correct_N.mean()),
        "confidence": float(confidence_N.mean()),
        "ece": expected_calibration_error(confidence_N, correct_N),
        "nll": float(-np.log(likelihood_N).mean()),
        "brier": float(((probs_NC - one_hot_NC) ** 2).sum(1).mean()),
    }


def softmax(logits_NC: FloatArray) -> FloatArray:
    """Over the last axis."""
    shifted = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def fit_temperature(logits_NC: FloatArray, target_N: IntArray) -> float:
    """The T in [0.02, 400] that minimises the negative log likelihood of softmax(logits / T), to 2.5 %.

    A grid, because it cannot diverge when no temperature helps.
    """
    grid = np.geomspace(0.02, 400.0, 400)
    return float(min(grid, key=lambda t: calibration(softmax(logits_NC / t), target_N)["nll"]))


class Probe:
    """Multinomial logistic regression on standardised features with a ridge: convex, hence deterministic.

    Args:
        features_NF: training features.
        label_N: their classes, 0 to classes - 1.
        classes: C.
        ridge: weight of half the squared norm of the coefficients.
    """

    def __init__(self, features_NF: FloatArray, label_N: IntArray, classes: int, ridge: float = 1e-2) -> None:
        self.mean_F, self.scale_F = features_NF.mean(0), features_NF.std(0) + 1e-6
        x_NF, target_N = torch.from_numpy(self._standardise(features_NF)), torch.from_numpy(label_N)
        weight_FC = torch.zeros(x_NF.shape[1], classes, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([weight_FC], max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(x_NF @ weight_FC, target_N) + ridge / 2 * weight_FC.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(loss)  # type: ignore[no-untyped-call]
        self.weight_FC = weight_FC.detach().numpy()

    def __call__(self, features_NF: FloatArray) -> FloatArray:
        """(N, F) -> probabilities (N, C)."""
        return softmax(self._standardise(features_NF) @ self.weight_FC)

    def _standardise(self, features_NF: FloatArray) -> FloatArray:
        return np.hstack([(features_NF - self.mean_F) / self.scale_F, np.ones((len(features_NF), 1))])
