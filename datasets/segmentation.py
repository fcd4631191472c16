"""Pictures with a class for every pixel: `images/` and `labels/`, matched by file stem, and the list of classes.

Labels are pictures of class ids (grey of 8 or 16 bits, or the indices of a palette) or of class colours (RGB).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moevision.datasets import augment, street, weather
from moevision.datasets.classes import IGNORE, ClassList, read_classes, some_of
from moevision.datasets.paired import PixelArray, list_images, read_image
from moevision.errors import InputError, UsageError

__all__ = [
    "CLASS_FILE",
    "IGNORE",
    "ClassList",
    "Labelled",
    "LabelledCrops",
    "LabelledFolder",
    "read_classes",
    "read_label",
]

CLASS_FILE = "classes.txt"
SCALES = (0.5, 2.0)
WEATHERED = 0.5  # share of crops
STREETS = 0.5  # of these, weather that lies in a street, not on the picture
_ID_MODES = frozenset({"1", "L", "LA", "P", "PA", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX"})


def read_label(path: Path | str, classes: ClassList) -> PixelArray:
    """Label picture -> (H, W) class indices, IGNORE where there is no label.

    Raises:
        InputError: it cannot be read, or has ids or colours that are in no class.
    """
    codes_HW, index_of = _codes(path, classes)
    values = np.unique(codes_HW)
    if unknown := [value for value in values.tolist() if value not in index_of]:
        if index_of is classes.index_of_id:
            what = f"id {some_of(unknown)} in no class"
        else:
            counts = {value: int((codes_HW == value).sum()) for value in unknown[:1000]}
            worst = max(counts, key=counts.__getitem__)
            colour = (worst >> 16, worst >> 8 & 255, worst & 255)
            what = f"colour {colour} of {counts[worst]} pixels, one of {len(unknown)} in no class"
        raise InputError(f"{path}: {what}; add it to {CLASS_FILE}, or write {IGNORE} where there is no label")
    index = np.array([index_of[value] for value in values.tolist()], np.uint8)
    return index[np.searchsorted(values, codes_HW)]


def _codes(path: Path | str, classes: ClassList) -> tuple[NDArray, Mapping[int, int]]:
    """The file's ids, or its colours packed into numbers, and what they mean."""
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except Exception as error:  # damaged files make Pillow raise a dozen types, see imaging.read
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); copy or export the label again") from error
    if mode in _COLOUR_MODES:
        red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
        return red << 16 | green << 8 | blue, classes.index_of_colour
    if mode in _ID_MODES:
        return (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.int32), classes.index_of_id
    raise InputError(f"{path}: a label of mode {mode}; save class ids as a grey or palette PNG, or colours as RGB")


class Labelled(NamedTuple):
    """One picture: (H, W, 3) uint8 RGB, (H, W) uint8 class indices with IGNORE, stem of its file."""

    image_HWC: PixelArray
    label_HW: PixelArray
    name: str


class LabelledFolder:
    """Pictures of `root/images` with `root/labels`; `orphans` lists the labels that have no picture.

    Args:
        root: the folder; its class list is `classes.txt` in it or in the folder it lies in.
        classes: another class list.

    Raises:
        UsageError: a folder or the class list is missing or faulty, or a picture has no label.
    """

    def __init__(self, root: Path | str, classes: Path | None = None) -> None:
        self.root = Path(root)
        self.parent = Path(os.path.abspath(self.root)).parent  # as the user sees it: `..` gone, links kept
        images, labels = (self._by_stem(part) for part in ("images", "labels"))
        if not images:
            raise UsageError(f"{self.root / 'images'}: no picture; put .png, .jpg, .webp, .bmp or .tif files there")
        if missing := sorted(images.keys() - labels.keys()):
            count = f"{len(missing)} of {len(images)} pictures have no label of the same stem in {self.root / 'labels'}"
            raise UsageError(f"{count}: {some_of(missing, 3)}; add the labels, or take the pictures out")
        self.classes = read_classes(classes or self._class_file())
        self.pairs = [(path, labels[stem]) for stem, path in sorted(images.items())]
        self.orphans = [path for stem, path in sorted(labels.items()) if stem not in images]

    def _by_stem(self, part: str) -> dict[str, Path]:
        if not (self.root / part).is_dir():
            need = f"{self.root}/images and {self.root}/labels"
            raise UsageError(f"{self.root / part}: no such folder; labelled pictures need {need}")
        found: dict[str, Path] = {}
        for path in list_images(self.root / part):
            if found.setdefault(path.stem, path) is not path:
                raise UsageError(f"{path}: {found[path.stem].name} has the same stem; remove one of them")
        return found

    def _class_file(self) -> Path:
        for folder in (self.root, self.parent):
            if (folder / CLASS_FILE).is_file():
                return folder / CLASS_FILE
        raise UsageError(f"{self.root / CLASS_FILE}: no such file, nor in {self.parent}; list the classes there")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Labelled:
        """Raises InputError if a file cannot be read, does not fit the class list, or the two differ in size."""
        image_path, label_path = self.pairs[index]
        image_HWC, label_HW = read_image(image_path), read_label(label_path, self.classes)
        if image_HWC.shape[:2] != label_HW.shape:
            sizes = " against ".join(f"{shape[1]}x{shape[0]}" for shape in (image_HWC.shape, label_HW.shape))
            raise InputError(f"{image_path}: {sizes} in {label_path}; a label must have its picture's size")
        return Labelled(image_HWC, label_HW, image_path.stem)

    def __iter__(self) -> Iterator[Labelled]:
        return (self[i] for i in range(len(self)))


class LabelledCrops:
    """Random crops of labelled pictures held in memory; a batch is a function of its generator alone.

    Args:
        items: the pictures.
        crop_px: side of a crop.
        weather: give half of the crops synthetic bad weather.

    Raises:
        MissingExtraError: albumentations is not installed.
    """

    def __init__(self, items: Iterable[Labelled], crop_px: int, *, weather: bool = False) -> None:
        augment.photometric_pipeline()  # what is missing shows here, not in a data process
        self.pictures = [(item.image_HWC, item.label_HW) for item in items]
        self.crop_px, self.weather = crop_px, weather
        self.grey = round(float(np.mean([image_HWC.mean() for image_HWC, _ in self.pictures])))

    def batch(self, rng: np.random.Generator, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(B, 3, crop, crop) float32 RGB in [0, 1] and (B, crop, crop) int64 class indices with IGNORE."""
        images_BCHW = np.empty((size, 3, self.crop_px, self.crop_px), np.float32)
        labels_BHW = np.empty((size, self.crop_px, self.crop_px), np.int64)
        for i in range(size):
            image_HWC, labels_BHW[i] = self._crop(rng)
            image_HWC = augment.photometric(self._weathered(image_HWC, rng), rng)
            np.divide(image_HWC.transpose(2, 0, 1), np.float32(255), out=images_BCHW[i], dtype=np.float32)
        return images_BCHW, labels_BHW

    def _crop(self, rng: np.random.Generator) -> tuple[PixelArray, PixelArray]:
        """A square at a random scale, half of them mirrored; what lies outside the picture is grey and unlabelled."""
        image_HWC, label_HW = self.pictures[rng.integers(len(self.pictures))]
        side = max(1, round(self.crop_px / np.exp(rng.uniform(*np.log(SCALES)))))
        rows, columns = (_spans(rng, length, side) for length in label_HW.shape)
        cut_HWC, cut_HW = np.full((side, side, 3), self.grey, np.uint8), np.full((side, side), IGNORE, np.uint8)
        cut_HWC[rows[1], columns[1]] = image_HWC[rows[0], columns[0]]
        cut_HW[rows[1], columns[1]] = label_HW[rows[0], columns[0]]
        size, how = (self.crop_px, self.crop_px), cv2.INTER_AREA if side > self.crop_px else cv2.INTER_LINEAR
        crop_HWC = np.asarray(cv2.resize(cut_HWC, size, interpolation=how), np.uint8)
        # The plain INTER_NEAREST takes a block's first pixel, half a pixel aside of what the picture shows.
        crop_HW = np.asarray(cv2.resize(cut_HW, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
        if rng.random() < 0.5:
            crop_HWC, crop_HW = np.ascontiguousarray(crop_HWC[:, ::-1]), crop_HW[:, ::-1]
        return crop_HWC, crop_HW

    def _weathered(self, image_HWC: PixelArray, rng: np.random.Generator) -> PixelArray:
        if not self.weather or rng.random() >= WEATHERED:
            return image_HWC
        scene_HWC = image_HWC.astype(np.float32) / np.float32(255)
        if rng.random() < STREETS:
            bad_HWC = street.add_street_weather(scene_HWC, str(rng.choice(street.STREET_KINDS)), rng)
        else:
            kinds = [kind for kind in weather.KINDS if kind != "clean"]
            bad_HWC = weather.degrade(scene_HWC, kinds[rng.integers(len(kinds))], rng)
        return np.round(bad_HWC * 255).astype(np.uint8)


def _spans(rng: np.random.Generator, length: int, side: int) -> tuple[slice, slice]:
    """Where, along an axis, a cut of `side` lies at random in a picture of `length`: in the picture, in the cut."""
    start = int(rng.integers(abs(length - side) + 1))
    if length >= side:
        return slice(start, start + side), slice(0, side)
    return slice(0, length), slice(start, start + length)
