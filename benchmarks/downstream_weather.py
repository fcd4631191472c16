"""Weather for `downstream.py`, made by another model than the training's (`moevision.datasets`), from physics.

    python benchmarks/downstream_weather.py FOLDER --number 0 40 80 --out sheet.png

shows what it makes of pictures of a labelled folder: a row a picture and strength, a column a weather.

Distance. A picture with labels is a world of upright things on a flat ground (stixels: Badino et al. 2009): road and
pavement lie on the ground, whatever else touches it in the picture stands where it does, the sky has no end. So fog
lies behind what is near. A picture below 100 px, which one thing fills, is a slope from 20 to 60 m.

Mist. Koschmieder's law in linear light; extinction 5, 10 and 20 a km for haze (Foggy Cityscapes, Sakaridis et al.
2018), 0.312 R^0.67 a km for R mm of rain an hour (Weber et al. 2015, as in Halder et al. 2019), 3 / visibility for
snow.

What falls. Raindrops as many and as large as Marshall and Palmer (1948) have it, at Atlas's speeds (1973), in 50, 100
and 200 mm an hour; flakes by Gunn and Marshall (1958) in 1, 2.5 and 5 mm of water an hour, of a density of 0.1, with
1000, 500 and 250 m of visibility (light, moderate, heavy snow in aviation). A camera moves towards them at 7 m/s, its
shutter is open for 1/1000 to 1/125 s. A particle hides what is behind it only while it is before it (Garg and Nayar
2007): its streak is as opaque as the particle is wide against the way it goes meanwhile. Its light is the sky's. Near
ones are out of focus.

Drops on the windscreen cover 8, 22 and 42 % of the picture: ellipses that run together, many small ones for each
large one, imaged through a round aperture; they show the picture upside down within a dark rim.

Not here: wet roads, snow on the ground, headlights, noise. Nothing was chosen by what a network makes of it.

Training for `restoration-street` tells distance in the same way: on other pictures, without labels, with other mist.

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
from moevision.datasets.segmentation import LabelledFolder
from moevision.datasets.street import street_depth

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

SEED = 60311
WEATHERS = ("rain", "drops", "snow", "haze")
STRENGTHS = ("weak", "middle", "strong")
SPEED_M_S, CAMERA_M = 7.0, 1.4
SHUTTER_S = (1 / 1000, 1 / 125)
SKY_M = 5000.0
GROUND = ("Road", "Pavement")
STREET_PX = 100  # rows; a smaller picture shows one thing
DROPS_COVER = dict(zip(STRENGTHS, (0.08, 0.22, 0.42), strict=True))  # before they overlap and blur
HAZE_PER_M = dict(zip(STRENGTHS, (0.005, 0.01, 0.02), strict=True))
_FINE = 3  # masks are drawn so many times larger, then shrunk by areas
_SHIFT = 4  # binary digits behind the point of OpenCV's coordinates


class Air(NamedTuple):
    """Particles of exponentially distributed size, and the mist of those too small or far to be drawn."""

    extinction_per_m: float
    number_per_m3_mm: float  # N0
    slope_per_mm: float  # Lambda
    swell: float  # diameter of a flake by that of its water
    smallest_mm: float
    snow: bool

    @property
    def drawn_per_m3(self) -> float:
        """Those that are not too small."""
        return self.number_per_m3_mm / self.slope_per_mm * float(np.exp(-self.slope_per_mm * self.smallest_mm))


def rain_of(mm_per_h: float) -> Air:
    """Marshall and Palmer; Weber et al."""
    return Air(0.312e-3 * mm_per_h**0.67, 8000.0, 4.1 * mm_per_h**-0.21, 1.0, 1.5, snow=False)


def snow_of(mm_per_h: float, visibility_m: float) -> Air:
    """Gunn and Marshall; sizes are those of the water in a flake."""
    slope_per_mm = 2.55 * mm_per_h**-0.48
    return Air(3.0 / visibility_m, 3800 * mm_per_h**-0.87, slope_per_mm, 0.1 ** (-1 / 3), 0.7, snow=True)


AIR = {
    "rain": dict(zip(STRENGTHS, map(rain_of, (50, 100, 200)), strict=True)),
    "snow": dict(zip(STRENGTHS, map(snow_of, (1, 2.5, 5), (1000, 500, 250)), strict=True)),
}
NEAREST_M, FARTHEST_M = 0.5, 6.0  # of particles that are drawn one by one


def weathered(clean_HWC: Pixels, weather: str, strength: str, index: int, distance_m_HW: Floats) -> Pixels:
    """The picture of number `index` (its seed) in one of WEATHERS and STRENGTHS; RGB."""
    rng = np.random.default_rng([SEED, WEATHERS.index(weather), index])
    light_HWC = srgb_to_linear(clean_HWC.astype(np.float32) / np.float32(255))
    if weather == "haze":
        bad_HWC = _misty(light_HWC, HAZE_PER_M[strength], distance_m_HW, _airlight(rng))
    elif weather == "drops":
        bad_HWC = _through_drops(light_HWC, DROPS_COVER[strength], rng)
    else:
        bad_HWC = _falling(light_HWC, weather, strength, distance_m_HW, rng)
    return np.asarray(np.round(linear_to_srgb(bad_HWC) * 255), np.uint8)


def slope_m(height: int, width: int) -> Floats:
    """Distance in a picture that one thing fills, HW: from 20 m at the bottom to 60 m at the top."""
    return np.repeat(np.linspace(60, 20, height, dtype=np.float32)[:, None], width, 1)


def invented_m(image_HWC: Pixels, index: int) -> Floats:
    """Distance along a street that has little to do with the picture, HW; the far end is 150 m away."""
    clean_HWC = image_HWC.astype(np.float32) / np.float32(255)
    return np.float32(150) * street_depth(clean_HWC, np.random.default_rng([SEED, index]))


def standing_m(label_HW: NDArray[np.uint8], names: tuple[str, ...]) -> Floats:
    """Distance of what the labels show, HW: a flat ground and upright things where they touch it."""
    height, width = label_HW.shape
    ground_HW = np.isin(label_HW, [names.index(name) for name in GROUND])
    rows_H1 = np.arange(height, dtype=np.float32)[:, None]
    seen_H = np.flatnonzero(ground_HW.mean(1) > 0.01)
    horizon = min(float(seen_H[0]) if len(seen_H) else 0.55 * height, 0.6 * height) - 2
    ground_m_H1 = _focal_px(height) * CAMERA_M / np.maximum(rows_H1 + 1 - horizon, 1)
    distance_m_HW = np.where(ground_HW, ground_m_H1, np.float32(np.nan)).astype(np.float32)
    distance_m_HW[label_HW == names.index("Sky")] = SKY_M
    for mask_HW in _things(label_HW, [i for i, name in enumerate(names) if name not in (*GROUND, "Sky")]):
        columns = np.flatnonzero(mask_HW.any(0))
        bottoms = height - np.argmax(mask_HW[::-1, columns], 0)  # the row under the thing
        below = np.minimum(bottoms, height - 1)
        stands = (bottoms == height) | ground_HW[below, columns]
        if stands.any():
            feet_m = ground_m_H1[below, 0]
            distance_m_W = np.interp(np.arange(width), columns[stands], feet_m[stands])
        else:  # it looks out from behind what lies under it
            under_m = distance_m_HW[below, columns]
            known = under_m[np.isfinite(under_m) & (under_m < SKY_M)]
            distance_m_W = np.full(width, 1.3 * float(np.median(known)) if known.size else 60.0)
        distance_m_HW = np.where(mask_HW, distance_m_W.astype(np.float32), distance_m_HW)
    return _filled(distance_m_HW)


def _things(label_HW: NDArray[np.uint8], classes: list[int]) -> list[NDArray[np.bool_]]:
    """Connected parts of the classes, the lowest first."""
    found = []
    for number in classes:
        count, part_HW = cv2.connectedComponents((label_HW == number).astype(np.uint8))
        found += [part_HW == part for part in range(1, count)]
    return sorted(found, key=lambda mask_HW: -int(np.flatnonzero(mask_HW.any(1))[-1]))


def _filled(distance_m_HW: Floats) -> Floats:
    """Pixels without a label are as far as the nearest that has one."""
    unknown_HW = ~np.isfinite(distance_m_HW)
    if unknown_HW.all():
        return slope_m(*distance_m_HW.shape)
    _, nearest_HW = cv2.distanceTransformWithLabels(
        unknown_HW.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label_N = np.zeros(int(nearest_HW.max()) + 1, np.float32)
    of_label_N[nearest_HW[~unknown_HW]] = distance_m_HW[~unknown_HW]
    return np.asarray(of_label_N[nearest_HW], np.float32)


def _coarseness(height: int) -> float:
    """How much larger weather is, measured by the picture, in a small picture, where nothing would be left of it."""
    return float((360 / height) ** 0.75)


def _focal_px(height: int) -> float:
    return 1.4 * height


def _airlight(rng: np.random.Generator) -> Floats:
    """In linear light; blue or yellow by up to 12 %."""
    grey, tint = rng.uniform(0.5, 0.85), rng.uniform(-0.12, 0.12)
    return srgb_to_linear(np.array([grey * (1 + tint / 2), grey, grey * (1 - tint)], np.float32))


def _misty(light_HWC: Floats, extinction_per_m: float, distance_m_HW: Floats, airlight_C: Floats) -> Floats:
    """Koschmieder's law."""
    seen_HW1 = np.exp(np.float32(-extinction_per_m) * distance_m_HW)[..., None]
    return np.asarray(light_HWC * seen_HW1 + airlight_C * (1 - seen_HW1), np.float32)


def _falling(light_HWC: Floats, weather: str, strength: str, distance_m_HW: Floats, rng: np.random.Generator) -> Floats:
    """Rain or snow: mist, then what falls, far before near."""
    height, width = light_HWC.shape[:2]
    air = AIR[weather][strength]
    # Drops and flakes are lit by the whole sky; the picture's bright parts are what it shows of that.
    sky_C = np.quantile(light_HWC.reshape(-1, 3), 0.9, axis=0).astype(np.float32)
    sky_C = np.clip(0.5 * sky_C + 0.5 * sky_C.mean(), 0.35, 0.8)
    bad_HWC = _misty(light_HWC, air.extinction_per_m, distance_m_HW, 0.8 * sky_C)
    for near_m, far_m, alpha_HW in _particles(height, width, air, AIR[weather], rng):
        blur_px = 0.012 * _focal_px(height) * _coarseness(height) * (2 / (near_m + far_m) - 1 / FARTHEST_M)
        alpha_HW1 = _through_aperture(alpha_HW, 0.5 * blur_px)[..., None]
        bad_HWC = bad_HWC * (1 - alpha_HW1) + alpha_HW1 * sky_C * np.float32(1.2)
    return np.clip(bad_HWC, 0, 1)


def _particles(
    height: int, width: int, air: Air, strengths: dict[str, Air], rng: np.random.Generator
) -> list[tuple[float, float, Floats]]:
    """[(from m, to m, opacity HW)], far first: every particle is the line that its image draws."""
    focal, coarse = _focal_px(height), _coarseness(height)
    shutter_s = float(np.exp(rng.uniform(*np.log(SHUTTER_S))))
    # The camera sees a pyramid, a little more than the picture; particles are even in it.
    volume_m3 = 1.44 * width * height / focal**2 * (FARTHEST_M**3 - NEAREST_M**3) / 3
    most = int(volume_m3 * max(other.drawn_per_m3 for other in strengths.values()) / coarse**2)
    wind_m_s = rng.uniform(-3, 3)
    z_N = np.cbrt(rng.uniform(NEAREST_M**3, FARTHEST_M**3, most))
    middle_N2 = rng.uniform(-0.6, 0.6, (most, 2)) * (width, height)
    size_mm_N = air.smallest_mm + rng.exponential(1, most) / air.slope_per_mm
    fall_m_s_N = np.full(most, 1.1) if air.snow else 9.65 - 10.3 * np.exp(-0.6 * size_mm_N)
    drift_N2 = rng.normal(0, 0.12, (most, 2)) * fall_m_s_N[:, None]
    kept = np.arange(most) < air.drawn_per_m3 * volume_m3 / coarse**2
    motion_N2 = (np.stack([np.full(most, wind_m_s), fall_m_s_N], 1) + drift_N2) * shutter_s
    nearer_N = z_N - SPEED_M_S * shutter_s
    begin_N2 = middle_N2 - 0.5 * coarse * focal * motion_N2 / z_N[:, None]
    end_N2 = begin_N2 * (z_N / nearer_N)[:, None] + coarse * focal * motion_N2 / nearer_N[:, None]
    width_N = coarse * focal * air.swell * size_mm_N * 1e-3 / z_N
    lines_N4 = np.concatenate([begin_N2, end_N2], 1) + np.array([width, height] * 2) / 2
    # Before a pixel for a share of the time only; what is thinner than a pixel of the canvas is drawn a pixel wide.
    length_N = np.hypot(*(end_N2 - begin_N2).T)
    shade_N = width_N / (width_N + length_N) * np.minimum(1.0, width_N * _FINE)
    layers = []
    for far_m, near_m in pairwise(np.geomspace(FARTHEST_M, NEAREST_M, 5)):
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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder = LabelledFolder(arguments.folder)
    rows = []
    for index in arguments.number:
        distance_m_HW = standing_m(folder[index].label_HW, folder.classes.names)
        log_HW = np.log(distance_m_HW.clip(2, 500) / 2) / np.log(250) * 255
        shown = [folder[index].image_HWC, np.dstack([log_HW.astype(np.uint8)] * 3)]
        for strength in STRENGTHS:
            made = [weathered(shown[0], weather, strength, index, distance_m_HW) for weather in WEATHERS]
            rows.append(np.concatenate([shown[0] if strength != "middle" else shown[1], *made], 1))
    cv2.imwrite(str(arguments.out), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
