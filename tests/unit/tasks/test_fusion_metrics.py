"""Fusion metrics: the published golden figures, and what must hold of any picture."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.tasks.fusion.metrics import METRICS, fusion_metrics, grey

# Three TNO pairs as four published methods fused them, by CDDFuse's evaluator (SSIM with data range 255) and Kumar's
# Nabf: measured once with the original code, in the order of METRICS.
GOLDEN = {
    ("05", "seafusion"): (7.44790, 57.14379, 24.78642, 10.56659, 1.79631, 1.88460, 0.51033, 0.54051, 1.07244, 0.07395),
    ("05", "piafusion"): (7.21240, 49.44474, 20.96496, 8.91232, 1.98558, 1.89744, 0.61058, 0.64904, 1.10469, 0.02109),
    ("05", "densefuse"): (7.35529, 51.40268, 21.79205, 9.08218, 1.96796, 1.97635, 0.56247, 0.57284, 1.15907, 0.03326),
    ("05", "u2fusion"): (7.48319, 52.02895, 24.71923, 11.19096, 1.67226, 1.88616, 0.48297, 0.51939, 1.05130, 0.09096),
    ("08", "seafusion"): (6.86339, 45.50296, 22.74990, 8.91202, 3.09903, 1.71106, 1.01378, 0.67177, 1.56569, 0.04979),
    ("08", "piafusion"): (6.65823, 40.79895, 21.95724, 8.39995, 3.15158, 1.56101, 1.03437, 0.66399, 1.42906, 0.03570),
    ("08", "densefuse"): (6.47481, 33.13714, 16.40425, 6.41245, 2.98854, 1.13196, 0.95963, 0.64781, 1.69646, 0.00004),
    ("08", "u2fusion"): (5.95198, 32.79766, 20.35062, 7.21416, 2.29097, 0.84758, 0.76874, 0.53958, 1.59120, 0.03150),
    ("17", "seafusion"): (7.40417, 59.62554, 10.81772, 4.56852, 2.07250, 1.83294, 0.71653, 0.48790, 1.35122, 0.06952),
    ("17", "piafusion"): (6.96132, 49.86681, 7.58659, 2.90140, 2.43654, 1.65930, 0.72663, 0.44889, 1.45346, 0.01195),
    ("17", "densefuse"): (6.90523, 43.11025, 7.17247, 2.99028, 1.58732, 1.82530, 0.60487, 0.42078, 1.42143, 0.00315),
    ("17", "u2fusion"): (7.06336, 45.29401, 9.46051, 4.13541, 1.43260, 1.80567, 0.57590, 0.39772, 1.31875, 0.06784),
}
sizes = st.integers(1, 70)


def images(seed, height, width, count):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


@pytest.mark.parametrize(("number", "method"), GOLDEN)
def test_published_fused_images_have_the_golden_figures(number, method):
    folder = Path(os.environ.get("MOEVISION_DATA", "")) / "fusion" / "golden_tno3"
    if not folder.is_dir():
        pytest.skip("MOEVISION_DATA does not name a folder with fusion/golden_tno3: real data is not shipped")
    fused, ir, vis = (
        cv2.imread(str(folder / part / f"{number}.png"), cv2.IMREAD_GRAYSCALE) for part in (method, "ir", "vis")
    )
    measured = fusion_metrics(fused, ir, vis)
    assert [measured[name] for name in METRICS] == pytest.approx(GOLDEN[number, method], abs=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes, sizes, st.integers(0, 99))
def test_any_size_gives_every_metric_and_the_order_of_the_sources_does_not_matter(height, width, seed):
    fused, a, b = images(seed, height, width, 3)
    one, other = fusion_metrics(fused, a, b), fusion_metrics(fused, b, a)
    assert set(one) == set(METRICS)
    assert one == pytest.approx(other, nan_ok=True)
    assert np.isfinite(one["vif"]) == (min(height, width) >= 41)
    assert np.isfinite(one["ssim"]) == (min(height, width) >= 7)


def test_two_equal_sources_fused_into_themselves_are_perfect():
    image = cv2.GaussianBlur(images(0, 96, 80, 1)[0], (5, 5), 1)
    measured = fusion_metrics(image, image, image)
    assert measured["vif"] == pytest.approx(2, abs=1e-3)
    assert measured["ssim"] == pytest.approx(2)
    assert measured["nabf"] == 0
    assert measured["mi"] == pytest.approx(2 * measured["en"] * np.log(2))


def test_noise_in_no_source_raises_nabf_and_lowers_the_rest_that_compare():
    rng = np.random.default_rng(0)
    a, b = (cv2.GaussianBlur(image, (9, 9), 3) for image in images(1, 96, 96, 2))
    clean = np.maximum(a, b)
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    before, after = fusion_metrics(clean, a, b), fusion_metrics(noisy, a, b)
    assert after["nabf"] > before["nabf"]
    assert all(after[name] < before[name] for name in ("mi", "scd", "vif", "qabf", "ssim"))
    assert all(after[name] > before[name] for name in ("sf", "ag"))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_level_images_give_numbers_instead_of_divisions_by_zero(value):
    level = np.full((64, 64), value, np.uint8)
    measured = fusion_metrics(level, level, level)
    assert all(np.isfinite(number) for number in measured.values())
    assert measured["en"] == measured["sd"] == measured["nabf"] == 0


def test_grey_is_the_rounded_luma_and_leaves_grey_alone():
    assert grey(np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]], np.uint8)).tolist() == [[76, 150, 18]]
    assert grey(np.array([[[7], [9]]], np.uint8)).tolist() == [[7, 9]]


def test_sizes_or_types_that_differ_are_refused():
    a, b = images(0, 8, 8, 2)
    with pytest.raises(ValueError, match="one size"):
        fusion_metrics(a[:4], a, b)
    with pytest.raises(ValueError, match="uint8"):
        fusion_metrics(a.astype(np.float32), a, b)
