"""Pictures made in code; real data only where MOEVISION_DATA names it."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest


def make_photo(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colour patches with edges and a little texture: HWC float32 in [0.05, 0.95]."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((5, 6, 3), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    blocks = cv2.resize(rng.random((9, 9, 3), dtype=np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    texture = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(0.02)
    return np.clip(0.5 * coarse + 0.4 * blocks + texture, 0.05, 0.95).astype(np.float32)


def save(path: Path, image_HWC: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.round(image_HWC[..., ::-1] * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photo_HWC() -> np.ndarray:
    return make_photo(0, 128, 160)


@pytest.fixture(scope="session")
def made_root(tmp_path_factory) -> Path:
    """A small data root: photographs, a held-back folder, hazy scenes at two levels, masks, a user's pairs."""
    root = tmp_path_factory.mktemp("data")
    for i in range(3):
        save(root / "clean" / "holiday" / f"{i}.png", make_photo(i, 90 + 7 * i, 120))
    save(root / "clean" / "kodak12_dev" / "k.png", make_photo(50, 96, 96))
    haze = root / "weather" / "sots_indoor_haze_train"
    depth_HW1 = np.linspace(1.0, 0.2, 96, dtype=np.float32)[:, None, None]
    for scene in ("s1", "s2"):
        clean = make_photo(len(scene) + ord(scene[1]), 96, 128) * np.float32(0.7)
        save(haze / "gt" / f"{scene}.png", clean)
        for level in (2, 8):
            t = np.exp(-0.15 * level * depth_HW1)
            save(haze / "input" / f"{scene}_{level}.png", clean * t + 0.95 * (1 - t))
    rng = np.random.default_rng(9)
    for name in ("rain_1", "snow_1"):
        mask = (rng.random((64, 80, 1)) < 0.05) * np.ones(3)
        save(root / "weather" / "masks_rain_snow" / f"{name}.png", mask)
    save(root / "pairs" / "garden" / "input" / "a.png", make_photo(70, 64, 64))
    save(root / "pairs" / "garden" / "gt" / "a.png", make_photo(71, 64, 64))
    return root


@pytest.fixture(scope="session")
def real_root() -> Path:
    folder = os.environ.get("MOEVISION_DATA", "")
    if not folder or not (Path(folder) / "weather").is_dir():
        pytest.skip("MOEVISION_DATA does not name a folder with weather/: real data is not shipped")
    return Path(folder)
