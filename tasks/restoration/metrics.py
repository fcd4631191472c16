"""PSNR and SSIM as the restoration literature reports them: uint8 images, whole picture, RGB and luma."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

# ITU-R BT.601 luma with studio swing, the "Y channel" of the deraining papers (MATLAB's rgb2ycbcr).
_LUMA = np.array([65.481, 128.553, 24.966], dtype=np.float64) / 255


def psnr(restored_HWC: NDArray[np.uint8], target_HWC: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all values of two uint8 images of the same shape; inf if they are equal."""
    return _psnr(restored_HWC.astype(np.float64), target_HWC.astype(np.float64))


def ssim(restored_HWC: NDArray[np.uint8], target_HWC: NDArray[np.uint8]) -> float:
    """Mean structural similarity (Gaussian window 11, sigma 1.5; Wang et al. 2004), mean over the channels."""
    return _ssim(_to_tensor(restored_HWC / 255.0), _to_tensor(target_HWC / 255.0))


def quality(restored_HWC: NDArray[np.uint8], target_HWC: NDArray[np.uint8]) -> dict[str, float]:
    """The four numbers of `moevision evaluate restoration`: psnr, ssim, psnr_y, ssim_y."""
    restored_y, target_y = luma(restored_HWC), luma(target_HWC)
    return {
        "psnr": psnr(restored_HWC, target_HWC),
        "ssim": ssim(restored_HWC, target_HWC),
        "psnr_y": _psnr(restored_y, target_y),
        "ssim_y": _ssim(_to_tensor(restored_y[..., None] / 255), _to_tensor(target_y[..., None] / 255)),
    }


def luma(image_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """BT.601 luma (H, W) in 16..235, not rounded."""
    return np.asarray(image_HWC.astype(np.float64) @ _LUMA + 16.0)


def _psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _ssim(a_1CHW: torch.Tensor, b_1CHW: torch.Tensor) -> float:
    from kornia.metrics import ssim as kornia_ssim  # takes seconds to import; only evaluation needs it

    window = 11
    if min(a_1CHW.shape[-2:]) < window:
        return float("nan")
    return float(kornia_ssim(a_1CHW, b_1CHW, window, padding="valid").mean())


def _to_tensor(image_HWC: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)[None]
