"""Clips of video for learning and testing: folders `train/` and `test/`, labels, and training crops of moving places.

Layout of a set: `train/*.mp4` (normal footage only), `test/*.mp4`, `labels.npz` (one uint8 array a test clip, called as
its file: 1 = abnormal frame) and, if there are any, `pixel_masks_packbits.npz` (`numpy.packbits` of masks (T, H, W)).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.errors import InputError, UsageError
from moevision.imaging.video import VIDEO_SUFFIXES, read_frames

MOVING = 0.85  # share of crops drawn where something moves
_BOX_PX = 16
_STILL = 4.0  # grey levels of difference below which a box does not count as moving

Clip = NDArray[np.uint8]


class ClipFolder:
    """The video files of one folder by name.

    Raises UsageError if the folder is missing or holds no video.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder}: no such folder; it should hold the video clips")
        self.paths = sorted(p for p in self.folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
        if not self.paths:
            raise UsageError(f"{self.folder}: no video found; it should hold {' '.join(sorted(VIDEO_SUFFIXES))}")

    def __len__(self) -> int:
        return len(self.paths)


def read_labels(root: Path) -> dict[str, NDArray[np.uint8]]:
    """`root/labels.npz`: per clip its (T,) labels. Raises UsageError if it is missing or unreadable."""
    return _read_arrays(root / "labels.npz")


def read_masks(root: Path, width_px: int) -> dict[str, NDArray[np.bool_]]:
    """`root/pixel_masks_packbits.npz`: per clip (T, H, W) of abnormal pixels; empty without the file."""
    path = root / "pixel_masks_packbits.npz"
    if not path.exists():
        return {}
    return {k: np.unpackbits(v, axis=-1)[..., :width_px].astype(bool) for k, v in _read_arrays(path).items()}


def read_clip(path: Path, size_hw: tuple[int, int]) -> Clip:
    """All frames of a video, grey, at one size: (T, H, W). Raises as `imaging.video.read_frames`."""
    return np.stack([resized(grey_of(frame.pixels_HWC), size_hw) for frame in read_frames(path)])


def grey_of(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB to luma, (H, W)."""
    return np.asarray(cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY), np.uint8)


def resized(grey_HW: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A grey frame at another size, averaged where it shrinks."""
    if grey_HW.shape == size_hw:
        return grey_HW
    how = cv2.INTER_AREA if size_hw[0] < grey_HW.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(grey_HW, size_hw[::-1], interpolation=how), np.uint8)


class MovingCrops:
    """Random crops of a few successive frames, most of them where something moves; one batch per generator.

    Args:
        clips: (T, H, W) each, at least `frames` long; shorter ones raise InputError.
        frames: successive frames of a crop.
    """

    def __init__(self, clips: Sequence[Clip], frames: int) -> None:
        if any(len(clip) < frames for clip in clips):
            shortest = min(len(clip) for clip in clips)
            raise InputError(f"a clip of {shortest} frames: at least {frames} are needed to learn from")
        self.clips, self.frames = list(clips), frames
        self._starts = np.array([len(clip) - frames + 1 for clip in clips], dtype=np.float64)

    def batch(self, rng: np.random.Generator, size: int, crop_px: int) -> NDArray[np.float32]:
        """(B, frames, crop, crop) float32 in [-1, 1]; half of them mirrored. Smaller clips are mirrored at the edge."""
        return np.stack([self._crop(rng, crop_px) for _ in range(size)])

    def _crop(self, rng: np.random.Generator, crop_px: int) -> NDArray[np.float32]:
        clip = self.clips[rng.choice(len(self.clips), p=self._starts / self._starts.sum())]
        first = int(rng.integers(len(clip) - self.frames + 1))
        frames_THW = clip[first : first + self.frames]
        top, left = (int(rng.integers(max(1, n - crop_px + 1))) for n in clip.shape[1:])
        if rng.random() < MOVING and (place := _moving_place(frames_THW, rng)) is not None:
            spread = rng.integers(-crop_px // 3, crop_px // 3 + 1, 2)
            top, left = (
                int(np.clip(c + s - crop_px // 2, 0, max(0, n - crop_px)))
                for c, s, n in zip(place, spread, clip.shape[1:], strict=True)
            )
        crop_THW = frames_THW[:, top : top + crop_px, left : left + crop_px]
        short = [(0, crop_px - n) for n in crop_THW.shape[1:]]
        if any(s[1] for s in short):
            crop_THW = np.pad(crop_THW, [(0, 0), *short], mode="symmetric")
        if rng.random() < 0.5:
            crop_THW = crop_THW[:, :, ::-1]
        return np.asarray(crop_THW, np.float32) / np.float32(127.5) - np.float32(1)


def _moving_place(frames_THW: Clip, rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of a box in which the last two frames differ, None if they do nowhere."""
    difference_HW = cv2.absdiff(frames_THW[-2], frames_THW[-1]).astype(np.float32)
    boxes = cv2.boxFilter(difference_HW, -1, (_BOX_PX, _BOX_PX))[:: _BOX_PX // 2, :: _BOX_PX // 2]
    rows, columns = np.nonzero(boxes > _STILL)
    if not len(rows):
        return None
    pick = int(rng.integers(len(rows)))
    return int(rows[pick]) * _BOX_PX // 2, int(columns[pick]) * _BOX_PX // 2


def _read_arrays(path: Path) -> dict[str, NDArray[np.uint8]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise UsageError(f"{path}: cannot be read ({reason}); it should hold one array per test clip") from None
