"""`moevision detect` while it works: progress and interruption."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from moevision.cli.progress import frame_progress
from moevision.imaging.video import VideoReader

from .conftest import ALL, DRIVER, SIZE_HW, Endless, done, names, report, rows, write_pictures

av = pytest.importorskip("av")

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
            progress.show(Endless(), frames)
    assert "camera:7" in terminal.getvalue()
    assert " 3/? " in terminal.getvalue()


def test_without_a_terminal_no_progress_is_shown(here):
    result = done("detect", "yard.mp4", "-o", "out", "--site", "site.json", "--outputs", "scores")
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["threshold", "yard.mp4:"]


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
