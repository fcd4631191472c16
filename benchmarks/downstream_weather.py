"""Weather for `downstream.py`, made by another model than the training's (`moevision.datasets.weather`).

    python benchmarks/downstream_weather.py PICTURE... --out sheet.png

shows what it makes: a row a picture and strength, a column a weather.

What differs. Training draws textures on the picture's plane; here is a camera on a moving car. Rain and snow are
particles in the air before it, which fall, drift with the wind and come nearer while the shutter is open: streaks fan
out from the vanishing point and grow towards the edge, where training has parallel streaks of smeared noise or stamped
blobs. They hide a share of the light behind them and scatter the sky's, always in linear light (training: six in ten
plain additions of sRGB values). The air between is misty by distance (training: a random smooth veil). Haze lies in a
street: a ground plane up to a horizon, walls at both sides, sky 250 m away; in pictures below 100 px, which one thing
fills, on a slope from 20 to 60 m (training: depths of indoor scenes, or an invented relief). Its optical depth reaches
11 (training: 2.3 at the 95 % point); its light is a grey of 0.50 to 0.85, blue or yellow by up to 12 % (training: 0.6
to 1.0, 5 %), added in linear light (training: three in ten). Drops are ellipses that run together, many small ones for
each large one, imaged through a round aperture; they show the picture upside down within a dark rim (training: Gaussian
bumps of about one radius, Gaussian blur, a share of grey sky, highlights).

What does not: both are synthetic, and their ranges of length, angle, opacity, cover and size overlap. No wet roads, no
snow on the ground, no headlights, no noise. The masks of `weather/masks_rain_snow` are not used, for training uses
them.

A picture's weather depends on its seed, kind and strength alone; the strengths of one seed have their particles and
drops in common.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.datasets.light import linear_to_srgb, srgb_to_linear
from moevision.datasets.paired import read_image

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

SEED = 60311
WEATHERS = ("rain", "drops", "snow", "haze")
STRENGTHS = ("weak", "middle", "strong")
SHUTTER_S, SPEED_M_S = 1 / 60, 7.0
FARTHEST_M = 250.0
STREET_PX = 100  # rows; a smaller picture shows one thing
_FINE = 3  # masks are drawn so many times larger, then shrunk by areas
_SHIFT = 4  # binary digits behind the point of OpenCV's coordinates


class Air(NamedTuple):
    """Particles in a picture of 480x360, how much they hide, and how far one sees in the mist between them."""

    number: int
    opacity: float
    visibility_m: float


class Kind(NamedTuple):
    """What falls: diameters (shape and scale of a gamma distribution) and speed; how far it is drawn one by one."""

    shape: float
    scale_m: float
    fall_m_s: float
    nearest_m: float
    farthest_m: float
    wind_m_s: float


RAINDROPS, FLAKES = Kind(3.0, 1.1e-3, 7.0, 0.7, 9.0, 2.5), Kind(3.0, 3.2e-3, 1.1, 0.8, 14.0, 1.0)
RAIN = dict(zip(STRENGTHS, (Air(1500, 0.3, 900), Air(4000, 0.45, 450), Air(9000, 0.65, 220)), strict=True))
SNOW = dict(zip(STRENGTHS, (Air(900, 0.7, 700), Air(2500, 0.85, 320), Air(5500, 0.95, 160)), strict=True))
HAZE_VISIBILITY_M = dict(zip(STRENGTHS, (400.0, 180.0, 90.0), strict=True))
DROPS_COVER = dict(zip(STRENGTHS, (0.08, 0.22, 0.42), strict=True))  # before they overlap and blur


def weathered(clean_HWC: Pixels, weather: str, strength: str, index: int) -> Pixels:
    """The picture of number `index` (its seed) in one of WEATHERS and STRENGTHS; RGB."""
    rng = np.random.default_rng([SEED, WEATHERS.index(weather), index])
    light_HWC = srgb_to_linear(clean_HWC.astype(np.float32) / np.float32(255))
    if weather == "haze":
        bad_HWC = _misty(light_HWC, HAZE_VISIBILITY_M[strength], _airlight(rng), rng)
    elif weather == "drops":
        bad_HWC = _through_drops(light_HWC, DROPS_COVER[strength], rng)
    else:
        air, kind = (RAIN[strength], RAINDROPS) if weather == "rain" else (SNOW[strength], FLAKES)
        bad_HWC = _falling(light_HWC, air, kind, rng)
    return np.asarray(np.round(linear_to_srgb(bad_HWC) * 255), np.uint8)


def _coarseness(height: int) -> float:
    """How much larger weather is, measured by the picture, in a small picture, where nothing would be left of it."""
    return float((360 / height) ** 0.75)


def _focal_px(height: int) -> float:
    return 1.4 * height


def _street_m(height: int, width: int, rng: np.random.Generator) -> Floats:
    """Distance of what a camera 1.4 m above a street sees, HW: ground, walls 6 to 12 m aside, sky at FARTHEST_M."""
    row, column = height * rng.uniform(0.44, 0.52), width * rng.uniform(0.4, 0.6)
    left_m, right_m = rng.uniform(6, 12, 2)
    high_m = rng.uniform(8, 14)
    below_H1 = (np.arange(height) + 0.5 - row)[:, None]
    aside_W = np.arange(width) + 0.5 - column
    focal = _focal_px(height)
    ground_m_H1 = focal * 1.4 / np.maximum(below_H1, 1e-3)
    wall_m_W = focal * np.where(aside_W < 0, left_m, right_m) / np.maximum(np.abs(aside_W), 1e-3)
    wall_m_HW = np.where(-below_H1 * wall_m_W > focal * high_m, FARTHEST_M, wall_m_W)
    street_m_HW = np.minimum(np.minimum(ground_m_H1, wall_m_HW), FARTHEST_M).astype(np.float32)
    # No real street has such sharp edges.
    return np.exp(np.asarray(cv2.GaussianBlur(np.log(street_m_HW), (0, 0), 0.02 * height), np.float32))


def _thing_m(height: int, width: int) -> Floats:
    """Distance in a picture that one thing fills, HW: from 20 m at the bottom to 60 m at the top."""
    return np.repeat(np.linspace(60, 20, height, dtype=np.float32)[:, None], width, 1)


def _airlight(rng: np.random.Generator) -> Floats:
    """In linear light; blue or yellow by up to 12 %."""
    grey, tint = rng.uniform(0.5, 0.85), rng.uniform(-0.12, 0.12)
    return srgb_to_linear(np.array([grey * (1 + tint / 2), grey, grey * (1 - tint)], np.float32))


def _misty(light_HWC: Floats, visibility_m: float, airlight_C: Floats, rng: np.random.Generator) -> Floats:
    """Koschmieder's law; at `visibility_m` 2 % of the contrast are left."""
    height, width = light_HWC.shape[:2]
    depth_m_HW = _street_m(height, width, rng) if height >= STREET_PX else _thing_m(height, width)
    seen_HW1 = np.exp(np.float32(-3.912 / visibility_m) * depth_m_HW)[..., None]
    return np.asarray(light_HWC * seen_HW1 + airlight_C * (1 - seen_HW1), np.float32)


def _falling(light_HWC: Floats, air: Air, kind: Kind, rng: np.random.Generator) -> Floats:
    """Rain or snow: mist, then what falls, far before near."""
    height, width = light_HWC.shape[:2]
    # Drops and flakes are lit by the whole sky; the picture's bright parts are what it shows of that.
    sky_C = np.quantile(light_HWC.reshape(-1, 3), 0.9, axis=0).astype(np.float32)
    sky_C = np.clip(0.5 * sky_C + 0.5 * sky_C.mean(), 0.35, 0.8)
    bad_HWC = _misty(light_HWC, air.visibility_m, 0.8 * sky_C, rng)
    for near_m, far_m, alpha_HW in _particles(height, width, air, kind, rng):
        blur_px = 0.012 * _focal_px(height) * _coarseness(height) * (2 / (near_m + far_m) - 1 / kind.farthest_m)
        alpha_HW1 = _through_aperture(alpha_HW, 0.5 * blur_px)[..., None]
        bad_HWC = bad_HWC * (1 - alpha_HW1) + alpha_HW1 * sky_C * np.float32(1.2)
    return np.clip(bad_HWC, 0, 1)


def _particles(
    height: int, width: int, air: Air, kind: Kind, rng: np.random.Generator
) -> list[tuple[float, float, Floats]]:
    """[(from m, to m, opacity HW)], far first: every particle the line that its image draws in SHUTTER_S."""
    most = max(other.number for other in (RAIN if kind is RAINDROPS else SNOW).values())
    coarse, area = _coarseness(height), width / height * 360 / 480
    wind = rng.uniform(-kind.wind_m_s, kind.wind_m_s)
    # Even in the volume that the camera sees, which grows with the cube of the distance.
    z_N = np.cbrt(rng.uniform(kind.nearest_m**3, kind.farthest_m**3, most))
    middle_N2 = rng.uniform(-0.6, 0.6, (most, 2)) * (width, height)
    diameter_N = rng.gamma(kind.shape, kind.scale_m, most)
    faint_N, drift_N2 = rng.uniform(0.4, 1.0, most), rng.normal(0, 0.12 * kind.fall_m_s, (most, 2))
    kept = np.arange(most) < air.number * area / coarse**2
    focal = _focal_px(height)
    motion_N2 = (np.array([wind, kind.fall_m_s]) + drift_N2) * SHUTTER_S
    nearer_N = np.maximum(z_N - SPEED_M_S * SHUTTER_S, 0.3)
    begin_N2 = middle_N2 - 0.5 * coarse * focal * motion_N2 / z_N[:, None]
    end_N2 = begin_N2 * (z_N / nearer_N)[:, None] + coarse * focal * motion_N2 / nearer_N[:, None]
    width_N = coarse * focal * diameter_N / z_N
    lines_N4 = np.concatenate([begin_N2, end_N2], 1) + np.array([width, height] * 2) / 2
    # What is thinner than a pixel of the canvas is drawn a pixel wide, and fainter; what moves far, too.
    shade_N = air.opacity * faint_N * np.minimum(1.0, width_N * _FINE)
    layers = []
    edges = np.geomspace(kind.farthest_m, kind.nearest_m, 5)
    for far_m, near_m in pairwise(edges):
        here = kept & (z_N <= far_m) & (z_N > near_m)
        alpha_HW = _lines(height, width, lines_N4[here], width_N[here], shade_N[here])
        layers.append((float(near_m), float(far_m), alpha_HW))
    return layers


def _lines(height: int, width: int, lines_N4: np.ndarray, width_N: np.ndarray, shade_N: np.ndarray) -> Floats:
    """Opacity, HW."""
    canvas = np.zeros((height * _FINE, width * _FINE), np.uint8)
    places = np.round(lines_N4 * _FINE * 2**_SHIFT).astype(int).tolist()
    thick = np.maximum(1, np.round(width_N * _FINE)).astype(int).tolist()
    for (x0, y0, x1, y1), px, shade in zip(places, thick, np.round(shade_N * 255).tolist(), strict=True):
        cv2.line(canvas, (x0, y0), (x1, y1), shade, px, cv2.LINE_AA, _SHIFT)
    shrunk = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.float32) / np.float32(255)


def _through_aperture(image: Floats, radius_px: float) -> Floats:
    """Out of focus: a disc, HW or HWC; below half a pixel nothing."""
    if radius_px < 0.5:
        return image
    reach = int(np.ceil(radius_px))
    axis = np.arange(-reach, reach + 1)
    disc = np.clip(radius_px + 0.5 - np.hypot(*np.meshgrid(axis, axis)), 0, 1).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT), np.float32)


def _through_drops(light_HWC: Floats, cover: float, rng: np.random.Generator) -> Floats:
    """Drops on the windscreen, before which the camera looks past them."""
    height, width = light_HWC.shape[:2]
    unit_px = height / 360 * _coarseness(height) ** 0.7
    look_HW2, alpha_HW, rim_HW = np.zeros((height, width, 2), np.float32), *np.zeros((2, height, width), np.float32)
    covered, wanted = 0.0, cover * height * width
    while covered < wanted:
        # Many small drops for each large one: a power law between 3 and 30 px.
        radius = min(0.12 * height, unit_px * (3**-1.6 + rng.random() * (30**-1.6 - 3**-1.6)) ** (-1 / 1.6))
        centre = rng.uniform(0, (width, height))
        covered += _add_drop(look_HW2, alpha_HW, rim_HW, centre, radius, rng)
    x_HW, y_HW = np.clip(look_HW2[..., 0], 0, width - 1), np.clip(look_HW2[..., 1], 0, height - 1)
    soft_HWC = np.asarray(cv2.GaussianBlur(light_HWC, (0, 0), max(0.4, 3.0 * unit_px)), np.float32)
    shown_HWC = np.asarray(cv2.remap(soft_HWC, x_HW, y_HW, cv2.INTER_LINEAR), np.float32)
    shown_HWC = shown_HWC * (1 - 0.75 * rim_HW[..., None])
    layers_HW4 = _through_aperture(np.dstack([shown_HWC * alpha_HW[..., None], alpha_HW]), 2.5 * unit_px)
    return np.clip(light_HWC * (1 - layers_HW4[..., 3:]) + layers_HW4[..., :3], 0, 1)


def _add_drop(
    look_HW2: Floats, alpha_HW: Floats, rim_HW: Floats, centre: np.ndarray, radius_px: float, rng: np.random.Generator
) -> float:
    """Put one drop in place: where each pixel looks, opacity, darkness of the rim; returns its area in pixels."""
    height, width = alpha_HW.shape
    tall, turn, opaque = rng.uniform(0.9, 1.5), rng.normal(0, 0.35), rng.uniform(0.75, 1.0)
    reach = int(np.ceil(1.5 * radius_px)) + 2
    left, top = (max(0, int(place) - reach) for place in centre)
    part = np.s_[top : int(centre[1]) + reach + 1, left : int(centre[0]) + reach + 1]
    y_HW, x_HW = np.mgrid[: alpha_HW[part].shape[0], : alpha_HW[part].shape[1]].astype(np.float32)
    x_HW, y_HW = x_HW + left - centre[0] + 0.5, y_HW + top - centre[1] + 0.5
    along_HW, across_HW = np.cos(turn) * y_HW - np.sin(turn) * x_HW, np.cos(turn) * x_HW + np.sin(turn) * y_HW
    out_HW = np.hypot(along_HW / tall, across_HW) / radius_px  # 1 at the edge
    mask_HW = opaque * np.clip((1 - out_HW) * radius_px + 0.5, 0, 1)
    here = mask_HW > alpha_HW[part]
    alpha_HW[part][here] = mask_HW[here]
    rim_HW[part][here] = np.clip((out_HW[here] - 0.55) / 0.45, 0, 1) ** 2
    # A thick lens: upside down, and wider the farther from its middle.
    wide_HW = -0.5 * out_HW * (0.6 + 0.4 * out_HW**2) / np.maximum(np.hypot(x_HW, y_HW), 1e-3)
    look_HW2[part][here] = np.stack([width / 2 + width * wide_HW * x_HW, height / 2 + height * wide_HW * y_HW], -1)[
        here
    ]
    return float(np.pi * tall * radius_px**2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for index, path in enumerate(arguments.pictures):
        clean_HWC = read_image(path)
        rows += [
            np.concatenate([weathered(clean_HWC, weather, strength, index) for weather in WEATHERS], 1)
            for strength in STRENGTHS
        ]
    cv2.imwrite(str(arguments.out), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
