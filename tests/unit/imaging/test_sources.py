"""Recorded sources: every frame once, in order, at its time, or one clear line. Every video is made in code."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from moevision.errors import InputError, UsageError
from moevision.imaging import sources, video
from moevision.imaging.sources import LiveOptions, natural_key, open_source, shown_address
from moevision.imaging.video import Frame, VideoReader, VideoWriter

pytest.importorskip("av")


def flat(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def noisy(count, height=48, width=64):
    """Frames that differ so much that a file of them has bytes everywhere."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def write(path, frames, rate=10, times=None):
    with VideoWriter(path, Fraction(rate)) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, None if times is None else times[number])
    return path


def read_until_error(source):
    frames = []
    with source, pytest.raises(InputError) as caught:
        frames.extend(source)
    return frames, str(caught.value)


def test_a_file_gives_every_frame_once_in_order_with_rate_and_size(tmp_path):
    path = write(tmp_path / "a.mp4", [flat(8 * i) for i in range(30)])
    with open_source(str(path)) as source:
        assert (source.fps, source.size_hw, source.is_live, source.name) == (10, (48, 64), False, str(path))
        assert source.sound_path == path
        frames = list(source)
    assert [round(frame.pixels_HWC.mean() / 8) for frame in frames] == list(range(30))
    assert [round(frame.time_s, 3) for frame in frames] == [round(i / 10, 3) for i in range(30)]
    assert (source.dropped, source.reconnects, source.restarted) == (0, 0, False)
    assert list(source) == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_frame_times_are_kept(tmp_path, suffix):
    times = [0, 0.04, 0.2, 0.24, 1.0, 1.04, 1.5, 4.5]
    path = write(tmp_path / f"a{suffix}", [flat(30 * i) for i in range(8)], 25, times)
    with open_source(str(path)) as source:
        assert [frame.time_s for frame in source] == pytest.approx(times, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_file_says_how_many_frames_it_holds(tmp_path, suffix):
    with open_source(str(write(tmp_path / f"a{suffix}", noisy(12)))) as source:
        assert source.frame_count == 12


def test_a_colon_in_a_file_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "12:30:00.mp4", [flat(0)] * 3)
    with open_source("12:30:00.mp4") as source:
        assert len(list(source)) == 3


def test_a_truncated_file_gives_what_it_has_and_then_says_how_many_frames(tmp_path):
    path = write(tmp_path / "a.mkv", noisy(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, text = read_until_error(open_source(str(path)))
    assert 5 < len(frames) < 35
    assert f"breaks off after {len(frames)} frames" in text
    assert text.startswith(str(path))
    assert "\n" not in text


def test_a_file_damaged_in_the_middle_gives_the_frames_before_unharmed_and_says_how_many(tmp_path):
    path = write(tmp_path / "a.mp4", noisy(40))
    whole = [frame.pixels_HWC for frame in open_source(str(path))]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    path.write_bytes(data)
    frames, text = read_until_error(open_source(str(path)))
    assert 5 < len(frames) < 35
    assert f"after {len(frames)} frames" in text
    for frame, before in zip(frames, whole, strict=False):
        np.testing.assert_array_equal(frame.pixels_HWC, before)


def two_sizes(folder):
    """A video of 5 frames of 64x48, then 5 of 96x64."""
    av, data = video.require_av(), b""
    for height, width in ((48, 64), (64, 96)):
        with av.open(str(folder / "part.ts"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width = height, width
            for i in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(flat(20 * i, height, width), format="rgb24")))
            container.mux(stream.encode(None))
        data += (folder / "part.ts").read_bytes()
    (folder / "two.ts").write_bytes(data)
    return folder / "two.ts"


def test_a_change_of_size_names_the_frame_and_both_sizes(tmp_path):
    frames, text = read_until_error(open_source(str(two_sizes(tmp_path))))
    assert len(frames) == 5
    assert "frame 5 is 96x64 after frames of 64x48" in text


def test_time_never_goes_back_where_recordings_were_strung_together():
    def frames():
        for time_s in (0.0, 0.1, 0.2, 0.0, 0.1, 0.9):
            yield Frame(flat(0), time_s)

    source = sources.RecordedSource("a", 10.0, frames())
    assert [frame.time_s for frame in source] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.9])


def test_a_source_closed_while_it_decodes_ends_after_that_frame_and_closes_at_the_end_of_its_block():
    released = []

    def frames():
        yield Frame(flat(0), 0.0)
        source.close()  # as from a signal handler
        assert not released
        yield Frame(flat(1), 0.1)
        yield Frame(flat(2), 0.2)

    with sources.RecordedSource("a", 10.0, frames(), lambda: released.append(1)) as source:
        assert [int(frame.pixels_HWC[0, 0, 0]) for frame in source] == [0, 1]
    assert released


def test_a_closed_source_gives_nothing_more(tmp_path):
    source = open_source(str(write(tmp_path / "a.mp4", [flat(0)] * 3)))
    source.close()
    source.close()
    assert list(source) == []


def test_what_is_no_video_or_empty_is_one_line_at_once(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, text in (
        ("bad.mp4", "cannot be read as a video"),
        ("empty.mp4", "cannot be read as a video"),
        ("gone.mp4", "No such file"),
        ("folder", "holds no picture"),
        ("pipe", "not a regular file"),
    ):
        with pytest.raises(InputError, match=text) as caught:
            open_source(str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_video_without_frames_is_refused(tmp_path):
    with video.require_av().open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = 48, 64
        container.start_encoding()
    with pytest.raises(InputError, match=r"holds no frame|cannot be read as a video"):
        open_source(str(tmp_path / "a.mkv"))


def test_frames_beyond_the_limit_are_refused_by_the_header_and_while_decoding(tmp_path, monkeypatch):
    path = two_sizes(tmp_path)
    monkeypatch.setattr(video, "MAX_PIXELS", 48 * 64)
    frames, text = read_until_error(open_source(str(path)))
    assert len(frames) <= 5
    assert f"cannot be decoded after {len(frames)} frames" in text
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        open_source(str(path))


def test_a_folder_gives_its_pictures_in_natural_order_as_8_bit_rgb(tmp_path):
    for number in (2, 10, 1):
        Image.fromarray(flat(10 * number)).save(tmp_path / f"frame{number}.png")
    Image.fromarray(np.full((48, 64), 110 * 257, np.uint16)).save(tmp_path / "frame11.png")
    Image.fromarray(np.full((48, 64), 120, np.uint8)).save(tmp_path / "FRAME12.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    with open_source(str(tmp_path), fps=5) as source:
        assert (source.fps, source.size_hw, source.frame_count, source.sound_path) == (5, (48, 64), 5, None)
        frames = list(source)
    assert [int(frame.pixels_HWC[0, 0, 0]) for frame in frames] == [10, 20, 100, 110, 120]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert {(frame.pixels_HWC.shape, str(frame.pixels_HWC.dtype)) for frame in frames} == {((48, 64, 3), "uint8")}


def test_a_damaged_picture_or_one_of_other_size_ends_a_folder_with_its_name_or_number(tmp_path):
    Image.fromarray(flat(1)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    frames, text = read_until_error(open_source(str(tmp_path)))
    assert len(frames) == 1
    assert "2.png" in text
    Image.fromarray(flat(1, 40, 30)).save(tmp_path / "2.png")
    frames, text = read_until_error(open_source(str(tmp_path)))
    assert len(frames) == 1
    assert "frame 1 is 30x40 after frames of 64x48" in text


def test_natural_order_compares_numbers_as_numbers():
    names = ["b2", "a10.png", "a9.png", "A1.png", "a09.png", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "A1.png", "a09.png", "a9.png", "a10.png", "b2"]


def test_names_of_addresses_hold_no_secrets():
    assert shown_address("rtsp://user:p@ss@cam.local:554/live?token=1#x") == "rtsp://cam.local:554/live"
    assert shown_address("rtsp://cam/user=admin_password=abc_channel=1.sdp") == "rtsp://cam/..."
    assert shown_address("udp://@:1234") == "udp://:1234"
    assert "secret" not in shown_address("http://[secret")


def test_an_address_is_a_live_source_and_its_password_stays_out_of_names_and_errors(monkeypatch):
    asked = []

    def stream(address, name, *, timeout_s):
        asked.append((address, timeout_s))
        raise InputError(f"{name}: cannot be read as a video (Connection refused); check the address")

    monkeypatch.setattr(sources, "stream_frames", stream)
    with pytest.raises(InputError, match=r"rtsp://cam/live: no connection: .*Connection refused") as caught:
        open_source("rtsp://user:secret@cam/live?key=secret", live=LiveOptions(stall_s=3))
    assert asked == [("rtsp://user:secret@cam/live?key=secret", 3)]
    assert "secret" not in str(caught.value)
    for text in ("camera:0", "udp://@:1", "https://host/list.m3u8"):
        with pytest.raises(InputError, match="no connection"):
            open_source(text)


def test_a_url_that_ends_like_a_video_file_is_read_once_and_whole(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", [flat(0)] * 3)
    monkeypatch.setattr(sources, "VideoReader", lambda url, name, *, timeout_s: VideoReader(path, name))
    with open_source("https://host/a.mp4?key=1") as source:
        assert (source.is_live, source.name, len(list(source))) == (False, "https://host/a.mp4", 3)


def test_a_file_url_is_a_file(tmp_path):
    path = write(tmp_path / "a b.mp4", [flat(0)] * 3)
    with open_source(path.as_uri()) as source:
        assert (source.is_live, len(list(source))) == (False, 3)


def test_options_that_make_no_sense_are_refused():
    for options in (
        {"queue_frames": 0},
        {"stall_s": 0},
        {"first_wait_s": 9, "longest_wait_s": 1},
        {"max_reconnects": -1},
    ):
        with pytest.raises(UsageError):
            LiveOptions(**options)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="fps"):
            open_source("x", fps=fps)
    with pytest.raises(UsageError, match="camera:0"):
        open_source("camera:front")
