"""Gradient modulation: slow down the encoder that runs ahead (AGM, Li et al., ICCV 2023), carried over to fusion.

AGM weighs modalities of a classifier by the cross entropy of their shares. Fusion has no labels: here a modality's
score is how much of its own gradients is missing when it is fused alone, with the other one black. An encoder that does
better than its running balance gets smaller gradients, the other one larger.
"""

import torch
from torch import Tensor, nn

from moevision.tasks.fusion.losses import sobel

EVERY = 4  # steps between two measurements: each costs two passes
ALPHA = 2.5


class ModalityBalance(nn.Module):
    """Keeps the running scores of (visible, infrared) and the factors of their encoders' gradients, as buffers."""

    def __init__(self, alpha: float = ALPHA) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("running_2", torch.zeros(2))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("kappa_2", torch.ones(2))

    running_2: Tensor
    count: Tensor
    kappa_2: Tensor

    def attach(self, net: nn.Module) -> None:
        """Multiply the gradients of `net.visible` and `net.infrared` by their factors from now on."""
        for modality, encoder in enumerate((net.visible, net.infrared)):
            for parameter in encoder.parameters():  # type: ignore[union-attr, operator]
                parameter.register_hook(lambda gradient, m=modality: gradient * self.kappa_2[m])

    @torch.no_grad()
    def update(self, net: nn.Module, visible: Tensor, infrared: Tensor) -> None:
        """Measure both modalities on a batch, (B, 1, H, W) each, and set the factors."""
        was_training = net.training
        net.eval()  # no noise in the gates
        black = torch.zeros_like(visible)
        alone = (net(visible, black)[0], visible), (net(black, infrared)[0], infrared)
        net.train(was_training)
        self.observe(torch.stack([missing_gradients(fused, source) for fused, source in alone]))

    @torch.no_grad()
    def observe(self, score_2: Tensor) -> None:
        """From new scores, lower is better: kappa = exp(alpha * (running ratio - ratio)), as AGM does.

        A ratio is exp(2 * (mean score - score)): above 1 for the modality that does better than the other.
        """
        self.running_2.copy_((self.running_2 * self.count + score_2) / (self.count + 1))
        self.count += 1
        self.kappa_2.copy_(torch.exp(self.alpha * (_ratio(self.running_2) - _ratio(score_2))))


def missing_gradients(fused: Tensor, source: Tensor) -> Tensor:
    """Mean distance of the gradients of both, relative to those of the source; a scalar."""
    pairs = list(zip(sobel(fused), sobel(source), strict=True))
    distance = sum((f - s).abs().mean() for f, s in pairs)
    return torch.as_tensor(distance / (sum(s.abs().mean() for _, s in pairs) + 1e-4))


def _ratio(score_2: Tensor) -> Tensor:
    return torch.exp(2 * (score_2.mean() - score_2))
