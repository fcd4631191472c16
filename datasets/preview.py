"""Contact sheets of the synthetic weather beside real photographs: the only test of realism is to look."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.datasets.mixture import RestorationMixture
from moevision.datasets.paired import list_images, read_image
from moevision.errors import InputError, UsageError

PixelArray = NDArray[np.uint8]

_CELL_PX = 256
_ROWS, _PAIRS_PER_ROW = 5, 3
_REAL_FOLDERS = {
    "rain": "real_rain",
    "drops": "real_raindrop",
    "snow": "real_snow",
    "haze": "real_haze",
    "mixture": "real_rain",
}


def _cells(images: list[PixelArray], columns: int) -> PixelArray:
    """Equal square cells in rows, the last row filled up with black."""
    blank = np.zeros((_CELL_PX, _CELL_PX, 3), np.uint8)
    padded = images + [blank] * (-len(images) % columns)
    return np.vstack([np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)])


def _real_cells(folder: Path, count: int, rng: np.random.Generator) -> list[PixelArray]:
    """Square middles of real photographs, cut to the cell at half size at most so that streaks stay visible."""
    paths = list_images(folder) if folder.is_dir() else []
    cells = []
    for path in sorted(rng.permutation(np.array(paths, dtype=object))[:count]):
        image_HWC = read_image(path)
        height, width = image_HWC.shape[:2]
        side = min(height, width, 2 * _CELL_PX)
        top, left = (height - side) // 2, (width - side) // 2
        part_HWC = np.ascontiguousarray(image_HWC[top : top + side, left : left + side])
        cells.append(np.asarray(cv2.resize(part_HWC, (_CELL_PX, _CELL_PX), interpolation=cv2.INTER_AREA), np.uint8))
    return cells


def preview_sheet(root: Path | str, out_dir: Path | str, seed: int = 0) -> list[Path]:
    """Write `out_dir/KIND.png` for every kind of weather and return the paths.

    Rows of clean and degraded crops (256 px, as the training stream makes them), then a row of real photographs from
    `root/weather/real_*` where there are any.
    """
    mixture = RestorationMixture(root)
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give a folder that can be written") from error
    paths = []
    for number, (kind, real) in enumerate(_REAL_FOLDERS.items()):
        rng = np.random.default_rng([seed, number])
        cells: list[PixelArray] = []
        for _ in range(_ROWS * _PAIRS_PER_ROW):
            x_HWC, y_HWC = mixture.sample(rng, kind, _CELL_PX)
            cells += [np.round(image_HWC * 255).astype(np.uint8) for image_HWC in (y_HWC, x_HWC)]
        cells += _real_cells(mixture.root / "weather" / real, 2 * _PAIRS_PER_ROW, rng)
        path = folder / f"{kind}.png"
        if not cv2.imwrite(str(path), _cells(cells, 2 * _PAIRS_PER_ROW)[..., ::-1]):
            raise InputError(f"{path}: cannot be written; check free space and permissions")
        paths.append(path)
    return paths
