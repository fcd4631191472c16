"""What the video layer does beyond pairs and sources: frame times, sound that does not fit, streams that go on."""

import logging
from fractions import Fraction

import numpy as np
import pytest

from moevision.errors import InputError
from moevision.imaging.video import VideoWriter, read_frames, require_av, stream_frames

pytest.importorskip("av")


def noisy(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


def with_sound(path, codec, rate=8000):
    av = require_av()
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream(codec, rate=rate)
        picture.height, picture.width, sound.layout = 48, 64, "mono"
        for pixels_HWC in noisy(10):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        for number in range(8):
            if codec == "aac":
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            else:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, number * 1024, Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    return path


def streams(path):
    with require_av().open(str(path)) as container:
        return [stream.type for stream in container.streams]


def write(path, times, sound_from=None):
    with VideoWriter(path, Fraction(10), sound_from=sound_from) as writer:
        for time_s, pixels_HWC in zip(times, noisy(len(times)), strict=True):
            writer.write(pixels_HWC, time_s)
    return path


def test_frames_with_times_are_shown_at_them_even_where_two_are_equal(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 0.5, 0.5, 0.6, 2.0])
    assert [frame.time_s for frame in read_frames(path)] == pytest.approx([0, 0.5, 0.5, 0.6, 2.0], abs=0.001)


def test_sound_is_kept_beside_frames_with_times(tmp_path):
    path = write(tmp_path / "b.mp4", [0, 0.1, 0.4], with_sound(tmp_path / "a.mp4", "aac"))
    assert streams(path) == ["video", "audio"]
    assert [frame.time_s for frame in read_frames(path)] == pytest.approx([0, 0.1, 0.4], abs=0.001)


def test_sound_that_the_container_cannot_hold_is_left_out_with_a_warning(tmp_path, caplog):
    source = with_sound(tmp_path / "a.avi", "pcm_mulaw")
    with caplog.at_level(logging.WARNING):
        path = write(tmp_path / "b.mp4", [0, 0.1], source)
    assert streams(path) == ["video"]
    assert "its sound cannot be carried over" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.avi", "b.mp4"]


def test_a_stream_goes_on_after_damage_where_a_file_ends(tmp_path):
    av = require_av()
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        stream.height, stream.width = 48, 64
        for pixels_HWC in noisy(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(InputError):
        list(read_frames(tmp_path / "a.mp4"))
    frames = list(stream_frames(str(tmp_path / "a.mp4"), "cam", timeout_s=5))
    assert 25 < len(frames) < 40
    assert frames[-1].time_s == pytest.approx(3.9)


def test_a_stream_that_cannot_be_opened_is_named_without_its_address(tmp_path):
    with pytest.raises(InputError, match="cam: cannot be read as a video") as caught:
        next(stream_frames(str(tmp_path / "secret"), "cam", timeout_s=5))
    assert "secret" not in str(caught.value)
