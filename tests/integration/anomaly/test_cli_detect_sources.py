"""`moevision detect` and sources that cannot be read, that break off, or that have no end; requests without sense."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moevision
from moevision.errors import InputError, UsageError
from moevision.imaging.video import VideoReader

from .conftest import (
    ALL,
    PASSES,
    SIZE_HW,
    Endless,
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


def test_a_live_source_is_not_waited_for_by_others(here, monkeypatch):
    monkeypatch.setattr("moevision.imaging.sources.open_source", lambda text, **_: Endless())
    refused(moevision_cli("detect", "camera:7", "yard.mp4", "-o", "out", "--site", "site.json"), 2, "camera:7: is live")
    assert not list(Path("out").rglob("*.csv"))
