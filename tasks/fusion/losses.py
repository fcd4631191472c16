"""What a good fused picture is, without one to compare with: the field's own measures, in differentiable form.

There is no ground truth in fusion. MoE-Fusion (ICCV 2023) pulls the foreground to the brighter source, the background
to the mean, and gradients to the steeper one. A pull to the mean washes the picture out, so here the brighter source is
the target everywhere, and what it lacks is measured by structural similarity, visual information fidelity, edge
preservation and the sum of correlations of differences, as in `metrics` but on crops. All take (B, 1, H, W) in [0, 1].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_VIF_NOISE = 2.0 / 255**2
_SALIENT = 0.1  # brighter than the surroundings by this, in the infrared
_SURROUNDINGS_PX = 31
_WINDOW_PX = 7
_DARK = 0.1  # of full scale: what is darker counts no more


def brighter(visible: Tensor, infrared: Tensor) -> Tensor:
    """The larger value of every pixel: the target of the fused picture's brightness."""
    return torch.maximum(visible, infrared)


def intensity_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """Mean distance to the brighter source, of every picture relative to its brightness: night counts as day does."""
    target = brighter(visible, infrared)
    return ((fused - target).abs().mean((1, 2, 3)) / (target.mean((1, 2, 3)) + _DARK)).mean()


def gradient_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """Mean distance of the gradient, down and across with its sign, to that of the steeper source."""
    terms = []
    for f, v, i in zip(sobel(fused), sobel(visible), sobel(infrared), strict=True):
        terms.append((f - torch.where(v.abs() >= i.abs(), v, i)).abs().mean())
    return torch.stack(terms).sum()


def artefact_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """Mean steepness beyond that of both sources: what Nabf counts."""
    steepness, v, i = (_length(sobel(x)) for x in (fused, visible, infrared))
    return F.relu(steepness - torch.maximum(v, i)).mean()


def structure_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """2 - SSIM(F, V) - SSIM(F, I), windows of 7x7."""
    return 2 - _ssim(fused, visible) - _ssim(fused, infrared)


def difference_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """2 - SCD: how far F - I is from V, and F - V from I, in correlation (Aslantas and Bendes 2015)."""
    return 2 - _correlation(fused - infrared, visible) - _correlation(fused - visible, infrared)


def fidelity_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """2 - VIF of both sources, at three scales."""
    return 2 - _fidelity(visible, fused) - _fidelity(infrared, fused)


def edge_loss(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """1 - Qabf: strength and direction of the sources' edges that are lost, weighted by their strength."""
    fx, fy = sobel(fused)
    steepness = _length((fx, fy))
    kept, weight = [], []
    for source in (visible, infrared):
        sx, sy = sobel(source)
        strength = _length((sx, sy))
        ratio = torch.minimum(strength, steepness) / torch.maximum(strength, steepness).clamp_min(1e-4)
        # Qabf looks at the angle between the two lines; its cosine has no jump where they turn.
        cosine = (sx * fx + sy * fy).abs() / (strength * steepness).clamp_min(1e-6)
        direction = 1 - torch.acos(cosine.clamp(0, 1 - 1e-6)) / (torch.pi / 2)
        kept.append(torch.sigmoid(15 * (ratio - 0.5)) * torch.sigmoid(22 * (direction - 0.8)) * strength)
        weight.append(strength)
    return 1 - torch.stack(kept).sum() / torch.stack(weight).sum().clamp_min(1e-6)


def contrast_loss(fused: Tensor, visible: Tensor, infrared: Tensor, stretch: float = 1.1) -> Tensor:
    """How far the deviation of the picture falls short of `stretch` times that of the brighter source."""
    wanted = stretch * brighter(visible, infrared).std((1, 2, 3))
    return F.relu(wanted - fused.std((1, 2, 3))).mean()


def salience_loss(logits_B1hw: Tensor, infrared: Tensor) -> Tensor:
    """Cross entropy to what is brighter in the infrared than its surroundings, at the logits' stride."""
    pad = _SURROUNDINGS_PX // 2
    around = F.avg_pool2d(infrared, _SURROUNDINGS_PX, 1, pad, count_include_pad=False)
    salient = (infrared - around > _SALIENT).float()
    stride = infrared.shape[-1] // logits_B1hw.shape[-1]
    return F.binary_cross_entropy_with_logits(logits_B1hw, F.avg_pool2d(salient, stride))


def sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient across and down, (B, 1, H, W) each, borders mirrored; per pixel of full scale."""
    kernel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    both = torch.stack([kernel, kernel.T]).unsqueeze(1)
    across, down = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), both).split(1, dim=1)
    return across, down


def _length(gradient: tuple[Tensor, Tensor]) -> Tensor:
    return torch.sqrt(gradient[0] ** 2 + gradient[1] ** 2 + 1e-8)


def _moments(a: Tensor, b: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and covariance in windows, interior only; `kernel` is one side of a separable window."""
    x = torch.cat([a, b, a * a, b * b, a * b], 1)
    weight = kernel.expand(5, 1, 1, -1)
    x = F.conv2d(F.conv2d(x, weight, groups=5), weight.mT, groups=5)
    a_mean, b_mean, aa, bb, ab = x.split(1, dim=1)
    return a_mean, b_mean, (aa - a_mean**2).clamp_min(0), (bb - b_mean**2).clamp_min(0), ab - a_mean * b_mean


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    window = a.new_full((_WINDOW_PX,), 1 / _WINDOW_PX)
    a_mean, b_mean, a_var, b_var, cov = _moments(a, b, window)
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * a_mean * b_mean + c1) * (2 * cov + c2)
    return (likeness / ((a_mean**2 + b_mean**2 + c1) * (a_var + b_var + c2))).mean()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x - x.mean((1, 2, 3), keepdim=True) for x in (a, b))
    scale = torch.sqrt((a * a).sum((1, 2, 3)) * (b * b).sum((1, 2, 3)) + 1e-6)
    return ((a * b).sum((1, 2, 3)) / scale).mean()


def _fidelity(source: Tensor, fused: Tensor) -> Tensor:
    kept, total = [], []
    for scale, side in enumerate((17, 9, 5)):
        at = torch.arange(side, dtype=source.dtype, device=source.device) - side // 2
        kernel = torch.exp(-0.5 * (at / (side / 5)) ** 2)
        kernel = kernel / kernel.sum()
        if scale:
            weight = kernel.view(1, 1, 1, -1)
            source, fused = (F.conv2d(F.conv2d(x, weight), weight.mT)[..., ::2, ::2] for x in (source, fused))
        _, _, s_var, f_var, cov = _moments(source, fused, kernel)
        gain = (cov / (s_var + 1e-8)).clamp_min(0)
        noise = (f_var - gain * cov).clamp_min(1e-10)
        kept.append(torch.log10(1 + gain**2 * s_var / (noise + _VIF_NOISE)).sum((1, 2, 3)))
        total.append(torch.log10(1 + s_var / _VIF_NOISE).sum((1, 2, 3)))
    return (torch.stack(kept).sum(0) / torch.stack(total).sum(0).clamp_min(1e-6)).mean()
