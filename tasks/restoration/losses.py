"""Training losses of restoration: functions of (restored, target)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def l1_loss(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(restored_BCHW, target_BCHW)


def fourier_loss(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error of orthonormal Fourier coefficients (after MIMO-UNet, Cho et al., ICCV 2021).

    The orthonormal scale makes the value independent of the crop size, so one weight serves every training phase.
    """
    difference = torch.fft.rfft2((restored_BCHW - target_BCHW).float(), norm="ortho")
    # A tiny floor keeps the gradient of the modulus finite where a coefficient is exactly right.
    return (torch.view_as_real(difference).square().sum(-1) + 1e-10).sqrt().mean()


def weather_loss(logits_BW: Tensor, labels_BW: Tensor) -> Tensor:
    """Binary cross-entropy per weather (a picture may show several, or none); NaN labels are left out."""
    known_BW = ~labels_BW.isnan()
    error_BW = F.binary_cross_entropy_with_logits(logits_BW, labels_BW.nan_to_num(0.0), reduction="none")
    return (error_BW * known_BW).sum() / known_BW.sum().clamp(min=1)
