"""What detect writes: complete or not at all, tables that can be read back, pictures that show what they say."""

import csv
import errno
import itertools
import json
import math
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from moevision.errors import InputError, MissingExtraError, UsageError
from moevision.imaging.video import Frame, VideoReader, VideoWriter, require_av
from moevision.tasks.anomaly.events import Event, find_events
from moevision.tasks.anomaly.outputs import (
    Curve,
    DetectionWriter,
    draw_overlay,
    draw_plot,
    events_as_json,
    time_text,
)
from moevision.tasks.anomaly.scores import Box, FrameScore

NAN = math.nan
NO_HEAT = np.full((3, 4), -1, np.float32)
EVENT = Event(0.2, 0.8, 2, 8, 0.5, 4.5, (Box(8, 8, 24, 24, 5.5),))


def pixels(value=90, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def score(number=0, value=1.0, *, time_s=None, heat_HW=NO_HEAT, boxes=(), disturbed=False, streams=None):
    streams = {"difference": 0.5, "flow": NAN} if streams is None else streams
    return FrameScore(
        number, number / 10 if time_s is None else time_s, value, value, streams, heat_HW, boxes, disturbed
    )


def writer(folder, **options):
    settings = {"source": "door.mp4", "fps": 10.0, "threshold": 2.0, "threshold_from": "0.1 % of normal frames"}
    return DetectionWriter(folder, **{**settings, "streams": ("difference", "flow"), **options})


def fill(target, count=12):
    for number in range(count):
        target.write(Frame(pixels(10 * number % 250), number / 10), score(number, 3.0 if number else NAN), number > 5)
    target.event(EVENT)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_outputs_appear_together_at_the_end(tmp_path):
    pytest.importorskip("av")
    folder = tmp_path / "new" / "out"
    with writer(folder) as target:
        fill(target)
        target.facts["dropped"] = 3
        assert not [name for name in names(folder) if not name.startswith("unfinished-")]
    assert names(folder) == ["events.json", "heat.mp4", "scores.csv", "scores.png"]
    rows = list(csv.DictReader((folder / "scores.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["frame", "time_s", "score", "raw", "difference", "flow", "alarm", "disturbed"]
    assert list(rows[0].values()) == ["0", "0.000", "", "", "0.5000", "", "0", "0"]
    assert list(rows[7].values()) == ["7", "0.700", "3.0000", "3.0000", "0.5000", "", "1", "0"]
    assert len(rows) == 12
    report = json.loads((folder / "events.json").read_text(encoding="utf-8"))
    assert (report["source"], report["fps"], report["frames"], report["threshold"]) == ("door.mp4", 10, 12, 2)
    assert report["dropped"] == 3
    assert report["threshold_from"] == "0.1 % of normal frames"
    assert [event["start"] for event in report["events"]] == ["0:00:00.200"]
    assert Image.open(folder / "scores.png").size == (1200, 400)
    with VideoReader(folder / "heat.mp4") as reader:
        frames = list(reader.frames(whole=True))
    assert [frame.time_s for frame in frames] == pytest.approx([number / 10 for number in range(12)], abs=0.001)


def test_only_what_is_wanted_is_written_and_older_files_are_replaced(tmp_path):
    (tmp_path / "scores.csv").write_text("old")
    (tmp_path / "events.json").write_text("old")
    with writer(tmp_path, outputs=("scores",)) as target:
        fill(target)
    assert names(tmp_path) == ["events.json", "scores.csv"]
    assert (tmp_path / "events.json").read_text() == "old"
    assert (tmp_path / "scores.csv").read_text().startswith("frame,")


def test_who_clears_leaves_the_files_of_one_run_and_whatever_else_lies_there(tmp_path):
    for name in ("scores.csv", "events.json", "scores.png", "notes.txt", "heat.avi"):
        (tmp_path / name).write_text("old")
    (tmp_path / "heat.mp4").mkdir()
    with writer(tmp_path, outputs=("scores",), clear=True) as target:
        fill(target)
        assert (tmp_path / "events.json").read_text() == "old", "not before all is complete"
    assert names(tmp_path) == ["heat.avi", "heat.mp4", "notes.txt", "scores.csv"]
    assert (tmp_path / "scores.csv").read_text().startswith("frame,")


def test_who_clears_and_fails_takes_nothing_away(tmp_path):
    (tmp_path / "events.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(writer(tmp_path, outputs=("scores",), clear=True))
    assert names(tmp_path) == ["events.json"]


def interrupted(target):
    with target:
        fill(target)
        raise KeyboardInterrupt


def test_an_exception_leaves_everything_as_it_was(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "scores.csv").write_text("old")
    for folder in (tmp_path, tmp_path / "new" / "out"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(writer(folder))
        assert names(tmp_path) == ["scores.csv"]
        assert (tmp_path / "scores.csv").read_text() == "old"


def test_a_full_disk_at_the_end_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = writer(tmp_path / "out", outputs=("scores", "events", "plot")).__enter__()
    fill(target)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out.*No space left.*free space"):
        target.__exit__(None, None, None)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        writer(tmp_path / "file" / "out").__enter__()
    with pytest.raises(UsageError, match="unknown output sound"):
        writer(tmp_path, outputs=("sound",))


def test_without_pyav_the_extra_is_named_before_any_work_and_tables_still_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"moevision\[video\]"):
        writer(tmp_path / "out").__enter__()
    assert names(tmp_path) == []
    with writer(tmp_path / "out", outputs=("scores", "events", "plot")) as target:
        fill(target)
    assert names(tmp_path / "out") == ["events.json", "scores.csv", "scores.png"]


def test_rows_can_be_followed_while_a_live_source_runs(tmp_path):
    with writer(tmp_path, outputs=("scores",), fps=None) as target:
        fill(target, 60)
        (part,) = tmp_path.glob("unfinished-*/scores.csv")
        assert len(part.read_text().splitlines()) > 30


def test_the_heat_video_keeps_uneven_times_and_the_sound(tmp_path):
    av = require_av() if pytest.importorskip("av") else None
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=8000)
        picture.height, picture.width, sound.layout = 48, 64, "mono"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels(), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts, silence.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(sound.encode(silence))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    times_s = [0, 0.04, 0.3, 1.5]
    with writer(tmp_path / "out", sound_from=tmp_path / "in.mp4", outputs=("heat",)) as target:
        for number, time_s in enumerate(times_s):
            target.write(Frame(pixels(), time_s), score(number, time_s=time_s), False)
    with av.open(str(tmp_path / "out" / "heat.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        found = [float(frame.time) for frame in container.decode(video=0)]
    assert found == pytest.approx(times_s, abs=0.001)


def test_a_source_without_frames_has_tables_and_no_video(tmp_path):
    pytest.importorskip("av")
    with writer(tmp_path):
        pass
    assert names(tmp_path) == ["events.json", "scores.csv", "scores.png"]


def test_a_size_that_changes_is_refused_and_nothing_is_left(tmp_path):
    pytest.importorskip("av")
    frames = [Frame(pixels(), 0), Frame(pixels(90, 64, 64), 0.1)]
    with pytest.raises(InputError, match="other size"), writer(tmp_path) as target:
        [target.write(frame, score(), False) for frame in frames]
    assert names(tmp_path) == []


def test_the_report_holds_every_field_of_an_event_and_times_as_text():
    report = events_as_json([EVENT], source="a", fps=None, threshold=2, threshold_from="given", facts={"x": NAN})
    assert (report["fps"], report["x"]) == (None, None)
    (event,) = report["events"]
    assert event == {
        **{"start": "0:00:00.200", "end": "0:00:00.800", "peak": "0:00:00.500", "length_s": 0.6},
        **{"start_s": 0.2, "end_s": 0.8, "start_frame": 2, "end_frame": 8, "peak_s": 0.5, "peak_score": 4.5},
        "boxes": [{"left_px": 8, "top_px": 8, "right_px": 24, "bottom_px": 24, "score": 5.5}],
    }
    json.dumps(report, allow_nan=False)


def test_times_are_rounded_before_they_are_split():
    assert time_text(0) == "0:00:00.000"
    assert time_text(59.9996) == "0:01:00.000"
    assert time_text(100 * 3600 + 1.0005) == "100:00:01.000"


def test_numpy_scores_are_written_as_numbers(tmp_path):
    event = Event(0.0, np.float64(1.0), 0, 10, 0.5, np.float32(3.5), (Box(0, 0, 1, 1, np.float32(2.5)),))
    report = events_as_json([event], source="a", fps=1.0, threshold=np.float32(2.5), threshold_from="")
    assert json.loads(json.dumps(report))["events"][0]["peak_score"] == 3.5
    assert report["threshold"] == 2.5


def test_a_normal_frame_is_shown_as_it_is_and_the_source_is_never_changed():
    frame = pixels()
    drawn = draw_overlay(frame, score(1, 0.5), threshold=2)
    np.testing.assert_array_equal(drawn[24:], frame[24:])
    assert drawn.shape == frame.shape
    assert drawn.dtype == np.uint8
    hot = np.full((3, 4), 9, np.float32)
    draw_overlay(frame, score(1, 9, heat_HW=hot, boxes=(Box(0, 0, 64, 48, 9),)), threshold=2, alarm=True)
    np.testing.assert_array_equal(frame, pixels())


def test_heat_grows_from_clear_at_normal_to_full_at_twice_the_threshold():
    def shown(value, threshold=2.0):
        heat_HW = np.full((3, 4), value, np.float32)
        return draw_overlay(pixels(), score(heat_HW=heat_HW), threshold=threshold)[40, 40].astype(int)

    distances = [np.abs(shown(value) - 90).sum() for value in (-3, 0, 1, 2, 3, 4)]
    assert distances[:2] == [0, 0]
    assert all(a < b for a, b in itertools.pairwise(distances[1:]))
    np.testing.assert_array_equal(shown(4), shown(400))
    np.testing.assert_array_equal(shown(NAN), 90)
    np.testing.assert_array_equal(shown(2, threshold=4), shown(1, threshold=2))
    assert np.abs(shown(0.2, threshold=0) - shown(1, threshold=0)).sum() > 0  # not a division by 0


def test_heat_is_at_its_place_boxes_are_drawn_and_a_disturbed_frame_has_neither():
    heat_HW = NO_HEAT.copy()
    heat_HW[2, 3] = 9
    drawn = draw_overlay(pixels(), score(heat_HW=heat_HW), threshold=2)
    assert (drawn[44, 60] != 90).any()
    np.testing.assert_array_equal(drawn[40:, :30], 90)
    box = Box(30, 30, 50, 44, 9)
    drawn = draw_overlay(pixels(), score(boxes=(box,)), threshold=2)
    np.testing.assert_array_equal(drawn[30, 30:50], 255)
    np.testing.assert_array_equal(drawn[43, 49], 255)
    drawn = draw_overlay(pixels(), score(heat_HW=heat_HW, boxes=(box,), disturbed=True), threshold=2)
    np.testing.assert_array_equal(drawn[24:], 90)


def test_an_event_has_a_red_border():
    drawn = draw_overlay(pixels(), score(), threshold=2, alarm=True)
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (edge[:, 0] > 200).all()
        assert (edge[:, 1] < 60).all()


@pytest.mark.parametrize("size_hw", [(1, 1), (16, 24), (33, 51), (480, 640)])
def test_frames_of_any_size_can_be_drawn_on(size_hw):
    drawn = draw_overlay(pixels(90, *size_hw), score(heat_HW=np.ones((3, 4), np.float32)), threshold=1, alarm=True)
    assert drawn.shape == (*size_hw, 3)


def columns(plot, colour):
    return np.flatnonzero((plot[44:364] == colour).all(2).any(0))


def test_the_plot_shades_events_at_their_time_and_draws_the_threshold():
    times_s = [i / 10 for i in range(101)]
    values = [4.0 if 40 <= i < 60 else 0.5 for i in range(101)]
    events = find_events([score(i, value) for i, value in enumerate(values)], 2.0)
    plot = draw_plot(times_s, values, 2.0, events, title="door.mp4")
    assert plot.shape == (400, 1200, 3)
    assert plot.dtype == np.uint8
    shaded = columns(plot, (250, 216, 210))
    left, right = 58 + 0.40 * 1117, 58 + 0.59 * 1117
    assert shaded.min() == pytest.approx(left, abs=2)
    assert shaded.max() == pytest.approx(right, abs=2)
    assert len(columns(plot, (200, 50, 40))) > 500
    assert columns(draw_plot(times_s, values, 2.0, []), (250, 216, 210)).size == 0


def test_a_gap_in_the_scores_is_a_gap_in_the_plot():
    times_s = [i / 10 for i in range(101)]
    values = [NAN if 30 < i < 70 else 1.0 for i in range(101)]
    differs = draw_plot(times_s, values, 2.0, []) != draw_plot(times_s, [NAN] * 101, 2.0, [])
    drawn = np.flatnonzero(differs[44:364].any((0, 2)))
    assert drawn.size
    assert not ((drawn > 58 + 0.32 * 1117) & (drawn < 58 + 0.68 * 1117)).any()


@pytest.mark.parametrize(
    ("times_s", "values", "threshold"),
    [
        ([], [], 3.0),
        ([0.0], [1.0], 3.0),
        ([0.0, 1.0], [NAN, NAN], 0.0),
        ([5.0, 5.0], [-3.0, 1e6], -1.0),
        ([0.0, 40 * 86400.0], [0.0, 1.0], 2.0),
        ([0.0, 1e-3], [0.0, 0.0], 0.0),
    ],
)
def test_any_curve_can_be_plotted(times_s, values, threshold):
    event = Event(0, 0, 0, 0, 0, 1, ())
    assert draw_plot(times_s, values, threshold, [event], title="a\nb" * 300).shape == (400, 1200, 3)


def test_the_curve_keeps_its_peaks_in_bounded_memory():
    curve, rng = Curve(limit=64), np.random.default_rng(0)
    values = rng.normal(size=5000)
    values[3333] = 50
    for number, value in enumerate(values):
        curve.add(number / 10, value)
        assert len(curve.points()[0]) <= 64
    times_s, scores = curve.points()
    assert len(times_s) > 30
    assert times_s == sorted(times_s)
    assert times_s[int(np.argmax(scores))] == pytest.approx(333.3)
    assert max(scores) == 50


def test_the_curve_keeps_gaps_only_where_nothing_was_scored():
    curve = Curve(limit=4)
    for number, value in enumerate([NAN, NAN, 1.0, NAN, 2.0, 3.0]):
        curve.add(number, value)
    times_s, scores = curve.points()
    assert math.isnan(scores[0])
    assert (times_s[1:], scores[1:]) == ([2, 5], [1.0, 3.0])


def test_a_video_writer_is_not_left_open_when_a_source_fails_at_once(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(InputError), writer(tmp_path / "out"):
        raise InputError("source: damaged after 0 frames; repair it")
    assert names(tmp_path) == []
    with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as plain:
        plain.write(pixels())
    assert names(tmp_path) == ["a.mp4"]
