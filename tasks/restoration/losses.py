"""Training losses of restoration: errors per picture, and how they are brought together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.backbone.backbone import pad_to_stride


def l1_error(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error of each picture: (B,)."""
    return (restored_BCHW - target_BCHW).abs().mean((1, 2, 3))


def rms_error(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Root of the mean squared error of each picture: (B,).

    Within a picture its minimum is the mean of what may be there, as PSNR wants; that of L1 is the median, and so to
    leave every streak, flake or drop that is not yet more likely than not.
    """
    # A tiny floor keeps the gradient of the root finite where a picture is exactly right.
    return ((restored_BCHW - target_BCHW).square().mean((1, 2, 3)) + 1e-8).sqrt()


def fourier_error(restored_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean absolute error of orthonormal Fourier coefficients (after MIMO-UNet, Cho et al., ICCV 2021): (B,).

    The orthonormal scale makes the value independent of the crop size, so one weight serves every training phase.
    """
    difference = torch.fft.rfft2((restored_BCHW - target_BCHW).float(), norm="ortho")
    # A tiny floor keeps the gradient of the modulus finite where a coefficient is exactly right.
    return (torch.view_as_real(difference).square().sum(-1) + 1e-10).sqrt().mean((1, 2, 3))


def relative(error_B: Tensor, input_error_B: Tensor, power: float, knee: float = 0.03) -> Tensor:
    """Mean of error / (input error + knee) ** power: what is left of each picture's damage.

    Thick haze has ten times the error of drops or snow; in a plain mean (power 0) it is all that is learned, for many
    thousands of steps. At power 1 a picture with little damage counts so much that leaving everything as it is becomes
    the best thing to do for a network that cannot yet tell weathers apart. The knee does that for clean pictures.

    Args:
        error_B: of the restored pictures.
        input_error_B: of the degraded ones, by the same measure; a constant, without gradient.
        power: 0 = all errors alike, 1 = shares of the damage alike.
        knee: damage below which a picture gains no more weight.
    """
    return (error_B / (input_error_B.detach() + knee) ** power).mean()


def opacity_loss(logits_B1hw: Tensor, opacity_B1HW: Tensor) -> Tensor:
    """Binary cross-entropy of how much of the scene drops hide at every place; NaN targets are left out.

    Args:
        logits_B1hw: at stride 2 of the picture padded to a multiple of 8.
        opacity_B1HW: in [0, 1], at the picture's size.
    """
    target_B1hw = F.avg_pool2d(pad_to_stride(opacity_B1HW), 2)
    return _where_known(logits_B1hw, target_B1hw)


def weather_loss(logits_BW: Tensor, labels_BW: Tensor) -> Tensor:
    """Binary cross-entropy per weather (a picture may show several, or none); NaN labels are left out."""
    return _where_known(logits_BW, labels_BW)


def _where_known(logits: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    error = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    return (error * known).sum() / known.sum().clamp(min=1)
