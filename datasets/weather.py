"""Synthetic bad weather on clean photographs: rain, raindrops, snow, haze and their mixtures.

Every function takes an HWC float32 sRGB picture in [0, 1] and a `numpy.random.Generator`, returns a new contiguous
picture of the same shape and range, and depends on nothing else. `strength` in [0, 1] fixes the severity, None draws
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np

from moevision.datasets.depth import pseudo_depth
from moevision.datasets.drops import add_raindrops
from moevision.datasets.light import ImageArray, linear_to_srgb, smooth_field, srgb_to_linear
from moevision.datasets.streaks import add_rain, lay_over
from moevision.errors import UsageError

__all__ = [
    "KINDS",
    "WEATHER",
    "add_haze",
    "add_jpeg",
    "add_mask",
    "add_noise",
    "add_rain",
    "add_raindrops",
    "add_snow",
    "degrade",
    "draw_mixture",
    "linear_to_srgb",
    "srgb_to_linear",
]


class WeatherFunction(Protocol):
    """What all members of `WEATHER` share."""

    def __call__(
        self, clean_HWC: ImageArray, rng: np.random.Generator, *, strength: float | None = None
    ) -> ImageArray: ...


def _severity(rng: np.random.Generator, strength: float | None) -> float:
    """The given severity, or a random one; draws in both cases so that the stream stays in step."""
    drawn = float(rng.random())
    return drawn if strength is None else float(np.clip(strength, 0.0, 1.0))


def _flake_kernel(rng: np.random.Generator, size_px: float, motion_px: float, angle_deg: float) -> ImageArray:
    """Small picture of one flake: an uneven blob, smeared along its fall; peak 1."""
    reach = int(np.ceil(size_px + motion_px / 2)) + 1
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    x_HW, y_HW = np.meshgrid(axis, axis)
    turn = np.deg2rad(angle_deg)
    along_HW = np.float32(np.cos(turn)) * y_HW + np.float32(np.sin(turn)) * x_HW
    across_HW = np.float32(np.cos(turn)) * x_HW - np.float32(np.sin(turn)) * y_HW
    along_HW = np.maximum(np.abs(along_HW) - np.float32(motion_px / 2), 0.0)
    squeeze = np.float32(rng.uniform(0.75, 1.25))
    distance_HW = np.sqrt((across_HW * squeeze) ** 2 + along_HW**2) / np.float32(size_px)
    soft = np.float32(rng.uniform(0.35, 0.8))
    return np.clip((1.0 + soft / 2 - distance_HW) / soft, 0.0, 1.0)


def _stamp_flakes(
    alpha_HW: ImageArray,
    rng: np.random.Generator,
    count: int,
    size_px: float,
    fall: tuple[float, float],
    opacity: float,
) -> None:
    """Lay `count` flakes of about `size_px` radius over `alpha_HW`, in place; `fall` = (motion in px, angle)."""
    height, width = alpha_HW.shape
    shapes = [
        _flake_kernel(rng, size_px * float(np.exp(rng.normal(0.0, 0.3))), fall[0], fall[1] + float(rng.normal(0, 9)))
        for _ in range(min(max(count, 1), 5))
    ]
    reach = max(shape_HW.shape[0] for shape_HW in shapes) // 2
    # All draws at once: one by one they would cost more than the drawing.
    chosen = rng.integers(len(shapes), size=count).tolist()
    rows, columns = (rng.integers(-reach, side + reach, size=count).tolist() for side in (height, width))
    opacities = rng.uniform(0.4 * opacity, opacity, count).astype(np.float32)
    for number, row, column, alpha in zip(chosen, rows, columns, opacities, strict=True):
        shape_HW = shapes[number]
        half = shape_HW.shape[0] // 2
        top, left = max(0, row - half), max(0, column - half)
        part = alpha_HW[top : max(0, row + half + 1), left : max(0, column + half + 1)]
        if part.size:
            y, x = top - row + half, left - column + half
            part += (1.0 - part) * (shape_HW[y : y + part.shape[0], x : x + part.shape[1]] * alpha)


def _far_snow(rng: np.random.Generator, height: int, width: int, busy: float, angle_deg: float) -> ImageArray:
    """Flakes of about a pixel, too many to draw one by one: smeared sparse noise, HW alpha."""
    seeds_HW = rng.random((height, width), dtype=np.float32)
    seeds_HW = np.where(seeds_HW < 0.03 * busy, rng.random((height, width), dtype=np.float32) + 0.3, np.float32(0.0))
    kernel = _flake_kernel(rng, float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.0, 3.0)), angle_deg)
    return np.minimum(cv2.filter2D(seeds_HW.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT), 1.0)


def snow_alpha(rng: np.random.Generator, height: int, width: int, strength: float) -> ImageArray:
    """Opacity of falling snow, HW in [0, 1]: far specks, middle flakes and a few near flakes out of focus."""
    angle = float(np.clip(rng.normal(0, 25), -70, 70))
    speed = float(rng.exponential(0.8)) if rng.random() < 0.8 else float(rng.uniform(1.5, 4.0))
    busy = float((0.15 + 1.2 * strength) * np.exp(rng.normal(0.0, 0.3)))
    area = height * width / 128**2
    alpha_HW = _far_snow(rng, height, width, busy, angle) * np.float32(rng.uniform(0.25, 0.8))
    middle = float(rng.uniform(1.1, 2.2))
    for size, number, opacity in (
        (middle, 70.0, rng.uniform(0.6, 1.0)),
        (middle * 1.8, 14.0, rng.uniform(0.4, 1.0)),
        (middle * rng.uniform(2.8, 5.0), 2.5, rng.uniform(0.2, 0.6)),
    ):
        count = int(rng.poisson(min(number * busy * area, 4000.0)))
        _stamp_flakes(alpha_HW, rng, count, float(size), (speed * float(size), angle), float(opacity))
    if rng.random() < 0.7:  # flakes tumble: no two are equally smooth
        alpha_HW *= np.float32(0.75) + np.float32(0.5) * rng.random((height, width), dtype=np.float32)
        alpha_HW = np.asarray(cv2.GaussianBlur(alpha_HW, (0, 0), float(rng.uniform(0.4, 0.9))), np.float32)
    return np.clip(alpha_HW, 0.0, 1.0)


def add_snow(clean_HWC: ImageArray, rng: np.random.Generator, *, strength: float | None = None) -> ImageArray:
    """Falling snow and its slight veil (after Snow100K, Liu et al. 2018, and CSD, Chen et al. 2021)."""
    height, width = clean_HWC.shape[:2]
    severity = _severity(rng, strength)
    alpha_HWC = snow_alpha(rng, height, width, severity)[..., None]
    white = np.float32(rng.uniform(0.8, 1.0)) * (1.0 + rng.uniform(-0.03, 0.03, 3)).astype(np.float32)
    scene_HWC = clean_HWC
    if rng.random() < 0.6:
        veil_HWC = (
            np.float32(rng.uniform(0.0, 0.22) * (0.3 + severity)) * smooth_field(rng, height, width, 3)[..., None]
        )
        scene_HWC = clean_HWC * (1.0 - veil_HWC) + veil_HWC * np.float32(rng.uniform(0.7, 0.95))
    return np.ascontiguousarray(np.clip(scene_HWC + alpha_HWC * (white - scene_HWC), 0.0, 1.0), dtype=np.float32)


def _airlight(rng: np.random.Generator) -> ImageArray:
    """Colour of dense haze: RESIDE's is nearly white (0.96 to 1.0 measured), real haze greyer and a little tinted."""
    if rng.random() < 0.45:
        return np.float32(rng.uniform(0.94, 1.0)) * (1.0 + rng.uniform(-0.01, 0.01, 3)).astype(np.float32)
    return np.float32(rng.uniform(0.6, 1.0)) * (1.0 + rng.uniform(-0.05, 0.05, 3)).astype(np.float32)


def add_haze(
    clean_HWC: ImageArray,
    rng: np.random.Generator,
    *,
    depth_HW: ImageArray | None = None,
    strength: float | None = None,
) -> ImageArray:
    """Haze by Koschmieder's law, I = J t + A (1 - t), t = exp(-beta d).

    `depth_HW` (float32, any size, its 95 % point at about 1) gives the scene, otherwise one is invented. Seven in ten
    are composed in sRGB values, as RESIDE (Li et al. 2019) was, the others in linear light, as haze is.
    """
    height, width = clean_HWC.shape[:2]
    severity = _severity(rng, strength)
    distance_HW = pseudo_depth(clean_HWC, rng) if depth_HW is None else depth_HW
    if distance_HW.shape != (height, width):
        distance_HW = np.asarray(cv2.resize(distance_HW, (width, height)), np.float32)
    beta = np.float32(np.exp(np.log(0.25) + severity * np.log(2.3 / 0.25)))
    t_HW1 = np.exp(-beta * np.maximum(distance_HW, 0.0))[..., None].astype(np.float32)
    airlight_C = np.minimum(_airlight(rng), 1.0)
    if rng.random() < 0.7:
        return np.ascontiguousarray(np.clip(clean_HWC * t_HW1 + airlight_C * (1.0 - t_HW1), 0.0, 1.0), dtype=np.float32)
    light_HWC = srgb_to_linear(clean_HWC) * t_HW1 + srgb_to_linear(airlight_C) * (1.0 - t_HW1)
    return np.ascontiguousarray(linear_to_srgb(light_HWC), dtype=np.float32)


def add_mask(
    clean_HWC: ImageArray, rng: np.random.Generator, mask_HW: ImageArray, *, strength: float | None = None
) -> ImageArray:
    """Lay a photographed rain or snow mask (HW float32 in [0, 1], any size) over the picture, random place and size."""
    height, width = clean_HWC.shape[:2]
    severity = _severity(rng, strength)
    zoom = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    angle = np.deg2rad(float(rng.normal(0.0, 15.0)))
    matrix = np.array([[np.cos(angle), np.sin(angle), 0.0], [-np.sin(angle), np.cos(angle), 0.0]]) / zoom
    if rng.random() < 0.5:
        matrix[0] *= -1.0
    centre = np.array([rng.uniform(0, mask_HW.shape[1]), rng.uniform(0, mask_HW.shape[0])])
    matrix[:, 2] = centre - matrix[:, :2] @ np.array([width / 2, height / 2])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part_HW = cv2.warpAffine(mask_HW, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    # Most masks are dark (rain: 99 % point 0.25): stretch, so that severity means the same for all.
    gain = np.float32((0.4 + 1.8 * severity) * 0.45 / max(float(np.quantile(mask_HW[::7, ::7], 0.98)), 0.15))
    return np.ascontiguousarray(lay_over(clean_HWC, np.clip(part_HW * gain, 0.0, 1.0), rng), dtype=np.float32)


def add_noise(clean_HWC: ImageArray, rng: np.random.Generator, *, strength: float | None = None) -> ImageArray:
    """Sensor noise: Gaussian plus a part that grows with the light (Poisson), standard deviation 0.004 to 0.06."""
    severity = _severity(rng, strength)
    read, shot = np.float32(0.003 + 0.03 * severity), np.float32(0.002 + 0.04 * severity * rng.random())
    deviation_HWC = np.sqrt(read**2 + shot**2 * np.clip(clean_HWC, 0.0, 1.0))
    noise_HWC = rng.standard_normal(clean_HWC.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(clean_HWC + deviation_HWC * noise_HWC, 0.0, 1.0), dtype=np.float32)


def add_jpeg(clean_HWC: ImageArray, rng: np.random.Generator, *, strength: float | None = None) -> ImageArray:
    """JPEG artefacts: quality 95 at strength 0 down to 40 at strength 1."""
    quality = round(95 - 55 * _severity(rng, strength))
    pixels_HWC = np.round(np.clip(clean_HWC, 0.0, 1.0) * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded_HWC = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded_HWC[..., ::-1], dtype=np.float32) / np.float32(255)


WEATHER: dict[str, WeatherFunction] = {"rain": add_rain, "drops": add_raindrops, "snow": add_snow, "haze": add_haze}

# Far weather first: haze lies behind the falling rain, drops on the glass before everything.
MIXTURES: tuple[tuple[str, ...], ...] = (
    ("haze", "rain"),
    ("rain", "drops"),
    ("haze", "snow"),
    ("haze", "drops"),
    ("rain", "noise"),
    ("haze", "noise"),
)
KINDS: tuple[str, ...] = ("clean", *WEATHER, "mixture")
PARTS: tuple[str, ...] = (*WEATHER, "noise")  # what may be joined


def parts_of(kind: str) -> tuple[str, ...]:
    """("haze", "rain") of "haze+rain", ("rain",) of "rain". UsageError: neither one of KINDS nor PARTS joined."""
    parts = tuple(kind.split("+"))
    known = PARTS if len(parts) > 1 else KINDS
    if unknown := sorted(set(parts) - set(known)):
        raise UsageError(f"{unknown[0]!r}: no such weather; use one of {', '.join(KINDS)}, or join some by +")
    return parts


def draw_mixture(rng: np.random.Generator) -> str:
    """Two weathers that occur together, as a kind for `degrade`: "haze+rain"."""
    return "+".join(MIXTURES[int(rng.integers(len(MIXTURES)))])


def _mixture(
    clean_HWC: ImageArray, names: tuple[str, ...], rng: np.random.Generator, depth_HW: ImageArray | None,
    strength: float | None, opacity_HW: ImageArray | None,
) -> ImageArray:  # fmt: skip
    """Several at once, each a little milder than alone."""
    steps: dict[str, Callable[[ImageArray, float], ImageArray]] = {
        "haze": lambda image, level: add_haze(image, rng, depth_HW=depth_HW, strength=level),
        "noise": lambda image, level: add_noise(image, rng, strength=level),
        "drops": lambda image, level: add_raindrops(image, rng, strength=level, opacity_HW=opacity_HW),
        "rain": lambda image, level: add_rain(image, rng, strength=level),
        "snow": lambda image, level: add_snow(image, rng, strength=level),
    }
    result_HWC = clean_HWC
    for name in names:
        result_HWC = steps[name](result_HWC, 0.75 * _severity(rng, strength))
    return result_HWC


def degrade(
    clean_HWC: ImageArray,
    kind: str,
    rng: np.random.Generator,
    *,
    depth_HW: ImageArray | None = None,
    strength: float | None = None,
    opacity_HW: ImageArray | None = None,
) -> ImageArray:
    """One picture in bad weather of the named kind: one of KINDS, or several joined by "+", the farthest first.

    "mixture" draws one of MIXTURES. `opacity_HW` (float32), if given, receives how much of the scene drops hide; it is
    left as it is where the kind has none. Raises UsageError for an unknown kind.
    """
    parts = parts_of(draw_mixture(rng) if kind == "mixture" else kind)
    if len(parts) > 1:
        return _mixture(clean_HWC, parts, rng, depth_HW, strength, opacity_HW)
    if kind == "clean":
        return np.ascontiguousarray(clean_HWC, dtype=np.float32).copy()
    if kind == "haze":
        return add_haze(clean_HWC, rng, depth_HW=depth_HW, strength=strength)
    if kind == "drops":
        return add_raindrops(clean_HWC, rng, strength=strength, opacity_HW=opacity_HW)
    return WEATHER[kind](clean_HWC, rng, strength=strength)
