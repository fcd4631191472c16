"""Bring one picture of a view onto another of the same view: a homography from a file, or found by ECC.

Infrared and visible brightness have little in common, edges have more: correlation is of edges, strength and direction,
from coarse to fine (Evangelidis and Psarakis, PAMI 2008). A found warp is taken only where it helps. No homography can
mend parallax: things at other distances than the plane it fits stay shifted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.errors import UsageError

_LEVELS = 3
_MINIMUM_GAIN = 0.02
_LARGEST_SHIFT = 0.08  # of the diagonal
_FILTER_PX = 5
_SURROUNDINGS_PX = 31
_ITERATIONS = 200


class Registration(NamedTuple):
    """A warp of `moving` onto `fixed`.

    Attributes:
        warp_33: maps points (x, y, 1) of the fixed picture to the moving one, in pixels.
        correlation_before, correlation_after: of edges, -1 to 1; NaN where nothing was measured.
        shift_px: the furthest that a corner moves.
        taken: whether the warp is used; the identity otherwise.
    """

    warp_33: NDArray[np.float64]
    correlation_before: float
    correlation_after: float
    shift_px: float
    taken: bool


def read_homography(path: Path) -> NDArray[np.float64]:
    """A 3x3 matrix, JSON lists of rows, that maps points of the visible picture to the infrared one, in pixels.

    Raises UsageError if the file is missing, or holds anything else than nine finite numbers of an invertible matrix.
    """
    try:
        warp_33 = np.array(json.loads(path.read_text("utf-8")), dtype=np.float64)
    except OSError as error:
        raise UsageError(f"--register {path}: {error.strerror}; use none, ecc, or a JSON file with 3 rows") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--register {path}: not a 3x3 matrix in JSON ({error})") from error
    if warp_33.shape != (3, 3) or not np.isfinite(warp_33).all() or abs(np.linalg.det(warp_33)) < 1e-12:
        raise UsageError(f"--register {path}: needs three rows of three numbers, an invertible matrix")
    return warp_33


def register_ecc(fixed_HW: NDArray[np.float32], moving_HW: NDArray[np.float32]) -> Registration:
    """Find the rotation and shift of `moving` onto `fixed`, both (H, W) in [0, 1] of one size.

    Cameras side by side differ by little else; an affine warp has freedom enough to follow parallax, and errs by 3 px
    on RoadScene where this one errs by 1, which is how well those pairs are aligned themselves.

    Taken if the correlation of the edges gains at least 0.02 and no corner moves further than 8 % of the diagonal.
    """
    fixed, moving = _edges(fixed_HW), _edges(moving_HW)
    height, width = fixed_HW.shape
    before = _correlation(fixed, moving)
    warp_33 = np.eye(3)
    try:
        for level in reversed(range(_LEVELS)):
            scale = 0.5**level
            if min(height, width) * scale < 4 * _FILTER_PX:
                continue
            small = [cv2.resize(x, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for x in (fixed, moving)]
            start = _scaled(warp_33, scale)[:2].astype(np.float32)
            criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, 1e-6)
            everywhere = np.ones(small[0].shape[:2], np.uint8)
            _, found_23 = cv2.findTransformECC(
                small[0], small[1], start, cv2.MOTION_EUCLIDEAN, criteria, everywhere, _FILTER_PX
            )
            warp_33 = _scaled(np.vstack([found_23, [0, 0, 1]]), 1 / scale)
    except cv2.error:  # it did not converge
        return Registration(np.eye(3), before, before, 0.0, taken=False)
    shift_px = corner_shift_px(warp_33, (height, width))
    after = _correlation(fixed, warp(moving, warp_33, (height, width))[0])
    good = after - before >= _MINIMUM_GAIN and shift_px <= _LARGEST_SHIFT * math.hypot(height, width)
    return Registration(warp_33 if good else np.eye(3), before, after, shift_px, taken=bool(good))


def warp(
    moving_HW: NDArray[np.float32], warp_33: NDArray[np.float64], size_hw: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`moving`, (H, W) or (H, W, C), seen from the fixed picture of that size, and where it has nothing to show."""
    flags = cv2.WARP_INVERSE_MAP
    size = (size_hw[1], size_hw[0])
    warped_HW = cv2.warpPerspective(moving_HW, warp_33, size, None, flags | cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    inside_HW = cv2.warpPerspective(
        np.ones(moving_HW.shape[:2], np.float32), warp_33, size, None, flags | cv2.INTER_NEAREST
    )
    return np.asarray(warped_HW, np.float32), np.asarray(inside_HW) < 0.5


def corner_shift_px(warp_33: NDArray[np.float64], size_hw: tuple[int, int]) -> float:
    """The furthest that a corner of a picture of that size is from where the warp sends it."""
    height, width = size_hw
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], np.float64)
    moved = corners @ warp_33.T
    return float(np.linalg.norm(moved[:, :2] / moved[:, 2:] - corners[:, :2], axis=1).max())


def _edges(image_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3): strength of the edge at every pixel, and strength times cosine and sine of twice its angle.

    Strength is the root of the gradient over its mean in the surroundings, so that a few strong edges do not decide
    alone. Twice the angle is the same for an edge from dark to bright and one from bright to dark, which is what
    infrared often makes of the other.
    """
    smooth_HW = cv2.GaussianBlur(image_HW, (0, 0), 1.0)
    across_HW, down_HW = (cv2.Sobel(smooth_HW, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    square_HW = across_HW**2 + down_HW**2
    length_HW = np.sqrt(square_HW)
    strength_HW = np.sqrt(length_HW / (cv2.blur(length_HW, (_SURROUNDINGS_PX, _SURROUNDINGS_PX)) + 0.01))
    cosine_HW, sine_HW = (across_HW**2 - down_HW**2, 2 * across_HW * down_HW)
    unit_HW = strength_HW / (square_HW + 1e-8)
    return np.dstack([strength_HW, unit_HW * cosine_HW, unit_HW * sine_HW]).astype(np.float32)


def _correlation(a_HWC: NDArray[np.float32], b_HWC: NDArray[np.float32]) -> float:
    a, b = a_HWC - a_HWC.mean((0, 1)), b_HWC - b_HWC.mean((0, 1))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _scaled(warp_33: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """The same warp between pictures `scale` times as large; pixel centres are at half pixels."""
    to = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]])
    return np.asarray(to @ warp_33 @ np.linalg.inv(to))
