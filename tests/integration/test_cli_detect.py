"""`moevision detect`, `anomaly-fit`, `evaluate anomaly` and `train anomaly` on small videos made in code."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import moevision
from moevision.checkpoint import save_model
from moevision.cli.main import app
from moevision.cli.progress import frame_progress
from moevision.errors import InputError, UsageError
from moevision.imaging.sources import VideoSource
from moevision.imaging.video import Frame, VideoReader, VideoWriter
from moevision.tasks.anomaly.model import PRESETS, MemoryOutNet

av = pytest.importorskip("av")

ALL = ["events.json", "heat.mp4", "scores.csv", "scores.png"]
SIZE_HW = 48, 64
PASSES = range(30, 45)  # the frames of yard.mp4 in which something large and fast crosses
# As a person would start it, but in a background shell, too, which has its children ignore an interrupt.
DRIVER = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
DRIVER += "from moevision.cli.main import main; main()"


def picture(number, seed=0, size_hw=SIZE_HW, fast=()):
    """A walker of 6 x 10 px, 1 px a frame, on a noisy ground; in the frames of `fast` something else, 6 px a frame."""
    width = size_hw[1]
    rng = np.random.default_rng((seed, number))
    ground = np.kron(np.random.default_rng(7).integers(60, 120, (6, 8)), np.ones((8, 8)))
    ground = np.resize(ground, size_hw) + rng.integers(-2, 3, size_hw)
    left = (number + 11 * seed) % (width - 6)
    ground[10:20, left : left + 6] = 220
    if number in fast:
        left = 6 * (number - fast[0]) % (width - 14)
        ground[24:40, left : left + 14] = 250
    return np.repeat(ground.astype(np.uint8)[..., None], 3, axis=2)


def write_video(path, count=50, seed=0, *, size_hw=SIZE_HW, fast=(), rate=10, times_s=None):
    with VideoWriter(path, Fraction(rate)) as writer:
        for number in range(count):
            writer.write(picture(number, seed, size_hw, fast), None if times_s is None else times_s[number])
    return path


def write_pictures(folder, sizes):
    folder.mkdir()
    for number, size_hw in enumerate(sizes):
        Image.fromarray(picture(number, 5, size_hw)).save(folder / f"f{number}.png")
    return folder


def moevision_cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = moevision_cli(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(result, code, *words):
    """That the command said what is wrong in one line, which has the words, and nothing as a result."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = (x for x in result.stderr.splitlines() if x.startswith(("moevision: error: ", "failed: ")))
    assert all(word in line for word in words), line
    assert "bug" not in line
    assert result.stdout == ""


def rows(folder):
    with (Path(folder) / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(folder):
    return json.loads((Path(folder) / "events.json").read_text("utf-8"))


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two normal recordings, their calibrations without and with a network, yard.mp4 with something unusual."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(2):
        write_video(folder / f"normal-{seed}.mp4", seed=seed)
        torch.manual_seed(seed)
        weights = folder / ("net.safetensors" if seed == 0 else "other.safetensors")
        save_model(MemoryOutNet(PRESETS["test"]()), weights, task="anomaly", training={})
    write_video(folder / "yard.mp4", 60, 2, fast=PASSES)
    normal = [folder / "normal-0.mp4", folder / "normal-1.mp4"]
    done("anomaly-fit", *normal, "-o", folder / "site.json", "--model", "none", "--quiet")
    fit = ["anomaly-fit", *normal, "-o", folder / "net.json", "--model", folder / "net.safetensors"]
    done(*fit, "--precision", "fp32", "--quiet")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The current folder, with links to what `made` holds; a test may add to it."""
    monkeypatch.chdir(tmp_path)
    for path in made.iterdir():
        os.link(path, path.name)
    return tmp_path


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


# Sources that cannot be read


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.mp4", "cannot be read as a video (No such file or directory)"),
        ("junk.mp4", "cannot be read as a video"),
        ("headless.mp4", "cannot be read as a video"),
        ("empty.avi", "holds no frame"),
        ("upright.mp4", "frames of 48x64, but the calibration was made on 64x48"),
        ("small.mp4", "frames of 32x24, but the calibration was made on 64x48"),
        ("slow.mp4", "5 frames a second, but the calibration was made at 10"),
        (".", "holds no picture"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_line_and_leaves_nothing(here, source, words):
    if source == "junk.mp4":
        Path(source).write_bytes(b"no video" * 100)
    elif source == "headless.mp4":
        Path(source).write_bytes(Path("yard.mp4").read_bytes()[:4000])
    elif source == "empty.avi":
        with av.open(source, "w") as target:
            stream = target.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
            target.start_encoding()
    elif source == "upright.mp4":
        write_video(here / source, 12, size_hw=SIZE_HW[::-1])
    elif source == "small.mp4":
        write_video(here / source, 12, size_hw=(24, 32))
    elif source == "slow.mp4":
        write_video(here / source, 12, rate=5)
    refused(moevision_cli("detect", source, "-o", "out", "--site", "site.json"), 3, f"failed: {source}: ", words)
    assert not Path("out").exists()
    with pytest.raises(InputError):
        moevision.detect(source, site="site.json", output="out")
    assert not Path("out").exists()


def test_one_bad_source_of_several_fails_alone(here):
    Path("junk.mp4").write_bytes(b"no video" * 100)
    Path("half.mp4").write_bytes(b"")
    result = moevision_cli(
        "detect", "junk.mp4", "yard.mp4", "half.mp4", "normal-0.mp4", "-o", "out", "--site", "site.json"
    )
    assert result.exit_code == 3
    assert [line.split(":")[1] for line in result.stderr.splitlines() if line.startswith("failed")] == [
        " junk.mp4",
        " half.mp4",
    ]
    assert names("out") == ["normal-0", "yard"]
    assert names("out/yard") == names("out/normal-0") == ALL
    assert result.stdout.startswith("yard.mp4: ")


# Sources that break off


def broken_source(kind):
    """A recording of 60 frames with something unusual in those of PASSES, of which the last cannot be read."""
    if kind in ("mixed", "spoilt"):
        sizes = [(32, 48) if kind == "mixed" and number >= 40 else SIZE_HW for number in range(42)]
        Path(kind).mkdir()
        for number, size_hw in enumerate(sizes):
            Image.fromarray(picture(number, 2, size_hw, PASSES)).save(f"{kind}/f{number}.png")
        if kind == "spoilt":
            Path("spoilt/f40.png").write_bytes(b"no picture")
        return kind
    name = "torn.mp4" if kind == "torn" else f"short.{kind}"
    options = {"movflags": "faststart"} if kind == "mp4" else {}  # else its table of contents is lost with the end
    with av.open(name, "w", options=options) as target:
        stream = target.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
        for number in range(60):
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 2, fast=PASSES), format="rgb24")))
        target.mux(stream.encode(None))
    data = bytearray(Path(name).read_bytes())
    at = len(data) // 2
    if kind == "torn":
        data[at : at + 500] = np.random.default_rng(1).bytes(500)
    Path(name).write_bytes(data if kind == "torn" else data[:at])
    return name


@pytest.mark.parametrize("kind", ["mkv", "mp4", "torn", "mixed", "spoilt"])
def test_of_a_recording_that_breaks_off_what_was_found_until_then_is_written_and_the_others_are_done(here, kind):
    source = broken_source(kind)
    options = ["--site", "site.json", "--fps", "10"]
    result = moevision_cli("detect", source, "normal-0.mp4", "-o", "out", *options)
    assert result.exit_code == 3, result.output
    folder = Path("out", Path(source).stem)
    assert names(folder) == names("out/normal-0") == ALL
    assert report("out/normal-0")["broken_off"] is None
    table, found = rows(folder), report(folder)
    assert found["frames"] == len(table)
    assert 10 < len(table) < 60
    at = f"0:00:0{float(table[-1]['time_s']):.3f}"
    assert found["broken_off"].startswith(f"at {at}: ")
    (line,) = (x for x in result.stderr.splitlines() if "failed" in x)
    assert line == f"failed: {source}: broke off {found['broken_off']} (the outputs reach until there)"
    with VideoReader(folder / "heat.mp4") as video:
        assert len(list(video.frames(whole=True))) == len(table)
    python = moevision.detect(source, site="site.json", fps=10.0, output="py")
    assert (python.broken_off, len(python.scores)) == (found["broken_off"], len(table))
    for name in ("scores.csv", "events.json"):
        assert Path("py", name).read_bytes() == (folder / name).read_bytes()


def test_an_event_that_is_on_where_a_recording_breaks_off_is_found(here):
    result = moevision_cli("detect", broken_source("mixed"), "-o", "out", "--site", "site.json", "--fps", "10", "-q")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "frame 40 is 48x32 after frames of 64x48" in result.stderr, "an error, which --quiet does not silence"
    (event,) = report("out")["events"]
    assert (event["start_frame"], event["end_frame"]) == (PASSES[0], 39)


# Progress


def test_on_a_terminal_one_line_a_source_shows_frames_rate_and_time_left(here):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = ["detect", "yard.mp4", "normal-0.mp4", "-o", "out", "--site", "site.json", "--outputs", "scores"]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *command], stdout=-1, stderr=theirs, env={**os.environ, "COLUMNS": "90"}
    )
    os.close(theirs)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                shown += part
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"yard\.mp4 .* 60/60 [0-9.]+ frames/s 0:00:00", text)
    assert re.search(r"normal-0\.mp4 .* 50/50 [0-9.]+ frames/s 0:00:00", text)
    (line,) = output.decode().splitlines()
    assert line.startswith("yard.mp4: 0:00:03")


@pytest.fixture
def terminal(monkeypatch):
    """What stands on a terminal of 100 columns that stderr is said to be."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr("moevision.cli.progress.stderr_console", lambda: console)
    streams = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True), stdout=sys.stdout)
    monkeypatch.setattr("moevision.cli.progress.sys", streams)
    return shown


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["detect", "yard.mp4", "-o", "out", "--site", "site.json", "--duration", "2.45"], ["yard.mp4 ", " 25/25 "]),
        (["detect", "frames", "-o", "out", "--site", "site.json"], ["frames ", " 12/12 "]),
        (["anomaly-fit", "normal-0.mp4", "-o", "fit.json", "--model", "none"], ["normal-0.mp4 ", " 50/50 "]),
    ],
)  # fmt: skip
def test_progress_goes_to_the_end_of_what_is_read_and_is_not_shown_to_who_wants_quiet(here, terminal, command, wanted):
    write_pictures(here / "frames", [SIZE_HW] * 12)
    done(*command)
    assert all(words in terminal.getvalue() for words in wanted), terminal.getvalue()
    terminal.truncate(0)
    done(*command, "--on-exists", "overwrite", "--quiet")
    assert terminal.getvalue().strip("\0") == ""


def test_of_a_live_source_the_frames_are_counted_without_an_end(terminal):
    with frame_progress(quiet=False, duration_s=60) as progress:
        for frames in range(1, 4):
            progress.show(_Endless(), frames)
    assert "camera:7" in terminal.getvalue()
    assert " 3/? " in terminal.getvalue()


def test_without_a_terminal_no_progress_is_shown(here):
    result = done("detect", "yard.mp4", "-o", "out", "--site", "site.json", "--outputs", "scores")
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["threshold", "yard.mp4:"]


# Requests that cannot be carried out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--outputs", "scores,film"], "unknown output film; use scores, events, heat, plot"),
        (["--outputs", ","], "--outputs names nothing"),
        (["--p-value", "0"], "--p-value 0: "),
        (["--p-value", "1"], "--p-value 1: "),
        (["--p-value", "0.0001"], "fit on more footage"),
        (["--p-value", "nan"], "--p-value nan: "),
        (["--false-alarms-per-hour", "0"], "--false-alarms-per-hour 0.0: must be a positive number"),
        (["--false-alarms-per-hour", "-2"], "must be a positive number"),
        (["--on-exists", "rename"], "use fail or overwrite"),
        (["-o", "yard.mp4"], "not a folder"),
        (["-o", "frames"], "a source would be changed"),
        (["yard.mp4", "sub/Yard.avi"], "several sources are called yard"),
        (["--model", "none", "--site", ""], "--model none: has no calibration of its own"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_any_work(here, arguments, words):
    write_pictures(here / "frames", [SIZE_HW])
    before = names(here)
    command = ["detect", "-o", "out", "--site", "site.json", *arguments]
    if arguments[-2:] == ["--site", ""]:
        command = ["detect", "-o", "out", "--model", "none"]
    refused(moevision_cli(*command, "frames"), 2, words)
    assert names(here) == before
    assert names("frames") == ["f0.png"]


def test_a_duration_is_positive(here):
    result = moevision_cli("detect", "yard.mp4", "-o", "out", "--site", "site.json", "--duration", "0")
    assert result.exit_code == 2
    assert "--duration" in result.stderr
    with pytest.raises(UsageError, match="duration"):
        moevision.detect("yard.mp4", site="site.json", duration_s=0)


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


@pytest.mark.parametrize("outputs", ["scores", "heat"])
@pytest.mark.parametrize("url", [False, True])
def test_a_source_that_lies_where_outputs_are_replaced_or_taken_away_is_refused(here, outputs, url):
    done("detect", "yard.mp4", "-o", "out", "--site", "site.json", "--outputs", "heat")
    heat = Path("out/heat.mp4")
    before = heat.read_bytes()
    source = heat.absolute().as_uri() if url else heat
    options = ["--site", "site.json", "--outputs", outputs, "--on-exists", "overwrite"]
    refused(moevision_cli("detect", source, "-o", "out", *options), 2, "a source would be changed")
    assert heat.read_bytes() == before


class _Endless(VideoSource):
    is_live = True

    def __init__(self):
        super().__init__("camera:7", None)
        self._start()

    def _read(self):
        return Frame(picture(0), 0.0)

    def close(self):
        pass


def test_a_live_source_is_not_waited_for_by_others(here, monkeypatch):
    monkeypatch.setattr("moevision.imaging.sources.open_source", lambda text, **_: _Endless())
    refused(moevision_cli("detect", "camera:7", "yard.mp4", "-o", "out", "--site", "site.json"), 2, "camera:7: is live")
    assert not list(Path("out").rglob("*.csv"))


# Calibrations


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--site", "missing.json"], 3, "missing.json: cannot be read (No such file or directory)"),
        (["--site", "frames"], 3, "frames: cannot be read"),
        (["--site", "cut.json"], 3, "cut.json: not a site calibration"),
        (["--site", "foreign.json"], 3, "foreign.json: not a site calibration"),
        (["--site", "yard.mp4"], 3, "yard.mp4: not a site calibration"),
        (["--site", "net.json", "--model", "other.safetensors"], 3, "made with other weights than other.safetensors"),
        (["--site", "net.json", "--model", "restoration-small"], 3, "made with other weights than restoration-small"),
        (["--site", "net.json", "--model", "none"], 3, "made with the model net.safetensors; leave out --model none"),
        (["--site", "site.json", "--model", "net.safetensors"], 3, "site.json: the calibration was made without a"),
        (["--site", "frames/net.json"], 4, "frames/net.safetensors: no such file, but frames/net.json was made"),
        (["--model", "net.safetensors"], 3, "has no calibration (net.site.json) beside it; name one"),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_used_is_one_line(here, arguments, code, words):
    Path("frames").mkdir()
    shutil.copy("net.json", "frames/net.json")
    Path("cut.json").write_text(Path("site.json").read_text()[:300])
    Path("foreign.json").write_text('{"format": 1, "streams": []}')
    refused(moevision_cli("detect", "yard.mp4", "-o", "out", *arguments), code, words)
    assert not Path("out").exists()


def test_a_network_may_lie_elsewhere_or_have_its_calibration_beside_it(here):
    Path("sub").mkdir()
    shutil.copy("net.json", "sub/net.json")
    options = ["--outputs", "scores", "--quiet"]
    done("detect", "yard.mp4", "-o", "a", "--site", "sub/net.json", "--model", "net.safetensors", *options)
    done("detect", "yard.mp4", "-o", "b", "--site", "net.json", *options)
    shutil.copy("net.json", "net.site.json")
    done("detect", "yard.mp4", "-o", "c", "--model", "net.safetensors", *options)
    done("detect", "yard.mp4", "-o", "d", "--site", "site.json", "--model", "none", *options)
    tables = [Path(folder, "scores.csv").read_bytes() for folder in "abc"]
    assert tables[0] == tables[1] == tables[2]
    assert "prediction" in rows("a")[0]
    assert "prediction" not in rows("d")[0]


# anomaly-fit


def test_fit_prints_the_file_and_says_what_it_rests_on(here):
    result = done("anomaly-fit", "normal-0.mp4", "normal-1.mp4", "-o", "fit.json", "--model", "none")
    assert result.stdout == "fit.json\n"
    assert Path("fit.json").read_text() == Path("site.json").read_text(), "nothing in it is left to chance"
    assert "clip 2 of 2" in result.stderr
    assert "0.2 minutes of normal footage at 10 frames a second" in result.stderr
    command = ["anomaly-fit", "normal-0.mp4", "-o", "fit.json", "--model", "none"]
    refused(moevision_cli(*command), 2, "fit.json: exists already", "--on-exists overwrite")
    done(*command, "--on-exists", "overwrite")
    assert Path("fit.json").read_text() != Path("site.json").read_text()


@pytest.mark.parametrize(("site", "model"), [("site.json", "none"), ("net.json", "net.safetensors")])
def test_python_fits_as_the_command_does(here, site, model):
    clips, seen = ["normal-0.mp4", Path("normal-1.mp4")], []
    fitted = moevision.fit_site(
        clips, "fit.json", model=model, precision="fp32", seen=lambda source, count: seen.append((source.name, count))
    )
    assert Path("fit.json").read_text() == Path(site).read_text()
    assert fitted.hours == pytest.approx(2 * 50 / 10 / 3600, rel=0.1)
    assert seen[-1] == ("normal-1.mp4", 50)
    moevision.fit_site(clips[:1], "fit.json", model="none")
    assert Path("fit.json").read_text() != Path(site).read_text(), "it is replaced"
    with pytest.raises(UsageError, match="a restoration model"):
        moevision.fit_site(clips, model="restoration-small")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["normal-0.mp4", "small.mp4"], 3, "small.mp4: 32x24 after 64x48; fit each camera on its own"),
        (["mixed"], 3, "mixed: frame 9 is 48x32 after frames of 64x48"),
        (["one.mp4"], 3, "20 are the least; use more normal footage"),
        (["junk.mp4"], 3, "junk.mp4: cannot be read as a video"),
        (["normal-0.mp4", "missing.mp4"], 3, "missing.mp4: cannot be read"),
        (["normal-0.mp4", "-o", "no/fit.json"], 2, "no: no such folder"),
        (["normal-0.mp4", "-o", "mixed"], 2, "mixed: name a .json file"),
        (["normal-0.mp4", "-o", "normal-0.mp4", "--on-exists", "overwrite"], 2, "name a .json file"),
        (["normal-0.mp4", "--on-exists", "skip"], 2, "use fail or overwrite"),
        (["normal-0.mp4", "--model", "missing.safetensors"], 4, "missing.safetensors: no such weights file"),
        (["normal-0.mp4", "--model", "restoration-small"], 2, "a restoration model; choose one for anomaly"),
        (["normal-0.mp4", "--model", "net.safetensors", "--fine-tune", "2"], 2, "at least two recordings"),
        (["normal-0.mp4", "normal-1.mp4", "--fine-tune", "2"], 2, "--fine-tune needs a network"),
        (["normal-0.mp4", "one.mp4", "one.mp4", "--model", "restoration-small", "--fine-tune", "2"], 2, "restoration"),
    ],
)  # fmt: skip
def test_a_fit_that_cannot_be_made_is_one_line_and_leaves_nothing(here, arguments, code, words):
    write_video(here / "small.mp4", 12, size_hw=(24, 32))
    write_video(here / "one.mp4", 1)
    write_pictures(here / "mixed", [SIZE_HW] * 9 + [(32, 48)])
    Path("junk.mp4").write_bytes(b"no video" * 100)
    before = names(here)
    result = moevision_cli("anomaly-fit", "-o", "fit.json", "--model", "none", *arguments)
    refused(result, code, words)
    assert names(here) == before


def test_fine_tuned_weights_lie_beside_the_calibration_which_finds_them(here):
    Path("home").mkdir()
    command = ["anomaly-fit", "normal-0.mp4", "normal-1.mp4", "-o", "home/fit.json", "--model", "net.safetensors"]
    result = done(*command, "--fine-tune", "2")
    assert result.stdout == "home/fit.json\n"
    assert names("home") == ["fit.json", "fit.safetensors"]
    assert "clip 1 of 1" in result.stderr, "the recording that was not learned from"
    assert json.loads(Path("home/fit.json").read_text())["model"] == "fit.safetensors"
    done("detect", "yard.mp4", "-o", "out", "--site", "home/fit.json", "--outputs", "scores")
    assert "prediction" in rows("out")[0]
    Path("home/fit.json").unlink()
    refused(moevision_cli(*command, "--fine-tune", "2"), 2, "home/fit.safetensors: exists already")


# Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_writes_what_was_found(here, number):
    repeat("yard.mp4", "long.mp4", 200)
    command = ["detect", "long.mp4", "-o", "out", "--site", "site.json", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", DRIVER, *command], stdout=-1, stderr=-1, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(len(part.read_bytes()) > 2000 for part in Path().glob("out/unfinished-*/scores.csv")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        output, log = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, log
    assert "interrupted; what was found until then is written" in log
    assert "Traceback" not in log
    assert names("out") == ALL
    count = len(rows("out"))
    assert 25 < count < 200 * 60
    assert report("out")["frames"] == count
    assert f"long.mp4: {count} frames" in log
    assert len(output.splitlines()) == len(report("out")["events"])
    with VideoReader(Path("out/heat.mp4")) as video:
        assert sum(1 for _ in video.frames()) == count


def repeat(source, target, times):
    """A long video for little work: the packets of a short one, again and again."""
    with av.open(source) as short, av.open(target, "w") as long:
        stream = short.streams.video[0]
        output = long.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in short.demux(stream) if p.dts is not None]
        length = stream.duration
        for turn in range(times):
            for data, pts, dts, key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.time_base = pts + turn * length, dts + turn * length, stream.time_base
                packet.is_keyframe, packet.stream = key, output
                long.mux(packet)


# Evaluation and training


@pytest.fixture
def data(here):
    """train/ with two clips, test/ with two of which the frames of PASSES are abnormal, labels.npz."""
    for part in ("train", "test"):
        Path("set", part).mkdir(parents=True)
    for seed in range(2):
        os.link(f"normal-{seed}.mp4", f"set/train/0{seed}.mp4")
        write_video(here / f"set/test/0{seed}.mp4", 50, 3 + seed, fast=PASSES)
    labels_T = np.isin(np.arange(50), PASSES).astype(np.uint8)
    np.savez("set/labels.npz", **{"00": labels_T, "01": labels_T})
    return Path("set")


@pytest.mark.parametrize("masked", [False, True])
def test_evaluation_writes_both_protocols_beside_the_baselines(data, masked):
    if masked:
        mask_THW = np.zeros((50, *SIZE_HW), bool)
        for number in PASSES:
            left = 6 * (number - PASSES[0]) % (SIZE_HW[1] - 14)
            mask_THW[number, 24:40, left : left + 14] = True
        packed = np.packbits(mask_THW, axis=-1)
        np.savez(data / "pixel_masks_packbits.npz", **{"00": packed, "01": packed})
    result = done("evaluate", "anomaly", "--data", data, "--model", "net.safetensors", "--json", "r/e.json")
    written = json.loads(Path("r/e.json").read_text())
    assert {"task", "model", "data", "n", "metrics", "per_item", "version"} <= set(written)
    assert (written["task"], written["model"], written["n"]) == ("anomaly", "net", 2)
    metrics = written["metrics"]
    assert set(metrics["baselines"]) == {"mb", "frame_difference"}
    for numbers in (metrics, metrics["baselines"]["mb"], metrics["baselines"]["frame_difference"]):
        for protocol in ("p0", "p1"):
            assert {"micro_auc", "macro_auc"} <= set(numbers[protocol])
            assert 0.7 < numbers[protocol]["micro_auc"] <= 1, "what crosses is large and fast"
    assert ({"pointing_game", "rbdc", "tbdc"} <= set(metrics)) == masked
    assert [(item["name"], item["frames"], item["abnormal_frames"]) for item in written["per_item"]] == [
        ("00", 50, len(PASSES)),
        ("01", 50, len(PASSES)),
    ]
    printed = dict(line.split() for line in result.stdout.splitlines())
    keys = {"p0.micro_auc", "p0.macro_auc", "p1.micro_auc"}
    keys |= {f"baselines.{name}.p0.micro_auc" for name in ("mb", "frame_difference")}
    assert keys <= set(printed)
    assert float(printed["p0.micro_auc"]) == pytest.approx(metrics["p0"]["micro_auc"], abs=1e-4)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("labels.npz", "set/labels.npz: cannot be read"),
        ("test", "set/test: no such folder"),
        ("train", "set/train: no such folder"),
        ("01", "set/labels.npz: no labels for 01"),
    ],
)
def test_evaluation_without_a_part_of_the_set_is_one_line(data, lost, words):
    if lost == "01":
        np.savez(data / "labels.npz", **{"00": np.zeros(50, np.uint8)})
    elif (data / lost).is_dir():
        shutil.rmtree(data / lost)
    else:
        (data / lost).unlink()
    result = moevision_cli("evaluate", "anomaly", "--data", data, "--model", "net.safetensors", "--json", "e.json")
    refused(result, 2, words)
    assert not Path("e.json").exists()


def test_a_trained_network_can_be_calibrated(data):
    command = ["train", "anomaly", "--data", data, "--preset", "test"]
    result = done(*command, "-o", "run", "--steps", "2")
    assert result.stdout == "run/model.safetensors\n"
    done("anomaly-fit", "normal-0.mp4", "-o", "run/site.json", "--model", "run/model.safetensors")
    refused(moevision_cli(*command, "-o", "run"), 2, "run: holds a run")
    refused(moevision_cli("train", "anomaly", "--data", "nowhere", "-o", "r", "--preset", "test"), 2, "nowhere/train")
    refused(moevision_cli(*command, "-o", "r", "--preset", "huge"), 2, "no such preset; choose from test, small")
