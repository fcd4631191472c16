"""Training losses of restoration: errors per picture, and how they are brought together."""

import torch
from torch import Tensor
from torch.nn import functional as F


def l1_error(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error of each picture: (B,)."""
    return (restored_BCHW - target_BCHW).abs().mean((1, 2, 3))


def fourier_error(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error of orthonormal Fourier coefficients (after MIMO-UNet, Cho et al., ICCV 2021): (B,).

    The orthonormal scale makes the value independent of the crop size, so one weight serves every training phase.
    """
    difference = torch.fft.rfft2((restored_BCHW - target_BCHW).float(), norm="ortho")
    # A tiny floor keeps the gradient of the modulus finite where a coefficient is exactly right.
    return (torch.view_as_real(difference).square().sum(-1) + 1e-10).sqrt().mean((1, 2, 3))


def balanced(error_B: Tensor, knee: float = 0.01) -> Tensor:
    """knee * mean(log(1 + error / knee)): every picture counts by the share, not the amount, of its error it loses.

    Thick haze has ten times the error of drops or snow; in a plain mean it would be all that is learned. PSNR is a
    logarithm too. Below the knee (pictures that are nearly right) the error itself counts.
    """
    return knee * torch.log1p(error_B / knee).mean()


def weather_loss(logits_BW: Tensor, labels_BW: Tensor) -> Tensor:
    """Binary cross-entropy per weather (a picture may show several, or none); NaN labels are left out."""
    known_BW = ~labels_BW.isnan()
    error_BW = F.binary_cross_entropy_with_logits(logits_BW, labels_BW.nan_to_num(0.0), reduction="none")
    return (error_BW * known_BW).sum() / known_BW.sum().clamp(min=1)
