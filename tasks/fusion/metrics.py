"""Fusion metrics as the field has reported them since CDDFuse (CVPR 2023): grey uint8 images, float64 arithmetic.

Every function takes the fused image F and, where it needs them, the sources A and B, all (H, W) with values 0 to 255.
Published tables disagree because their code does (8-bit arithmetic, other value ranges, other windows): the conventions
here are those of CDDFuse's evaluator, for SSIM with the data range 255 that its call leaves out. Nabf is that of Kumar
(Signal, Image and Video Processing 2013) with a weight of 0 where a source has no edge.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float64]
Image = NDArray[np.uint8]

# Better is higher for all but Nabf.
METRICS = ("en", "sd", "sf", "ag", "mi", "scd", "vif", "qabf", "ssim", "nabf")
LOWER_IS_BETTER = frozenset({"nabf"})
# Variance of the noise that visual information fidelity assumes: an absolute figure, for values up to 255.
_VIF_NOISE = 2.0


def fusion_metrics(fused_HW: Image, a_HW: Image, b_HW: Image) -> dict[str, float]:
    """All of METRICS of one fused image; NaN where the images are too small for a metric's window.

    Args:
        fused_HW: the fused image.
        a_HW, b_HW: the sources, of its size; their order changes nothing.

    Raises:
        ValueError: sizes or types differ.
    """
    for image in (fused_HW, a_HW, b_HW):
        if image.dtype != np.uint8 or image.ndim != 2 or image.shape != fused_HW.shape:
            raise ValueError("the fused image and its sources must be (H, W) uint8 of one size")
    fused, a, b = (image.astype(np.float64) for image in (fused_HW, a_HW, b_HW))
    both: dict[str, Callable[[Grey, Grey], float]] = {"mi": mutual_information, "vif": fidelity, "ssim": similarity}
    return {
        "en": entropy(fused),
        "sd": float(fused.std()),
        "sf": spatial_frequency(fused),
        "ag": average_gradient(fused),
        **{name: metric(a, fused) + metric(b, fused) for name, metric in both.items()},
        "scd": correlation(fused - b, a) + correlation(fused - a, b),
        "qabf": edge_preservation(fused, a, b),
        "nabf": fusion_artefacts(fused, a, b),
    }


def grey(image_HWC: NDArray[np.uint8]) -> Image:
    """(H, W, 1 or 3) uint8, RGB -> (H, W): BT.601 luma of full range, rounded (MATLAB's rgb2gray)."""
    if image_HWC.shape[2] == 1:
        return image_HWC[:, :, 0]
    return np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def entropy(image_HW: Grey) -> float:
    """Of the histogram of 256 levels, in bits."""
    return _entropy(np.bincount(image_HW.astype(np.uint8).ravel(), minlength=256)) / float(np.log(2))


def spatial_frequency(image_HW: Grey) -> float:
    """Root of the mean squared differences of neighbours, down plus across; NaN of a single row or column."""
    if min(image_HW.shape) < 2:
        return float("nan")
    return float(np.sqrt(sum(np.mean(np.diff(image_HW, axis=axis) ** 2) for axis in (0, 1))))


def average_gradient(image_HW: Grey) -> float:
    """Mean length of the gradient by central differences, over the root of 2; NaN of a single row or column."""
    if min(image_HW.shape) < 2:
        return float("nan")
    down_HW, across_HW = np.gradient(image_HW)
    return float(np.mean(np.sqrt((down_HW**2 + across_HW**2) / 2)))


def mutual_information(a_HW: Grey, b_HW: Grey) -> float:
    """Of the joint histogram of 256 x 256 levels, in nats."""
    pairs = a_HW.astype(np.int64) * 256 + b_HW.astype(np.int64)
    joint = np.bincount(pairs.ravel(), minlength=65536).reshape(256, 256)
    return _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint.ravel())


def correlation(a_HW: Grey, b_HW: Grey) -> float:
    """Pearson's, over all pixels; 0 where one of them is constant."""
    a, b = a_HW - a_HW.mean(), b_HW - b_HW.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def similarity(a_HW: Grey, b_HW: Grey) -> float:
    """Structural similarity with a uniform 7x7 window, sample covariances and data range 255, interior only."""
    window = 7
    if min(a_HW.shape) < window:
        return float("nan")
    a_mean, b_mean, aa, bb, ab = (
        _interior(np.asarray(cv2.blur(x, (window, window)), np.float64), window // 2)
        for x in (a_HW, b_HW, a_HW * a_HW, b_HW * b_HW, a_HW * b_HW)
    )
    sample = window**2 / (window**2 - 1)
    a_var, b_var, cov = (sample * (xy - x * y) for xy, x, y in _products(aa, bb, ab, a_mean, b_mean))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * a_mean * b_mean + c1) * (2 * cov + c2)
    return float(np.mean(likeness / ((a_mean**2 + b_mean**2 + c1) * (a_var + b_var + c2))))


def fidelity(source_HW: Grey, fused_HW: Grey) -> float:
    """Visual information fidelity in the pixel domain at four scales (Sheikh and Bovik 2006)."""
    kept = total = 0.0
    for scale in range(1, 5):
        side = 2 ** (5 - scale) + 1
        if scale > 1:
            source_HW, fused_HW = (_gaussian(x, side)[::2, ::2] for x in (source_HW, fused_HW))
        if min(source_HW.shape) < side:
            return float("nan")
        s_mean, f_mean, ss, ff, sf = (
            _gaussian(x, side)
            for x in (source_HW, fused_HW, source_HW * source_HW, fused_HW * fused_HW, source_HW * fused_HW)
        )
        s_var, f_var, cov = (xy - x * y for xy, x, y in _products(ss, ff, sf, s_mean, f_mean))
        s_var, f_var = np.maximum(s_var, 0), np.maximum(f_var, 0)
        gain = cov / (s_var + 1e-10)
        noise = f_var - gain * cov
        flat = s_var < 1e-10
        gain[flat], noise[flat], s_var[flat] = 0, f_var[flat], 0
        lost = f_var < 1e-10
        gain[lost], noise[lost] = 0, 0
        against = gain < 0
        noise[against], gain[against] = f_var[against], 0
        noise = np.maximum(noise, 1e-10)
        kept += float(np.log10(1 + gain**2 * s_var / (noise + _VIF_NOISE)).sum())
        total += float(np.log10(1 + s_var / _VIF_NOISE).sum())
    return kept / total if total > 0 else 1.0


def edge_preservation(fused_HW: Grey, a_HW: Grey, b_HW: Grey) -> float:
    """Qabf (Xydeas and Petrovic 2000): how much of the sources' edges is left, weighted by their strength."""
    sources = [_edges(x, cv2.BORDER_CONSTANT, 1.0) for x in (a_HW, b_HW)]
    fused = _edges(fused_HW, cv2.BORDER_CONSTANT, 1.0)
    weight = sum(float(strength.sum()) for strength, _ in sources)
    kept = sum(float((_edge_quality(source, fused) * source[0]).sum()) for source in sources)
    return kept / weight if weight > 0 else 0.0


def fusion_artefacts(fused_HW: Grey, a_HW: Grey, b_HW: Grey) -> float:
    """Nabf (Kumar 2013): edges that are in the fused image and in no source; lower is better."""
    sources = [_edges(x, cv2.BORDER_REFLECT_101, 1 / 8) for x in (a_HW, b_HW)]
    fused = _edges(fused_HW, cv2.BORDER_REFLECT_101, 1 / 8)
    new_HW = (fused[0] > sources[0][0]) & (fused[0] > sources[1][0])
    weights = [np.where(strength >= 2, strength**1.5, 0.0) for strength, _ in sources]
    lost = sum((1 - _edge_loss(source, fused)) * weight for source, weight in zip(sources, weights, strict=True))
    total = sum(float(weight.sum()) for weight in weights)
    return float(np.sum(lost * new_HW)) / total if total > 0 else 0.0


def _entropy(counts: NDArray[np.int64]) -> float:
    """In nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _products(aa: Grey, bb: Grey, ab: Grey, a: Grey, b: Grey) -> tuple[tuple[Grey, Grey, Grey], ...]:
    """Second moments beside the two first moments that each is taken about."""
    return (aa, a, a), (bb, b, b), (ab, a, b)


def _interior(image_HW: Grey, border: int) -> Grey:
    return image_HW[border : image_HW.shape[0] - border, border : image_HW.shape[1] - border]


def _gaussian(image_HW: Grey, side: int) -> Grey:
    """Blurred with a window of that side and a fifth of it as sigma; only where the window lies inside."""
    kernel = cv2.getGaussianKernel(side, side / 5, cv2.CV_64F)
    return _interior(np.asarray(cv2.sepFilter2D(image_HW, cv2.CV_64F, kernel, kernel)), side // 2)


def _edges(image_HW: Grey, border: int, scale: float) -> tuple[Grey, Grey]:
    """Strength and direction of the Sobel gradient: -pi/2 < direction <= pi/2, measured up from the left."""
    x, y = (cv2.Sobel(image_HW, cv2.CV_64F, dx, 1 - dx, ksize=3, scale=scale, borderType=border) for dx in (1, 0))
    return np.sqrt(x * x + y * y), np.where(x == 0, np.pi / 2, np.arctan(y / np.where(x == 0, 1, -x)))


def _edge_quality(source: tuple[Grey, Grey], fused: tuple[Grey, Grey]) -> Grey:
    (s_strength, s_direction), (f_strength, f_direction) = source, fused
    strength = _ratio(s_strength, f_strength)
    # The reference code takes the strength itself where the two are equal; so do all published figures.
    strength = np.where(s_strength == f_strength, f_strength, strength)
    direction = 1 - np.abs(s_direction - f_direction) / (np.pi / 2)
    return _sigmoid(strength, 0.9994, 15, 0.5) * _sigmoid(direction, 0.9879, 22, 0.8)


def _edge_loss(source: tuple[Grey, Grey], fused: tuple[Grey, Grey]) -> Grey:
    strength = np.where((source[0] == 0) | (fused[0] == 0), 0, _ratio(source[0], fused[0]))
    direction = np.abs(np.abs(source[1] - fused[1]) - np.pi / 2) * 2 / np.pi
    return np.asarray(np.sqrt(_sigmoid(strength, 0.9999, 19, 0.5) * _sigmoid(direction, 0.9995, 22, 0.5)))


def _ratio(a: Grey, b: Grey) -> Grey:
    """The smaller over the larger."""
    larger = np.maximum(a, b)
    return np.asarray(np.minimum(a, b) / np.where(larger == 0, 1, larger))


def _sigmoid(x: Grey, top: float, slope: float, middle: float) -> Grey:
    return np.asarray(top / (1 + np.exp(-slope * (x - middle))))
