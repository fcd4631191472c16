"""`moevision detect`: what it writes and prints."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import moevision
from moevision.imaging.video import VideoReader

from .conftest import (
    ALL,
    PASSES,
    SIZE_HW,
    done,
    moevision_cli,
    names,
    picture,
    refused,
    report,
    rows,
    write_pictures,
    write_video,
)

av = pytest.importorskip("av")

# What works


def test_detect_writes_four_files_prints_events_and_logs_to_stderr(here):
    result = done("detect", "yard.mp4", "-o", "new/out", "--site", "site.json")
    assert names("new/out") == ALL
    table = rows("new/out")
    assert [int(row["frame"]) for row in table] == list(range(60))
    assert [float(row["time_s"]) for row in table] == pytest.approx([n / 10 for n in range(60)], abs=1e-3)
    assert list(table[0]) == ["frame", "time_s", "score", "raw", "difference", "flow", "alarm", "disturbed"]
    (event,) = report("new/out")["events"]
    assert event["start_frame"] == PASSES[0]
    assert PASSES[-1] <= event["end_frame"] < 60
    assert [n for n, row in enumerate(table) if row["alarm"] == "1"][-1] == event["end_frame"]
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"yard.mp4: {event['start']} to {event['end']}, score {event['peak_score']:.2f}, at ")
    assert "6 false alarms an hour, from 0.2 minutes of normal footage" in result.stderr
    assert result.stderr.endswith("yard.mp4: 60 frames, 1 event\n")
    with VideoReader(Path("new/out/heat.mp4")) as video:
        assert len(list(video.frames(whole=True))) == 60


def test_quiet_says_nothing_and_only_what_is_wanted_is_written(here):
    result = done("detect", "yard.mp4", "-o", "out", "--site", "site.json", "-q", "--outputs", "events, scores")
    assert result.output == ""
    assert names("out") == ["events.json", "scores.csv"]
    fit = done("anomaly-fit", "normal-0.mp4", "-o", "one.json", "--model", "none", "--quiet")
    assert fit.output == ""


def test_a_config_file_sets_the_options(here):
    Path("m.toml").write_text('[detect]\nsite = "site.json"\noutputs = "scores"\nduration = 1\n')
    done("detect", "yard.mp4", "-o", "out", "--config", "m.toml")
    assert names("out") == ["scores.csv"]


def test_a_folder_of_pictures_at_its_rate_for_a_while(here):
    write_pictures(here / "frames", [SIZE_HW] * 30)
    result = done("detect", "frames", "-o", "out", "--site", "site.json", "--fps", "12.5", "--duration", "1.6")
    assert [float(row["time_s"]) for row in rows("out")] == [round(n / 12.5, 3) for n in range(20)]
    assert report("out")["fps"] == 12.5
    assert "frames: 20 frames" in result.stderr


@pytest.mark.parametrize("site", ["site.json", "net.json"])
def test_command_and_python_give_the_same_scores_and_files(here, site):
    done("detect", "yard.mp4", "-o", "out", "--site", site, "--precision", "fp32", "--outputs", "scores,events,plot")
    found = moevision.detect(here / "yard.mp4", site=here / site, precision="fp32")
    scores = [float(row["score"] or "nan") for row in rows("out")]
    assert found.scores == pytest.approx(scores, abs=1e-4, nan_ok=True)
    assert np.isnan(found.scores[:4]).all()
    assert np.isfinite(found.scores[4:]).all()
    assert found.times_s == pytest.approx([float(row["time_s"]) for row in rows("out")], abs=1e-3)
    assert [event.start_frame for event in found.events] == [event["start_frame"] for event in report("out")["events"]]
    assert len(found.events) == 1
    assert found.threshold.low <= found.threshold.value <= found.threshold.high
    moevision.detect("yard.mp4", site=site, precision="fp32", output="py")
    assert names("py") == ALL
    for name in names("out"):
        assert Path("out", name).read_bytes() == Path("py", name).read_bytes()


def test_of_several_sources_each_is_as_alone_and_in_a_folder_of_its_own(here):
    write_pictures(here / "cam.1", [SIZE_HW] * 12)
    shutil.copy("yard.mp4", "yard#2.mp4")
    sources = ["normal-0.mp4", "yard.mp4", "yard#2.mp4", "cam.1"]
    options = ["--site", "site.json", "--outputs", "scores,events"]
    done("detect", *sources, "-o", "all", *options)
    assert names("all") == ["cam.1", "normal-0", "yard", "yard#2"]
    done("detect", "yard.mp4", "-o", "alone", *options)
    for name in names("alone"):
        assert Path("all/yard", name).read_bytes() == Path("alone", name).read_bytes()


def test_uneven_times_are_kept(here):
    times_s = [round(0.1 * n + 0.05 * (n // 3), 3) for n in range(30)]
    write_video(here / "uneven.mp4", 30, times_s=times_s)
    done("detect", "uneven.mp4", "-o", "out", "--site", "site.json")
    assert [float(row["time_s"]) for row in rows("out")] == pytest.approx(times_s, abs=1e-3)
    with VideoReader(Path("out/heat.mp4")) as video:
        assert [frame.time_s for frame in video.frames()] == pytest.approx(times_s, abs=1e-3)


def test_sound_goes_with_the_heat_video_if_there_is_some(here):
    with av.open("loud.mp4", "w") as target:
        video, audio = target.add_stream("libx264", rate=10), target.add_stream("aac", rate=16_000, layout="mono")
        video.height, video.width = SIZE_HW
        video.pix_fmt = "yuv420p"
        for number in range(20):
            target.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        for number in range(2 * 16_000 // 1024):
            samples = np.random.default_rng(number).standard_normal((1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(0.1 * samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1024 * number
            target.mux(audio.encode(frame))
        for stream in (video, audio):
            target.mux(stream.encode(None))
    result = done("detect", "loud.mp4", "normal-0.mp4", "-o", "out", "--site", "site.json")
    assert "sound" not in result.output
    for name, kinds in (("loud", ["video", "audio"]), ("normal-0", ["video"])):
        with av.open(f"out/{name}/heat.mp4") as heat:
            assert [stream.type for stream in heat.streams] == kinds


def test_a_video_of_one_frame_has_no_score_and_no_event(here):
    write_video(here / "one.mp4", 1)
    result = done("detect", "one.mp4", "-o", "out", "--site", "site.json")
    assert names("out") == ALL
    (row,) = rows("out")
    assert row["score"] == ""
    assert result.stdout == ""
    assert "one.mp4: 1 frame, 0 events" in result.stderr


def test_without_a_site_the_shipped_model_brings_its_own(here):
    if "anomaly-ped2" not in [model["name"] for model in moevision.list_models()]:
        pytest.skip("the weights anomaly-ped2 are not shipped yet")
    write_video(here / "walkway.mp4", 12, size_hw=(240, 360))
    result = done("detect", "walkway.mp4", "-o", "out")
    assert names("out") == ALL
    assert report("out")["model"] == "anomaly-ped2"
    assert "appearance" in rows("out")[0]
    assert "walkway.mp4: 12 frames" in result.stderr


# Outputs that exist


def test_outputs_that_exist_are_kept_unless_asked(here):
    command = ["detect", "yard.mp4", "-o", "out", "--site", "site.json"]
    Path("out").mkdir()
    Path("out/events.json").write_text("mine")
    Path("out/notes.txt").write_text("mine")
    refused(moevision_cli(*command), 2, "out/events.json: exists already", "--on-exists overwrite")
    assert names("out") == ["events.json", "notes.txt"]
    done(*command, "--outputs", "scores")
    assert Path("out/events.json").read_text() == "mine", "only what would be written counts"
    done(*command, "--on-exists", "overwrite")
    assert names("out") == sorted([*ALL, "notes.txt"])
    assert Path("out/notes.txt").read_text() == "mine"


def test_overwritten_outputs_are_of_one_run_and_nothing_else_is_touched(here):
    command = ["detect", "yard.mp4", "-o", "out", "--site", "site.json", "--on-exists", "overwrite"]
    done(*command)
    Path("out/notes.txt").write_text("mine")
    Path("out/heat.mkv").write_text("mine")
    before = report("out")
    refused(moevision_cli(*command[:1], "missing.mp4", *command[2:]), 3, "No such file")
    assert report("out") == before, "what failed takes nothing away"
    done(*command, "--outputs", "events,scores")
    assert names("out") == ["events.json", "heat.mkv", "notes.txt", "scores.csv"]
