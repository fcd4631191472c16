"""A small camera: what it records, what is normal at it, and a network that costs nothing."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from moevision.checkpoint import ModelDescriptor
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import Frame
from moevision.tasks.anomaly import appearance
from moevision.tasks.anomaly.calibration import SiteCalibration, Statistics
from moevision.tasks.anomaly.detector import AnomalyDetector
from moevision.tasks.anomaly.fit import fit_site
from moevision.tasks.anomaly.model import PRESETS, MemoryOutNet, Prediction
from moevision.tasks.anomaly.streams import Measurement

HEIGHT, WIDTH, FPS = 96, 128, 10.0
BLOB_PX, BLOB_SPEED_PX = 34, 7


def texture(height, width):
    """Smooth grey patches, uint8 (H, W) from 60 to 170."""
    noise = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 60, 170, cv2.NORM_MINMAX).astype(np.uint8)


def blob_left(number, first):
    """Left edge of the large blob, which goes to and fro."""
    way = WIDTH - BLOB_PX
    at = BLOB_SPEED_PX * (number - first) % (2 * way)
    return min(at, 2 * way - at)


def recording(count=40, *, seed=0, blob=None, moving=True, noise=1.0):
    """A still scene with some noise in which a small thing moves slowly.

    Args:
        count: frames.
        seed: of the noise, and of where the small thing begins.
        blob: first and last frame between which something large moves fast.
        moving: whether the small thing is there.
        noise: standard deviation, in grey levels.
    """
    rng = np.random.default_rng(seed)
    begin = int(rng.integers(30))
    background = texture(HEIGHT, WIDTH)
    found = []
    for number in range(count):
        grey = background.copy()
        if moving:
            at = (begin + number) % 180
            left = 10 + min(at, 180 - at)
            grey[12:24, left : left + 12] = 220
        if blob is not None and blob[0] <= number <= blob[1]:
            left = blob_left(number, blob[0])
            grey[50 : 50 + BLOB_PX, left : left + BLOB_PX] = 235
        grey = np.clip(grey + noise * rng.standard_normal(grey.shape), 0, 255).astype(np.uint8)
        found.append(Frame(np.repeat(grey[..., None], 3, 2), number / FPS))
    return found


def source(frames, name="door", fps=FPS):
    return RecordedSource(name, fps, (frame for frame in frames))


def opener(frames, **options):
    return lambda: source(frames, **options)


def larger(frames, factor):
    """The same frames, pixels repeated."""
    return [replace(f, pixels_HWC=f.pixels_HWC.repeat(factor, 0).repeat(factor, 1)) for f in frames]


def pushed(detector, frames):
    return [detector.push(frame) for frame in frames]


def moved(difference, flow=0.0):
    return Measurement({"difference": difference, "flow": flow}, moves=True)


def made(**changes):
    """A calibration as such, of two streams."""
    fields = {
        "model": "", "model_sha256": "", "source_size_hw": (480, 640), "fps": 10.0,
        "streams": {"difference": Statistics(1.0, 0.5), "flow": Statistics(-2.0, 0.25)},
        "score": Statistics(0.5, 2.0), "block_maxima": (0.5, 1.25, 2.0), "scores": (-1.0, 0.0, 0.5, 0.5, 1.5),
        "frames": 36_000,
    }  # fmt: skip
    return SiteCalibration(**{**fields, **changes})


NORMAL_CLIPS = [recording(seed=1), recording(seed=2)]
UNUSUAL = recording(44, seed=3, blob=(16, 29))


class LastFrameNet(MemoryOutNet):
    """Predicts the last frame, in no time."""

    def forward(self, frames_BTHW, context=None, semantic_BS=None):
        return Prediction(frames_BTHW[:, -1:], None, None)


@pytest.fixture(scope="module")
def site():
    """Of the two normal clips, without a network."""
    return fit_site([opener(frames) for frames in NORMAL_CLIPS], None)


@pytest.fixture(scope="module")
def unusual(site):
    """What a new detector says of UNUSUAL."""
    return pushed(AnomalyDetector(site, None), UNUSUAL)


@pytest.fixture(scope="module")
def descriptor():
    """With an encoder of random weights, which sees frames of 160 px instead of 540."""
    torch.manual_seed(0)
    net = LastFrameNet(replace(PRESETS["test"](), encoder=True)).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance, "LOOK_PX", 160)
        yield ModelDescriptor("test", "anomaly", net, net.config.to_dict(), {})


@pytest.fixture(scope="module")
def looking_site(descriptor):
    """Of the two normal clips, with that network."""
    return fit_site([opener(frames) for frames in NORMAL_CLIPS], descriptor, model="m", model_sha256="s")
