"""What a camera's own footage teaches of it, and what footage is refused."""

from dataclasses import replace

import numpy as np
import pytest

from moevision.errors import InputError
from moevision.tasks.anomaly.appearance import FeatureSums
from moevision.tasks.anomaly.calibration import calibrate
from moevision.tasks.anomaly.fit import PRODUCT, fit_site, measure
from moevision.tasks.anomaly.model import FRAMES
from moevision.tasks.anomaly.streams import FrameAnalyser

from .conftest import FPS, HEIGHT, NORMAL_CLIPS, WIDTH, larger, opener, recording, source


def test_fitting_is_the_same_when_run_twice_and_knows_its_footage(site):
    said = []
    again = fit_site([opener(frames) for frames in NORMAL_CLIPS], None, say=said.append)
    assert again == site
    assert (site.model, site.model_sha256, site.normal) == ("", "", None)
    assert (site.source_size_hw, site.fps, site.frames) == ((HEIGHT, WIDTH), FPS, 2 * (40 - FRAMES))
    assert set(site.streams) == {"difference", "flow"}
    assert [line.split(":")[0] for line in said] == ["clip 1 of 2", "clip 2 of 2"]
    assert "36 frames in which something moves" in said[0]


def test_fitting_is_calibrating_what_was_measured(site):
    measured = [list(measure(source(frames), FrameAnalyser(None, fps=FPS))) for frames in NORMAL_CLIPS]
    common = {"model": "", "model_sha256": "", "source_size_hw": (HEIGHT, WIDTH), "fps": FPS}
    assert calibrate(measured, **common) == site


def test_many_frames_a_second_are_thinned():
    fast = [replace(frame, time_s=number / 25) for number, frame in enumerate(recording(52))]
    found = fit_site([opener(fast, fps=25.0)], None)
    assert (found.fps, found.frames) == (12.5, 26 - FRAMES)
    assert fit_site([opener(fast, fps=25.0)], None, fps=25.0).frames == 52 - FRAMES
    assert fit_site([opener(recording(26), fps=None)], None).fps == 12.5


@pytest.mark.parametrize("fps", [8.0, 15.0, 25.0, 29.97])
def test_the_hours_of_footage_are_those_of_the_source_whatever_its_rate(fps):
    """Of frames a second that are no multiple of 12.5 fewer are analysed, and rates of alarms are by these."""
    count = round(3.4 * fps)
    frames = [replace(frame, time_s=number / fps) for number, frame in enumerate(recording(count))]
    found = fit_site([opener(frames, fps=fps)], None)
    assert found.fps <= 12.5
    assert 3600 * found.hours + FRAMES / found.fps == pytest.approx(3.4, abs=0.15)


def test_footage_that_cannot_be_fitted_is_refused():
    with pytest.raises(InputError, match="no footage"):
        fit_site([], None)
    with pytest.raises(InputError, match=r"garage: 256x192 after 128x96; fit each camera on its own"):
        fit_site([opener(recording(8)), opener(larger(recording(8), 2), name="garage")], None)
    live = source(recording(8), "camera:0")
    live.is_live = True
    with pytest.raises(InputError, match=r"camera:0: is live.*record"):
        fit_site([lambda: live], None)
    with pytest.raises(InputError, match="0 frames only"):
        fit_site([opener(recording(30, moving=False))], None)


def test_with_an_encoder_every_clip_is_compared_with_the_others(descriptor, looking_site):
    assert (looking_site.model, looking_site.model_sha256) == ("m", "s")
    assert set(looking_site.streams) == set(PRODUCT)
    assert "appearance" in PRODUCT

    def seen(frames, **options):
        return list(measure(source(frames), FrameAnalyser(descriptor.model, fps=FPS, **options)))

    looks = [
        [m.features_NC for m in seen(frames, streams=("difference",), collect=True) if m.features_NC is not None]
        for frames in NORMAL_CLIPS
    ]
    everything = FeatureSums.of(np.concatenate([x for clip in looks for x in clip])).normal()
    np.testing.assert_allclose(looking_site.normal.mean_C, everything.mean_C, rtol=1e-6)
    np.testing.assert_allclose(looking_site.normal.precision_CC, everything.precision_CC, rtol=1e-4, atol=1e-4)
    values = []
    for frames, others in zip(NORMAL_CLIPS, looks[::-1], strict=True):
        normal = FeatureSums.of(np.concatenate(others)).normal()
        measured = seen(frames, streams=("appearance",), normal=normal)
        values += [m.values["appearance"] for m in measured if m.values and m.moves]
    assert looking_site.streams["appearance"] == pytest.approx((np.mean(values), np.std(values)), rel=1e-3)


def test_a_single_clip_is_compared_with_its_other_parts(descriptor):
    frames = recording(52)
    site = fit_site([opener(frames)], descriptor, model="m", model_sha256="s")
    own = FrameAnalyser(descriptor.model, normal=site.normal, streams=("appearance",), fps=FPS)
    values = [m.values["appearance"] for m in measure(source(frames), own) if m.values]
    assert site.streams["appearance"].mean > np.mean(values)  # what is compared with itself is too usual


def test_what_looked_at_footage_with_too_little_in_it_is_refused(descriptor):
    with pytest.raises(InputError, match="places moved in the normal footage; more of it"):
        fit_site([opener(recording(12, moving=False))] * 2, descriptor, model="m", model_sha256="s")


@pytest.mark.parametrize(("count", "fps", "words"), [
    (20, 10.0, "20 frames (2.0 s at 10 frames a second)"), (50, 20.0, "25 frames (2.5 s at 10 frames a second)"),
])  # fmt: skip
def test_a_single_clip_of_few_frames_is_refused_with_what_was_read_and_what_is_needed(descriptor, count, fps, words):
    clip = [replace(frame, time_s=number / fps) for number, frame in enumerate(recording(count))]
    with pytest.raises(InputError) as caught:
        fit_site([opener(clip, fps=fps)], descriptor, model="m", model_sha256="s")
    assert f"{words} of normal footage were read" in str(caught.value)
    assert "of a single recording 26 (2.6 s) are the least" in str(caught.value)
    assert "name a longer one, or several" in str(caught.value)


def test_where_all_that_moves_is_in_one_part_or_clip_the_message_says_so(descriptor):
    pauses = recording(60, moving=False)
    pauses[25:50] = [replace(f, time_s=g.time_s) for f, g in zip(recording(25), pauses[25:50], strict=True)]
    for clips, what in (([pauses], "part"), ([recording(30), recording(30, moving=False)], "recording")):
        with pytest.raises(
            InputError, match=rf"60 frames \(6.0 s .*[0-9]+ of the [0-9]+ places.*in one {what}; name more"
        ):
            fit_site([opener(clip) for clip in clips], descriptor, model="m", model_sha256="s")


def test_who_watches_a_fit_sees_every_frame_that_is_read(descriptor):
    read = []
    clips = [opener(recording(30, seed=n), name=f"clip {n}") for n in range(2)]
    fit_site(
        clips, descriptor, model="m", model_sha256="s",
        seen=lambda source, frames: read.append((source.name, frames)),
    )  # fmt: skip
    assert read == 2 * [(f"clip {n}", frames) for n in range(2) for frames in range(1, 31)]
