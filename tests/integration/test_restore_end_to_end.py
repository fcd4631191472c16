"""The main job with the shipped weights, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moevision
from moevision.imaging.read import read_picture
from moevision.tasks.restoration.metrics import psnr

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "app" / "examples"


def moevision_command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "moevision", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    out = tmp_path_factory.mktemp("restored")
    result = moevision_command("restore", EXAMPLES, "-o", out, "--report", out / "report.json")
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.slow
def test_the_readmes_command_restores_every_example(restored):
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".txt"}
    assert {path.name for path in restored.iterdir() if path.suffix in (".jpg", ".png", ".webp")} == names
    for name in names:
        before, after = read_picture(EXAMPLES / name), read_picture(restored / name)
        assert before.pixels_HWC.shape == after.pixels_HWC.shape
        assert (before.format, before.pixels_HWC.dtype) == (after.format, after.pixels_HWC.dtype)


@pytest.mark.slow
def test_haze_gains_contrast_and_is_named(restored):
    for name in ("haze-mountain.jpg", "haze-hills.jpg"):
        before, after = (read_picture(folder / name).pixels_HWC.astype(float) for folder in (EXAMPLES, restored))
        assert after.std() > 1.3 * before.std()
    report = json.loads((restored / "report.json").read_text())
    text = json.dumps(report)
    assert "haze-mountain.jpg" in text
    assert '"weather": "haze"' in text


def test_python_returns_the_kind_that_it_was_given():
    array = np.asarray(Image.open(EXAMPLES / "snow-path.webp").convert("RGB"))[:96, :120]
    from_array = moevision.restore(array)
    from_pil = moevision.restore(Image.fromarray(array))
    assert from_array.shape == array.shape
    assert from_array.dtype == np.uint8
    assert isinstance(from_pil, Image.Image)
    assert np.array_equal(np.asarray(from_pil), from_array)
    assert np.array_equal(moevision.restore(array, strength=0.0), array)
    grey = moevision.restore(array[..., 0].astype(np.uint16) * 257)
    assert grey.shape == array.shape[:2]
    assert grey.dtype == np.uint16


def test_a_file_gives_the_same_result_as_its_pixels():
    path = EXAMPLES / "drops-dogs.png"
    assert np.array_equal(moevision.restore(path), moevision.restore(np.asarray(Image.open(path).convert("RGB"))))


def test_clean_pictures_stay_nearly_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 230, 160)[None, :, None] * np.ones((120, 1, 3))
    blocks = np.kron(rng.integers(-40, 40, (6, 8, 3)), np.ones((20, 20, 1)))
    clean = np.clip(ramp + blocks, 0, 255).astype(np.uint8)
    assert psnr(moevision.restore(clean), clean) > 25


@pytest.mark.slow
def test_twelve_megapixels_stay_below_1500_mb(tmp_path):
    # A photograph's worth of content, 4000x3000; the limit is the issue's, in a process of its own.
    code = (
        "import re, sys, numpy as np, cv2, moevision\n"
        "small = cv2.imread(sys.argv[1])[..., ::-1]\n"
        "large = cv2.resize(small, (4000, 3000), interpolation=cv2.INTER_CUBIC)\n"
        "out = moevision.restore(large)\n"
        "assert out.shape == large.shape\n"
        # VmHWM, not ru_maxrss: the latter starts at what the parent process held.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / "rain-dogs.jpg")],
        capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) < 1500
