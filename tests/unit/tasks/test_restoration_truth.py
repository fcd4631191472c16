"""Restored pictures against true ones."""

from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from moevision.errors import UsageError
from moevision.imaging.picture import Picture
from moevision.tasks.restoration import truth as truth_module
from moevision.tasks.restoration.metrics import psnr, ssim
from moevision.tasks.restoration.truth import METRICS, Truth, compare


def pixels(height=40, width=30, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def folder(tmp_path):
    def write(name, array):
        path = tmp_path / "truth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    write("a.png", pixels())
    write("sub/b.png", pixels(seed=1))
    write("twice.png", pixels())
    write("twice.bmp", pixels())
    (tmp_path / "truth" / "broken.png").write_bytes(b"x")
    return tmp_path / "truth"


def judged(folder, name, after=None, before=None):
    after = pixels(seed=2) if after is None else after
    return Truth(folder).judge(PurePath(name), Picture(pixels(seed=3) if before is None else before), Picture(after))


def test_result_and_input_are_compared_with_the_picture_of_the_same_name(folder):
    facts = judged(folder, "a.jpg")
    assert facts["truth"] == "compared"
    assert facts["psnr"] == pytest.approx(psnr(pixels(seed=2), pixels()), abs=1e-3)
    assert facts["ssim"] == pytest.approx(ssim(pixels(seed=2), pixels()), abs=1e-4)
    assert facts["input_psnr"] == pytest.approx(psnr(pixels(seed=3), pixels()), abs=1e-3)
    assert facts["input_ssim"] == pytest.approx(ssim(pixels(seed=3), pixels()), abs=1e-4)
    assert set(METRICS) | {"truth"} == set(facts)


def test_folders_keep_pictures_of_one_name_apart(folder):
    assert judged(folder, "sub/b.jpg", pixels(seed=1))["psnr"] == 100, "equal pictures have a finite number"
    assert "psnr" not in judged(folder, "b.jpg")


@pytest.mark.parametrize(
    ("name", "after", "reason"),
    [
        ("c.png", None, "no picture of this name"),
        ("twice.png", None, "several pictures of this name"),
        ("broken.png", None, "not an image file"),
        ("a.png", pixels(20, 31), "of another size: 30 x 40, not 31 x 20"),
    ],
)
def test_what_cannot_be_compared_says_why_and_nothing_else(folder, name, after, reason):
    facts = judged(folder, name, after)
    assert list(facts) == ["truth"]
    assert reason in facts["truth"]
    assert str(folder) not in facts["truth"]


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Truth(Path(tmp_path, "nowhere"))


@pytest.mark.parametrize("height", [11, 31, 32, 33, 70])
def test_bands_of_rows_give_the_numbers_of_the_whole_picture(monkeypatch, height):
    monkeypatch.setattr(truth_module, "_BAND_ROWS", 16)
    a, b = pixels(height), pixels(height, seed=1) // 2 + pixels(height) // 2
    psnr_db, similarity = compare(a, b)
    assert psnr_db == pytest.approx(psnr(a, b), abs=1e-9)
    assert similarity == pytest.approx(ssim(a, b), abs=1e-6)


def test_depths_and_grey_are_compared_as_rgb_of_eight_bits():
    wide = pixels().astype(np.uint16) * 257
    assert compare(wide, pixels()) == (100, pytest.approx(1))
    grey = pixels(channels=1)
    assert compare(grey, np.repeat(grey, 3, axis=2)) == (100, pytest.approx(1))


def test_a_picture_smaller_than_the_window_has_no_ssim(folder):
    assert compare(pixels(10, 40), pixels(10, 40, seed=1))[1] is None
    assert compare(pixels(40, 10), pixels(40, 10, seed=1))[1] is None
