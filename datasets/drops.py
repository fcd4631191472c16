"""Raindrops on the lens or window: small lenses that show the scene upside down, out of focus.

After the optics in "Attentive GAN for raindrop removal" (Qian et al. 2018): input = (1 - alpha) * scene + drop. The
camera focuses on the scene, so a drop's edge and what it shows are blurred; a drop takes in a wide angle, so it shows
nearly the whole (inverted) scene and sky outside the frame: grey-blue, bright at its lower end, dark at its upper rim.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from moevision.datasets.light import ImageArray, smooth_field

_SHAPES = 5  # different drops per window; more cost time and are not told apart
_MOST_DROPS = 150  # in 128x128 pixels, in proportion in more


@dataclass(frozen=True)
class Glass:
    """What one wet window looks like."""

    radius_px: float  # typical radius; drops scatter log-normally around it
    cover: float  # share of the picture under drops
    defocus_px: float  # blur of the drops' edges
    opacity: float
    contrast: float  # bright lower end against dark upper rim
    trails: bool


def _draw_glass(rng: np.random.Generator, strength: float) -> Glass:
    """Random window; `strength` in [0, 1] raises the covered share and the opacity."""
    radius = float(np.exp(rng.uniform(np.log(3.0), np.log(36.0))))
    return Glass(
        radius_px=radius,
        cover=float(0.05 + 0.8 * strength * rng.uniform(0.5, 1.0)),
        defocus_px=float(min(radius, 24.0) * rng.uniform(0.15, 0.65)),
        opacity=float(np.clip(0.6 + 0.4 * strength + rng.normal(0.0, 0.15), 0.4, 1.0)),
        contrast=float(rng.uniform(0.0, 0.7)),
        trails=bool(rng.random() < 0.12),
    )


def _outline(rng: np.random.Generator, x_HW: ImageArray, y_HW: ImageArray, radius: float, trails: bool) -> ImageArray:
    """Alpha in [0, 1] of one drop, HW; x, y in drop radii from its centre."""
    flat, tall = np.float32(rng.uniform(0.85, 1.3)), np.float32(rng.uniform(0.7, 1.1))
    # A few overlapping balls whose fields add (metaballs): lopsided outlines instead of circles.
    field_HW = np.exp(np.float32(-1.2) * (x_HW**2 * flat + y_HW**2 * tall))
    for _ in range(int(rng.integers(0, 4))):
        shift_x, shift_y = rng.normal(0.0, 0.45, 2).astype(np.float32)
        spread = np.float32(rng.uniform(2.0, 4.5))
        field_HW = field_HW + np.float32(0.5) * np.exp(-spread * ((x_HW - shift_x) ** 2 + (y_HW - shift_y) ** 2))
    if trails and rng.random() < 0.4:
        tail_HW = np.exp(-((x_HW / np.float32(0.35)) ** 2)) * (y_HW < 0)
        field_HW = np.maximum(field_HW, np.float32(0.42) * tail_HW)
    edge = np.float32(4.0 * min(1.0, radius / 8.0) + 2.0)
    return np.clip((field_HW - np.float32(0.36)) * edge, 0.0, 1.0)


def _lens(rng: np.random.Generator, glass: Glass, view_px: float) -> ImageArray:
    """One drop as a patch HW4: where it looks (x, y in pixels from its own axis), light it adds, alpha."""
    radius = float(np.clip(glass.radius_px * np.exp(rng.normal(0.0, 0.5)), 1.0, 45.0))
    reach = int(np.ceil(radius * 1.5)) + 1
    axis = np.arange(-reach, reach + 1, dtype=np.float32) / np.float32(radius)
    x_HW, y_HW = np.meshgrid(axis, axis)
    alpha_HW = _outline(rng, x_HW, y_HW, radius, glass.trails)
    squared_HW = x_HW**2 + y_HW**2
    sight_HW = np.float32(-view_px) * (1.0 + np.float32(0.35) * squared_HW)  # minus: the picture is inverted
    spot_HW = np.exp(-((x_HW / np.float32(0.7)) ** 2) - ((y_HW - np.float32(0.45)) / np.float32(0.4)) ** 2)
    rim_HW = np.clip(squared_HW - np.float32(0.3), 0.0, 1.0) * np.clip(0.4 - y_HW, 0.0, 1.0)
    light_HW = np.float32(glass.contrast) * (np.float32(0.55) * spot_HW - np.float32(0.4) * rim_HW)
    opaque = np.float32(rng.uniform(0.6, 1.0))
    return np.dstack([x_HW * sight_HW, y_HW * sight_HW, light_HW, alpha_HW * opaque]).astype(np.float32)


def _stamp(canvas_HW4: ImageArray, lens_HW4: ImageArray, row: int, column: int, lift: float) -> None:
    """Put one drop on the canvas, in place, where it is thicker than those already there."""
    height, width = canvas_HW4.shape[:2]
    reach = lens_HW4.shape[0] // 2
    top, left = max(0, row - reach), max(0, column - reach)
    below = canvas_HW4[top : max(0, row + reach + 1), left : max(0, column + reach + 1)]
    if not below.size:
        return
    first_row, first_column = top - row + reach, left - column + reach
    part_HW4 = lens_HW4[first_row : first_row + below.shape[0], first_column : first_column + below.shape[1]]
    # The axis of a drop off the middle leans outwards only a little, so that its view stays mostly inside the crop.
    shift_4 = np.array([0.5 * column + 0.25 * width, 0.5 * row + 0.25 * height, lift, 0.0], np.float32)
    np.copyto(below, part_HW4 + shift_4, where=(part_HW4[..., 3] > below[..., 3])[..., None])


def _wet_glass(rng: np.random.Generator, height: int, width: int, glass: Glass) -> ImageArray:
    """All drops of one window, HW4 as in `_lens` but with absolute places to look at."""
    canvas_HW4 = np.zeros((height, width, 4), np.float32)
    lenses = [_lens(rng, glass, 0.42 * max(height, width) * rng.uniform(0.6, 1.2)) for _ in range(_SHAPES)]
    most = round(_MOST_DROPS * max(1.0, height * width / 128**2))
    chosen = rng.integers(_SHAPES, size=most)
    # Drops spread one after the other until they cover their share of the picture and its margin.
    margin = max(2, round(0.8 * glass.radius_px))
    area = np.cumsum([0.3 * lenses[number].shape[0] ** 2 for number in chosen])
    count = int(np.searchsorted(area, glass.cover * (height + margin) * (width + margin))) + 1
    rows, columns = (rng.integers(-margin, side + margin, size=most).tolist() for side in (height, width))
    lifts = rng.normal(0.0, 0.05, most).tolist()
    for number, row, column, lift in list(zip(chosen, rows, columns, lifts, strict=True))[:count]:
        _stamp(canvas_HW4, lenses[number], row, column, lift)
    return canvas_HW4


def _surroundings(rng: np.random.Generator) -> tuple[ImageArray, np.float32]:
    """(colour, share) of the light that drops catch from outside the frame, mostly a grey-blue sky."""
    grey = rng.uniform(0.35, 0.9)
    colour_C = np.clip(grey * np.array([1.0, 1.02, 1.05]) * (1.0 + rng.normal(0.0, 0.03, 3)), 0.0, 1.0)
    return colour_C.astype(np.float32), np.float32(rng.uniform(0.05, 0.65))


def add_raindrops(
    clean_HWC: ImageArray,
    rng: np.random.Generator,
    *,
    strength: float | None = None,
    glass: Glass | None = None,
    opacity_HW: ImageArray | None = None,
) -> ImageArray:
    """Out-of-focus drops on glass over `clean_HWC` (HWC float32 sRGB in [0, 1]); same shape and range returned.

    `glass`, if given, is the window instead of one drawn by `strength`. `opacity_HW` (float32), if given, receives how
    much of the scene the drops hide, in [0, 1].
    """
    height, width = clean_HWC.shape[:2]
    drawn = rng.random()
    glass = glass or _draw_glass(rng, float(drawn if strength is None else strength))
    canvas_HW4 = _wet_glass(rng, height, width, glass)
    # What a drop shows is squeezed several times and out of focus: blur first, or the look-up would alias.
    blurred_HWC = cv2.blur(clean_HWC, (9, 9), borderType=cv2.BORDER_REFLECT)
    sight_x_HW, sight_y_HW = cv2.split(canvas_HW4[..., :2])
    shown_HWC = cv2.remap(blurred_HWC, sight_x_HW, sight_y_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    colour_C, share = _surroundings(rng)
    light_HWC = np.clip(shown_HWC * (1.0 - share) + share * colour_C + canvas_HW4[..., 2:3], 0.0, 1.0)
    layers_HW4 = np.dstack([light_HWC * canvas_HW4[..., 3:], canvas_HW4[..., 3]])
    layers_HW4 = _defocus(layers_HW4, max(0.5, glass.defocus_px)) * np.float32(glass.opacity)
    if opacity_HW is not None:
        opacity_HW[...] = layers_HW4[..., 3]
    result_HWC = clean_HWC * (1.0 - layers_HW4[..., 3:]) + layers_HW4[..., :3]
    if rng.random() < 0.3:  # a wet film lowers the contrast in patches
        film_HW1 = np.float32(rng.uniform(0.02, 0.15)) * smooth_field(rng, height, width, 3)[..., None]
        result_HWC = result_HWC * (1.0 - film_HW1) + film_HW1 * colour_C
    return np.ascontiguousarray(np.clip(result_HWC, 0.0, 1.0), dtype=np.float32)


def _defocus(layers_HW4: ImageArray, sigma_px: float) -> ImageArray:
    """Gaussian blur; a wide one as three box filters, whose cost does not grow with the width."""
    if sigma_px < 1.5:
        return np.asarray(cv2.GaussianBlur(layers_HW4, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT), np.float32)
    box = max(3, round(2 * sigma_px) | 1)
    for _ in range(3):
        layers_HW4 = np.asarray(cv2.blur(layers_HW4, (box, box), borderType=cv2.BORDER_REFLECT), np.float32)
    return layers_HW4
