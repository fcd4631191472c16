"""The training stream of the restoration task: clean photographs, weathered on the fly, and real haze pairs.

Pictures lie in memory as uint8; each sample is cut out first and degraded after, so its cost is that of the crop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.datasets import weather
from moevision.datasets.depth import DepthBank
from moevision.datasets.light import ImageArray
from moevision.datasets.paired import PairedFolder, PixelArray, list_images, read_image
from moevision.datasets.street import STREET_KINDS, add_street_weather
from moevision.datasets.synthesize import synthesize
from moevision.errors import UsageError
from moevision.imaging.scaling import shrink

_LOG = logging.getLogger(__name__)
_BYTE = np.float32(1 / 255)

DEV_FOLDERS = ("sots_indoor_haze_dev", "rainstreak_sirr10_dev", "raindrop_2pairs_dev")
STREET = "street "
HAZE_FOLDER, MASK_FOLDER = "sots_indoor_haze_train", "masks_rain_snow"


@dataclass(frozen=True)
class MixtureWeights:
    """Share of each kind of sample; kinds without data are left out and the rest scaled up.

    The shares of drops and snow must not be small: their error is, and a network that sees a tenth of each leaves them
    as they are. Clean samples teach the model to leave good pictures alone. Streets are for driving footage: a quarter
    of them cost 0.7 dB on SIRR rain (record 2026-11-27-segmentation).
    """

    haze_pairs: float = 0.19
    haze: float = 0.10
    rain: float = 0.29
    drops: float = 0.25
    snow: float = 0.06
    mixture: float = 0.05
    clean: float = 0.06
    street: float = 0.0
    user_pairs: float = 0.20


def _is_held_back(path: Path, root: Path) -> bool:
    """Folders for tuning, testing and looking only are never trained on."""
    parts = path.relative_to(root).parts[:-1]
    return any(part.endswith(("_dev", "_test")) or part.startswith("real_") for part in parts)


def load_clean(root: Path | str, longest_px: int = 1280) -> list[PixelArray]:
    """All photographs below `root/clean` (HWC uint8 RGB), dev and test folders excepted; raises UsageError if none."""
    folder = Path(root) / "clean"
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; put clean photographs there")
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    paths = [path for part in folders for path in list_images(part) if not _is_held_back(path, folder)]
    if not paths:
        raise UsageError(f"{folder}: no photograph to train on (folders named *_dev, *_test, real_* do not count)")
    return [shrink(read_image(path), longest_px) for path in paths]


def load_streets(folder: Path | str, longest_px: int = 1280) -> list[PixelArray]:
    """All photographs in a folder (HWC uint8 RGB); raises UsageError if there is none."""
    paths = list_images(Path(folder))
    if not paths:
        raise UsageError(f"{folder}: no photograph; put photographs taken from cars there")
    return [shrink(read_image(path), longest_px) for path in paths]


def _nearness(street_HWC: PixelArray, distance: Callable[[PixelArray], ImageArray]) -> ImageArray:
    """1 / m, HW: where resizing averages the sky and a house, the house is what is left."""
    distance_m_HW = distance(street_HWC)
    if distance_m_HW.shape != street_HWC.shape[:2] or not (distance_m_HW > 0).all():
        raise ValueError(f"distance: {street_HWC.shape[:2]} metres above 0 wanted, {distance_m_HW.shape} told")
    return (1 / distance_m_HW).astype(np.float32)


def _window(rng: np.random.Generator, height: int, width: int, side_px: int) -> tuple[int, int, int]:
    """(top, left, side) of a random square that fits."""
    side = max(1, min(side_px, height, width))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side


def _fit(crop_HWC: NDArray, crop_px: int) -> NDArray:
    """Resize a square cut to `crop_px`, area-averaging when it shrinks."""
    if crop_HWC.shape[0] == crop_px:
        return np.ascontiguousarray(crop_HWC)
    shrinks = crop_HWC.shape[0] > crop_px
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(crop_HWC), (crop_px, crop_px), interpolation=method)


def _zoom(rng: np.random.Generator) -> float:
    """Rescale factor of a photograph: mostly none, so that detail stays what a camera gives."""
    return 1.0 if rng.random() < 0.6 else float(rng.uniform(0.5, 1.2))


def _tone(rng: np.random.Generator, crop_HWC: PixelArray) -> ImageArray:
    """uint8 -> float32 in [0, 1]; half the time with a random gamma and white balance (one table per channel)."""
    if rng.random() < 0.5:
        return crop_HWC.astype(np.float32) * _BYTE
    ramp = np.linspace(0.0, 1.0, 256, dtype=np.float32)
    curve = ramp ** np.float32(np.exp(rng.normal(0.0, 0.22)))
    gains = np.exp(rng.normal(0.0, 0.04, 3)).astype(np.float32)
    return np.dstack([np.minimum(curve * gain, 1.0)[crop_HWC[..., c]] for c, gain in enumerate(gains)])


def _dull(rng: np.random.Generator, y_HWC: ImageArray) -> ImageArray:
    """Flatter contrast as under a grey sky: a dull photograph without haze must not be taken for a hazy one."""
    contrast, level = np.float32(rng.uniform(0.65, 1.0)), np.float32(rng.uniform(0.3, 0.7))
    return level + contrast * (y_HWC - level)


def _visible(rng: np.random.Generator) -> float:
    """Severity of a weathered photograph: seldom too mild to be seen, since such samples teach next to nothing."""
    return float(rng.uniform(0.3, 1.0) if rng.random() < 0.85 else rng.uniform(0.0, 0.3))


def _drawn(rng: np.random.Generator, source: str) -> str:
    """Sources that stand for several are settled: a mixture's parts, what kind of weather a street has."""
    if source == "mixture":
        return weather.draw_mixture(rng)
    return STREET + STREET_KINDS[int(rng.integers(len(STREET_KINDS)))] if source == "street" else source


class RestorationMixture:
    """Endless random training samples from a data root with `clean/` and, all optional, `weather/` and `pairs/NAME/`.

    `weather/sots_indoor_haze_train` gives real haze pairs and depth maps, `weather/masks_rain_snow` photographed
    masks, `pairs/NAME/{input,gt}` the user's own pairs. `streets` is a folder of photographs taken from cars: street
    weather falls on these only, other weather on all; without it, street weather falls on any photograph. `distance`
    tells how far off everything in a street photograph is (HWC uint8 RGB -> HW float32 in metres, the sky being
    kilometres away), so that mist lies where it would; without it, streets are invented. ValueError if it tells
    something of another size, or that something is not before the camera.
    """

    def __init__(
        self,
        root: Path | str,
        weights: MixtureWeights | None = None,
        *,
        streets: Path | str | None = None,
        distance: Callable[[PixelArray], ImageArray] | None = None,
    ) -> None:
        self.root = Path(root)
        self.clean = load_clean(self.root)
        self.streets = self.clean if streets is None else load_streets(streets)
        if streets is not None:
            self.clean += self.streets
        self.nearness = [_nearness(street_HWC, distance) for street_HWC in self.streets] if distance else None
        self.haze_pairs: list[tuple[PixelArray, PixelArray]] = []
        self.scenes: list[tuple[PixelArray, ImageArray]] = []
        self.bank: DepthBank | None = None
        self._load_haze(self.root / "weather" / HAZE_FOLDER)
        self.masks: dict[str, list[ImageArray]] = {"rain": [], "snow": []}
        self._load_masks(self.root / "weather" / MASK_FOLDER)
        self.user_pairs = self._load_user_pairs(self.root / "pairs")
        self.shares = self._usable(weights or MixtureWeights())
        _LOG.info("%d clean photographs, %d haze pairs", len(self.clean), len(self.haze_pairs))

    def _load_haze(self, folder: Path) -> None:
        """Real haze pairs and the depth their levels give; nothing to do if the folder is not there."""
        if not folder.is_dir():
            return
        pairs = PairedFolder(folder)
        truths: dict[str, PixelArray] = {}
        for hazy_HWC, truth_HWC, name in pairs:
            truth_HWC = truths.setdefault(name.rpartition("_")[0], truth_HWC)  # one copy for all levels
            self.haze_pairs.append((hazy_HWC, truth_HWC))
        named = zip(self.haze_pairs, pairs.pairs, strict=True)
        self.bank = DepthBank.of_pairs((hazy, truth, paths[0].stem) for (hazy, truth), paths in named)
        self.scenes = [(truths[name], scene.depth) for name, scene in self.bank.scenes.items()]
        if not self.scenes:
            self.bank = None

    def _load_masks(self, folder: Path) -> None:
        """Rain and snow masks, told apart by the start of their names."""
        for path in list_images(folder) if folder.is_dir() else []:
            for kind, masks in self.masks.items():
                if path.name.lower().startswith(kind):
                    masks.append(read_image(path).mean(axis=2, dtype=np.float32) * _BYTE)

    def _load_user_pairs(self, folder: Path) -> list[tuple[PixelArray, PixelArray]]:
        """All pairs of all folders below `pairs/`, dev and test folders excepted."""
        parts = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        kept = [part for part in parts if not _is_held_back(part / "x", folder)]
        return [(pair[0], pair[1]) for part in kept for pair in PairedFolder(part)]

    def _usable(self, weights: MixtureWeights) -> dict[str, float]:
        """Weights of the sources that have data, scaled to sum to 1."""
        shares = {field.name: float(getattr(weights, field.name)) for field in fields(weights)}
        if not self.haze_pairs:
            shares["haze"] += shares.pop("haze_pairs")
        if not self.user_pairs:
            shares.pop("user_pairs")
        total = sum(shares.values())
        if not (all(share >= 0 for share in shares.values()) and 0 < total < float("inf")):
            raise UsageError(f"mixture weights {shares}: none may be negative and one must be positive")
        return {name: share / total for name, share in shares.items()}

    def _photo(
        self, rng: np.random.Generator, crop_px: int, *, whole: float, turn: bool, of: list[PixelArray] | None = None
    ) -> ImageArray:
        """Random crop of a clean photograph, HWC float32; with chance `whole` it shows most of the photograph."""
        photos = of or self.clean
        photo_HWC = photos[int(rng.integers(len(photos)))]
        height, width = photo_HWC.shape[:2]
        side = round(crop_px / _zoom(rng))
        if rng.random() < whole:
            side = max(side, round(min(height, width) * rng.uniform(0.5, 1.0)))
        top, left, side = _window(rng, height, width, side)
        crop_HWC = _fit(photo_HWC[top : top + side, left : left + side], crop_px)
        if rng.random() < 0.5:
            crop_HWC = crop_HWC[:, ::-1]
        if turn and rng.random() < 0.2:
            crop_HWC = np.rot90(crop_HWC, int(rng.integers(1, 4)))
        return _tone(rng, np.ascontiguousarray(crop_HWC))

    def _pair(
        self, rng: np.random.Generator, pair: tuple[NDArray, NDArray], crop_px: int, whole: float = 0.7
    ) -> tuple[NDArray, NDArray]:
        """The same random crop and flip of two arrays of one size: native, or most of the picture shrunk."""
        height, width = pair[0].shape[:2]
        side = round(crop_px / _zoom(rng))
        if rng.random() < whole:
            side = max(side, round(min(height, width) * rng.uniform(0.5, 1.0)))
        top, left, side = _window(rng, height, width, side)
        step = -1 if rng.random() < 0.5 else 1
        first, second = (_fit(array[top : top + side, left : left + side], crop_px)[:, ::step] for array in pair)
        return first, second

    def _real_pair(
        self, rng: np.random.Generator, pool: list[tuple[PixelArray, PixelArray]], crop_px: int
    ) -> tuple[ImageArray, ImageArray]:
        """(degraded, clean) of a recorded pair; a gain per channel at most, which keeps the haze law true."""
        x_HWC, y_HWC = self._pair(rng, pool[int(rng.integers(len(pool)))], crop_px)
        gain = np.float32(rng.uniform(0.8, 1.0) if rng.random() < 0.3 else 1.0)
        gains_C = gain * np.minimum(1.0, np.exp(rng.normal(0.0, 0.03, 3)) if gain < 1 else 1.0).astype(np.float32)
        return x_HWC.astype(np.float32) * (gains_C * _BYTE), y_HWC.astype(np.float32) * (gains_C * _BYTE)

    def _synthetic_haze(self, rng: np.random.Generator, crop_px: int) -> tuple[ImageArray, ImageArray]:
        """Haze on a RESIDE scene with its own depth, on a photograph with another scene's, or with an invented one."""
        choice = rng.random()
        if self.bank is not None and choice < 0.35:
            crop_HWC, depth_HW = self._pair(rng, self.scenes[int(rng.integers(len(self.scenes)))], crop_px)
            y_HWC = _tone(rng, np.ascontiguousarray(crop_HWC))
            return weather.add_haze(y_HWC, rng, depth_HW=np.ascontiguousarray(depth_HW)), y_HWC
        y_HWC = self._photo(rng, crop_px, whole=0.65, turn=False)
        if self.bank is not None and choice < 0.65:
            depth_HW = self.bank.sample(rng, crop_px, crop_px, float(rng.uniform(0.25, 1.0)))
            return weather.add_haze(y_HWC, rng, depth_HW=depth_HW), y_HWC
        return weather.add_haze(y_HWC, rng), y_HWC

    def _weathered(
        self, rng: np.random.Generator, kind: str, crop_px: int, opacity_HW: ImageArray | None
    ) -> tuple[ImageArray, ImageArray]:
        """(degraded, clean) of a photograph; rain and snow now and then from a photographed mask."""
        # Gravity: a turned photograph is fine for drops and for none, not for things that fall or lie on the ground.
        y_HWC = self._photo(rng, crop_px, whole=0.4, turn=kind in ("drops", "clean"))
        if kind in ("drops", "clean") and rng.random() < 0.2:
            y_HWC = _dull(rng, y_HWC)
        masks = self.masks.get(kind, [])
        if masks and rng.random() < 0.15:
            mask_HW = masks[int(rng.integers(len(masks)))]
            return weather.add_mask(y_HWC, rng, mask_HW), y_HWC
        # The parts of a mixture are drawn one by one. A few drops on a window can be seen well: a network that is
        # mostly shown wet ones takes a soft background for drops.
        strength = None if kind == "drops" or "+" in kind else _visible(rng)
        return weather.degrade(y_HWC, kind, rng, strength=strength, opacity_HW=opacity_HW), y_HWC

    def _street(
        self, rng: np.random.Generator, kind: str, crop_px: int, opacity_HW: ImageArray | None
    ) -> tuple[ImageArray, ImageArray]:
        """(degraded, clean) of a street in one of STREET_KINDS."""
        if self.nearness is None:
            y_HWC = self._photo(rng, crop_px, whole=0.5, turn=False, of=self.streets)
            return add_street_weather(y_HWC, kind, rng, opacity_HW=opacity_HW), y_HWC
        i = int(rng.integers(len(self.streets)))
        crop_HWC, near_HW = self._pair(rng, (self.streets[i], self.nearness[i]), crop_px, 0.5)
        y_HWC = _tone(rng, np.ascontiguousarray(crop_HWC))
        distance_m_HW = 1 / np.maximum(near_HW, np.float32(1e-4))  # cubic resizing may go below zero
        return add_street_weather(y_HWC, kind, rng, distance_m_HW=distance_m_HW, opacity_HW=opacity_HW), y_HWC

    def sample(
        self, rng: np.random.Generator, source: str, crop_px: int, opacity_HW: ImageArray | None = None
    ) -> tuple[ImageArray, ImageArray]:
        """(degraded, clean), HWC float32 in [0, 1], of one source.

        A source is a field name of `MixtureWeights`, or weathers joined by "+" as in `weather.degrade`, which also says
        what `opacity_HW` receives, or one of STREET_KINDS behind "street ".
        """
        if source == "haze_pairs":
            return self._real_pair(rng, self.haze_pairs, crop_px)
        if source == "user_pairs":
            return self._real_pair(rng, self.user_pairs, crop_px)
        source = _drawn(rng, source)
        if source == "haze":
            x_HWC, y_HWC = self._synthetic_haze(rng, crop_px)
        elif source.startswith(STREET):
            x_HWC, y_HWC = self._street(rng, source.removeprefix(STREET), crop_px, opacity_HW)
        else:
            x_HWC, y_HWC = self._weathered(rng, source, crop_px, opacity_HW)
        # What cameras add last; seldom, because the dev sets have little of it.
        if rng.random() < 0.06:
            x_HWC = weather.add_noise(x_HWC, rng)
        if rng.random() < 0.06:
            x_HWC = weather.add_jpeg(x_HWC, rng)
        return x_HWC, y_HWC

    def _stratified(self, rng: np.random.Generator, count: int) -> list[str]:
        """Sources in the right shares within every batch, as far as it has room: gradients vary less than by chance."""
        ends = np.cumsum(list(self.shares.values()))
        points = (rng.permutation(count) + rng.random()) / count * ends[-1]
        return [list(self.shares)[source] for source in np.searchsorted(ends, points)]

    def batch(
        self, rng: np.random.Generator, batch_size: int, crop_px: int
    ) -> tuple[ImageArray, ImageArray, ImageArray, list[str]]:
        """(x_BCHW, y_BCHW, opacity_B1HW, kinds): degraded, clean, how much of the scene drops hide, and the weather.

        Arrays are float32 in [0, 1] and contiguous, kinds as in `weather.degrade`. Mixtures tell their parts
        ("haze+rain"); real haze pairs count as haze; the user's own pairs are of kind "pairs", their opacity is NaN.
        """
        x_BCHW = np.empty((batch_size, 3, crop_px, crop_px), np.float32)
        y_BCHW = np.empty_like(x_BCHW)
        opacity_B1HW = np.zeros((batch_size, 1, crop_px, crop_px), np.float32)
        kinds = []
        for i, source in enumerate(self._stratified(rng, batch_size)):
            source = _drawn(rng, source)
            if source == "user_pairs":
                opacity_B1HW[i] = np.nan
            x_HWC, y_HWC = self.sample(rng, source, crop_px, opacity_B1HW[i, 0])
            x_BCHW[i], y_BCHW[i] = x_HWC.transpose(2, 0, 1), y_HWC.transpose(2, 0, 1)
            kinds.append({"haze_pairs": "haze", "user_pairs": "pairs"}.get(source, source).removeprefix(STREET))
        return x_BCHW, y_BCHW, opacity_B1HW, kinds


def dev_sets(root: Path | str) -> dict[str, PairedFolder]:
    """The tuning sets that lie below `root/weather`, by folder name; those missing are left out."""
    folder = Path(root) / "weather"
    return {name: PairedFolder(folder / name) for name in DEV_FOLDERS if (folder / name).is_dir()}


def synthetic_dev(root: Path | str, kind: str, seed: int = 2026) -> list[tuple[PixelArray, PixelArray, str]]:
    """[(degraded, clean, name)], HWC uint8 RGB, from `root/clean/kodak12_dev`: the same pictures for the same seed."""
    return list(synthesize(Path(root) / "clean" / "kodak12_dev", kind, seed))
