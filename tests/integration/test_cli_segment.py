"""`moevision segment`, `evaluate segmentation` and `train segmentation` with a tiny network made in code."""

import csv
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import moevision
from moevision.checkpoint import save_model
from moevision.cli.main import app
from moevision.imaging.video import VideoReader, VideoWriter, read_frames
from moevision.tasks.segmentation.model import PRESETS, SegmentationConfig, SegmentationNet
from moevision.tasks.segmentation.predict import SegmentationTask

CLASSES = ("Sky", "Road", "Car", "Tree, high")
PALETTE = ((120, 180, 250), (128, 64, 128), (0, 0, 142), (107, 142, 35))
MODEL = "tiny.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = SegmentationNet(SegmentationConfig(PRESETS["test"](), CLASSES, PALETTE))
    torch.nn.init.normal_(net.classify.weight, std=0.5)
    path = tmp_path_factory.mktemp("weights") / MODEL
    save_model(net, path, task="segmentation", training={})
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch, weights, image):
    """The current folder, with the weights, in/a.png, in/b.jpg and in/sub/c.png."""
    monkeypatch.chdir(tmp_path)
    Path(MODEL).write_bytes(weights)
    for seed, name in enumerate(("in/a.png", "in/b.jpg", "in/sub/c.png")):
        image(name, seed)
    return tmp_path


def segment(*arguments, model=MODEL):
    common = ["--model", model, "--device", "cpu", "--precision", "fp32"]
    return CliRunner().invoke(app, ["segment", *map(str, arguments), *common])


def done(*arguments):
    result = segment(*arguments)
    assert result.exit_code == 0, result.output
    return result


def table(path="out/areas.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ids(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def labelled(path, **options):
    return moevision.segment(path, model=MODEL, device="cpu", precision="fp32", **options)


def test_a_folder_gives_ids_overlays_and_tables(folder, tree):
    before = tree("in")
    result = done("in", "-o", "out")
    pictures = ["a.png", "b.png", "sub/c.png"]
    overlays = ["overlay/a.jpg", "overlay/b.jpg", "overlay/sub/c.jpg"]
    assert sorted(tree("out")) == sorted([*pictures, *overlays, "areas.csv", "areas.json"])
    assert result.stdout.splitlines() == [f"out/{name}" for name in pictures]
    assert "3 done" in result.stderr
    for source, name in zip(("in/a.png", "in/b.jpg", "in/sub/c.png"), pictures, strict=True):
        assert np.array_equal(ids(f"out/{name}"), labelled(source).ids_HW), "always PNG, whatever the input is"
        with Image.open(f"out/overlay/{name}".replace(".png", ".jpg")) as overlay:
            assert overlay.size == Image.open(source).size
    assert tree("in") == before, "inputs are never changed"


def test_the_tables_say_how_much_of_each_picture_a_class_takes_and_what_ids_mean(folder):
    done("in", "-o", "out")
    rows = table()
    assert [row["picture"] for row in rows] == ["a.png", "b.png", "sub/c.png"]
    for row in rows:
        counts = np.bincount(ids(f"out/{row['picture']}").ravel(), minlength=4) / ids(f"out/{row['picture']}").size
        assert [float(row[name]) for name in CLASSES] == pytest.approx(counts, abs=1e-5)
    meaning = json.loads(Path("out/areas.json").read_text("utf-8"))
    assert meaning == {"classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE]}


def test_one_named_file_leaves_nothing_else_unless_it_is_asked_for(folder, tree):
    named = done("in/b.jpg", "-o", "new/x.png")
    assert named.stdout == "new/x.png\n"
    assert "class ids: 0 " in named.stderr
    assert os.listdir("new") == ["x.png"]
    done("in/b.jpg", "-o", "more/x.png", "--overlay")
    assert sorted(tree("more")) == ["x.overlay.jpg", "x.png"]


def test_overlays_can_be_left_out(folder, tree):
    done("in/a.png", "-o", "out", "--no-overlay")
    assert sorted(tree("out")) == ["a.png", "areas.csv", "areas.json"]


def test_options_reach_the_task(folder, monkeypatch):
    done("in/a.png", "-o", "out", "--size", 32, "--experts", 1, "--palette", "--tile", 64)
    restored = "--restore", "rain, haze", "--restore-model", "restoration-small"
    done("in/a.png", "-o", "other", *restored, "--report", "r.json")
    assert np.array_equal(ids("out/a.png"), labelled("in/a.png", size=32, experts=1, tile=64).ids_HW)
    assert np.array_equal(ids("other/a.png"), labelled("in/a.png", restore=["haze", "rain"]).ids_HW)
    assert Image.open("out/a.png").mode == "P"
    (item,) = json.loads(Path("r.json").read_text())["items"]
    assert {"weather", "confidence", "classes", "tiles", "area.Road"} <= item["facts"].keys()


@pytest.mark.parametrize("overlay", ["--overlay", "--no-overlay"])
def test_the_page_shows_the_picture_and_its_classes_in_colour(folder, page_of, overlay):
    done("in", "-o", "out", overlay, "--report", "r.html")
    data, images = page_of("r.html")
    assert data["pictures"] == ["picture", "classes"]
    for name, (picture, classes) in zip(("a.png", "b.png", "sub/c.png"), images, strict=True):
        source = np.asarray(picture, float)
        coloured = np.array(PALETTE)[ids(f"out/{name}")]
        expected = (source + coloured) / 2
        assert np.asarray(classes).shape == source.shape
        # Both are JPEGs of a few pixels, whose colours are coarse: their means are not.
        assert np.asarray(classes, float).mean((0, 1)) == pytest.approx(expected.mean((0, 1)), abs=12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in/a.png", "-o", "x.jpg"], "x.jpg: class ids are written as PNG"),
        (["in/a.png", "-o", "x.mp4"], "videos to a folder"),
        (["in", "-o", "in"], "in: the pictures lie there"),
        (["in/**/*.png", "-o", "in"], "in: the pictures lie there"),
        (["in/*", "-o", "in"], "in: the pictures lie there"),
        (["i?/over*/*.jpg", "in/o*/*.jpg", "-o", "in"], "in: the pictures lie there"),
        (["in/a.png", "-o", "out", "--experts", "9"], "--experts 9: 9 of 4 experts"),
        (["in/a.png", "-o", "out", "--size", "7"], "size 7: use 0 for the picture as it is"),
        (["in/a.png", "-o", "out", "--restore", "fog"], "weather 'fog': unknown"),
        (["in/a.png", "-o", "file"], "not a folder"),
        (["in/clip.mp4", "-o", "x.png"], "-o x.png names a picture, but in/clip.mp4 is a video"),
    ],
)
def test_wrong_usage_is_one_line_and_gives_2(folder, arguments, words):
    Path("file").touch()
    Path("in/clip.mp4").touch()
    result = segment(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("moevision: error: ")
    assert words in line
    assert not Path("out").exists()


def test_a_restorer_that_does_not_fit_is_one_line(folder):
    for model, code, words in [("nonsense", 4, "no such model"), ("segmentation-camvid", 2, "one for restoration")]:
        result = segment("in", "-o", "out", "--restore", "auto", "--restore-model", model)
        assert result.exit_code == code
        (line,) = result.stderr.splitlines()
        assert line.startswith("moevision: error: ")
        assert words in line
        assert not Path("out").exists()


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("nonsense", 4, "nonsense: no such model; shipped are: "),
        ("gone.safetensors", 4, "gone.safetensors: no such weights file"),
        ("restoration-small", 2, "a restoration model; choose one for segmentation"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(folder, model, code, words):
    result = segment("in", "-o", "out", model=model)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_a_bad_file_fails_alone(folder, tree):
    Path("in/bad.png").write_bytes(b"no picture")
    result = segment("in", "missing.png", "-o", "out")
    assert result.exit_code == 3
    assert "failed: in/bad.png: " in result.stderr
    assert "3 done, 2 failed" in result.stderr
    assert [row["picture"] for row in table()] == ["a.png", "b.png", "sub/c.png"]
    assert not [name for name in tree("out") if "bad" in name or "part" in name]


def test_outputs_that_exist_are_left_alone_also_the_overlays(folder, tree):
    done("in/a.png", "-o", "out")
    before = tree("out")
    result = segment("in", "-o", "out")
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    Path("out/a.png").unlink()
    result = segment("in", "-o", "out")
    assert result.exit_code == 2
    assert "out/overlay/a.jpg (overlay) already exists" in result.stderr
    assert tree("out") == {name: data for name, data in before.items() if name != "a.png"}
    done("in", "-o", "out", "--on-exists", "overwrite")
    assert len(table()) == 3


def test_a_pattern_that_means_no_overlay_may_lie_in_the_output_folder(folder, tree):
    done("in/*.jpg", "-o", "in")
    assert {"b.png", "overlay/b.jpg", "areas.csv"} <= tree("in").keys()


def test_an_overlay_that_cannot_be_written_leaves_no_ids_and_resume_without_overlays_makes_them(folder, tree):
    Image.fromarray(np.zeros((2, 65_501, 3), np.uint8)).save("in/long.png")
    result = segment("in", "-o", "out")
    assert result.exit_code == 3
    assert "out/overlay/long.jpg: cannot be encoded as JPEG" in result.stderr
    assert "or do without the overlay" in result.stderr
    assert not [name for name in tree("out") if "long" in name]
    again = done("in/long.png", "-o", "out", "--resume", "--no-overlay")
    assert again.stdout == "out/long.png\n"
    assert ids("out/long.png").shape == (2, 65_501)


@pytest.mark.parametrize("name", ["areas.csv", "areas.json"])
def test_a_table_of_all_pictures_that_is_not_ours_is_not_replaced_unless_told_so(folder, tree, name):
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    result = segment("in/a.png", "-o", "out")
    assert result.exit_code == 2
    assert f"out/{name} already exists" in result.stderr
    assert tree("out") == {name: b"mine"}
    done("in/a.png", "-o", "out", "--on-exists", "overwrite")
    assert Path("out", name).read_text() != "mine"
    done("in/b.jpg", "-o", "out")


def test_names_that_are_no_text_are_in_the_table_as_in_reports(folder):
    os.rename("in/a.png", b"in/a\xff.png")
    done("in", "-o", "out")
    assert [row["picture"] for row in table()] == ["a\N{REPLACEMENT CHARACTER}.png", "b.png", "sub/c.png"]


def test_what_a_killed_run_left_of_an_overlay_is_removed(folder, tree):
    done("in/a.png", "-o", "out")
    Path("out/overlay/.b.jpg.999999999.part").write_bytes(b"half")
    done("in/b.jpg", "-o", "out")
    assert not [name for name in tree("out") if "part" in name]


def test_resume_skips_what_is_done_and_the_table_has_all(folder):
    done("in/a.png", "-o", "out", "--resume")
    again = done("in", "-o", "out", "--resume")
    assert again.stdout.splitlines() == ["out/b.png", "out/sub/c.png"]
    assert "1 skipped" in again.stderr
    assert [row["picture"] for row in table()] == ["a.png", "b.png", "sub/c.png"]
    changed = done("in", "-o", "out", "--resume", "--size", 32)
    assert len(changed.stdout.splitlines()) == 3, "other settings, other ids"


def test_tables_lost_with_a_killed_run_come_back(folder):
    done("in", "-o", "out", "--resume")
    before = table()
    Path("out/areas.csv").unlink()
    done("in", "-o", "out", "--resume")
    assert table() == before


def test_tables_older_than_what_a_killed_run_did_are_written_again(folder):
    done("in/a.png", "-o", "out", "--resume")
    before = Path("out/areas.csv").read_bytes()
    done("in", "-o", "out", "--resume")
    Path("out/areas.csv").write_bytes(before)
    os.utime("out/areas.csv", (1e9, 1e9))
    done("in", "-o", "out", "--resume")
    assert len(table()) == 3


def interrupt_at(monkeypatch, number):
    """Ctrl-C while picture or frame `number` is in work."""
    plain, calls = SegmentationTask.segment, []

    def segment_or_stop(self, picture):
        calls.append(picture)
        if len(calls) == number:
            raise KeyboardInterrupt
        return plain(self, picture)

    monkeypatch.setattr(SegmentationTask, "segment", segment_or_stop)


def test_an_interruption_keeps_what_is_done_with_its_table(folder, monkeypatch, tree):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        result = segment("in", "-o", "out")
    assert result.exit_code == 130
    assert "interrupted: 1 done, 2 not begun" in result.stderr
    assert sorted(tree("out")) == ["a.png", "areas.csv", "areas.json", "overlay/a.jpg"]
    assert [row["picture"] for row in table()] == ["a.png"]
    done("in", "-o", "out", "--resume")
    assert len(table()) == 3


def test_a_dry_run_touches_nothing(folder, tree):
    before = tree(".")
    result = done("in", "-o", "out", "--dry-run")
    assert "in/b.jpg -> out/b.png" in result.stdout
    assert tree(".") == before


@pytest.fixture
def clip(folder):
    """in/clip.mkv: 6 frames of 33 x 46 with a tone; the folder holds pictures, too."""
    return write_clip("in/clip.mkv")


def write_clip(path, frames=6, size_hw=(34, 46)):
    av = pytest.importorskip("av")
    rng = np.random.default_rng(3)
    with VideoWriter(Path(path).with_suffix(".mp4"), Fraction(10)) as writer:
        for _ in range(frames):
            writer.write(rng.integers(0, 256, (*size_hw, 3), np.uint8))
    silent = Path(path).with_suffix(".mp4")
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=8000, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.rate, tone.pts = 8000, 0
        target.mux(sound.encode(tone))
        target.mux(sound.encode(None))
    silent.unlink()
    return Path(path)


def test_a_video_becomes_an_overlay_video_with_its_sound_and_a_table_of_frames(clip, tree):
    result = done("in/clip.mkv", "-o", "out", "--report", "r.json")
    assert result.stdout == "out/clip.mp4\n"
    assert sorted(tree("out")) == ["areas.csv", "areas.json", "clip.areas.csv", "clip.mp4"]
    with VideoReader(Path("out/clip.mp4")) as reader:
        assert reader.rate == 10
        assert len(reader._container.streams.audio) == 1
        frames = list(reader.frames())
    assert [frame.pixels_HWC.shape for frame in frames] == [(34, 46, 3)] * 6
    rows = table("out/clip.areas.csv")
    assert [row["time_s"] for row in rows] == ["0.000", "0.100", "0.200", "0.300", "0.400", "0.500"]
    for row, frame, drawn in zip(rows, read_frames(clip), frames, strict=True):
        found = labelled(frame.pixels_HWC)
        assert [float(row[name]) for name in CLASSES] == pytest.approx(list(found.areas.values()), abs=1e-5)
        assert np.abs(found.overlay().astype(float) - drawn.pixels_HWC).mean() < 20, "compressed, but the same"
    (of_clip,) = table()
    assert of_clip["picture"] == "clip.mp4"
    assert float(of_clip["Road"]) == pytest.approx(np.mean([float(row["Road"]) for row in rows]), abs=1e-5)
    (item,) = json.loads(Path("r.json").read_text())["items"]
    assert item["facts"]["frames"] == 6


def test_a_folder_may_hold_pictures_and_videos(clip, tree):
    result = done("in", "-o", "out", "--no-overlay", "--resume")
    assert result.stdout.splitlines() == ["out/a.png", "out/b.png", "out/clip.mp4", "out/sub/c.png"]
    assert {"a.png", "clip.mp4", "clip.areas.csv", "sub/c.png"} <= tree("out").keys()
    assert "4 skipped" in done("in", "-o", "out", "--no-overlay", "--resume").stderr
    assert len(table()) == 4


def test_an_interrupted_video_leaves_nothing_and_resume_makes_it(clip, monkeypatch, tree):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert segment("in/clip.mkv", "-o", "out").exit_code == 130
    assert not [name for name in tree("out") if "clip" in name]
    done("in/clip.mkv", "-o", "out", "--resume")
    assert {"clip.mp4", "clip.areas.csv"} <= tree("out").keys()


def test_a_damaged_video_fails_alone_and_leaves_nothing(clip, tree):
    data = write_clip("in/cut.mkv", frames=40).read_bytes()
    Path("in/cut.mkv").write_bytes(data[: len(data) // 2])
    result = segment("in", "-o", "out")
    assert result.exit_code == 3
    assert "failed: in/cut.mkv: " in result.stderr
    assert "4 done, 1 failed" in result.stderr
    assert not [name for name in tree("out") if "cut" in name]


def test_a_table_that_is_not_ours_is_not_replaced(clip):
    Path("out").mkdir()
    Path("out/clip.areas.csv").write_text("mine")
    result = segment("in/clip.mkv", "-o", "out")
    assert result.exit_code == 3
    assert "output exists already" in result.stderr
    assert Path("out/clip.areas.csv").read_text() == "mine"
    assert not Path("out/clip.mp4").exists()


def test_videos_of_one_name_are_refused_before_any_work(clip):
    Path("in/clip.avi").write_bytes(clip.read_bytes())
    result = segment("in", "-o", "out")
    assert result.exit_code == 2
    assert "would both become out/clip.mp4" in result.stderr


def test_what_a_killed_run_left_of_a_video_is_removed(clip, tree):
    Path("out").mkdir()
    Path("out/.clip.999999999.part.mp4").write_bytes(b"half")
    done("in/clip.mkv", "-o", "out")
    assert not [name for name in tree("out") if "part" in name]


@pytest.fixture
def data(folder):
    """data/ as for evaluation and training: 12 pictures of two classes, the left and the right half."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        Path("data", part).mkdir(parents=True)
    Path("data/classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for number in range(12):
        label = np.zeros((40, 48), np.uint8)
        label[:, 24:] = 1
        noise = rng.integers(0, 60, (40, 48, 3))
        Image.fromarray((noise + 150 * label[..., None]).astype(np.uint8)).save(f"data/images/{number}.png")
        Image.fromarray(label).save(f"data/labels/{number}.png")
    return Path("data")


def test_evaluation_counts_what_segment_says(data):
    arguments = ["evaluate", "segmentation", "--data", "data", "--model", MODEL, "--json", "e.json", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--precision", "fp32", "--size", "0"])
    assert result.exit_code == 0, result.output
    found = json.loads(Path("e.json").read_text())
    right = [
        labelled(f"data/images/{number}.png").ids_HW == np.asarray(Image.open(f"data/labels/{number}.png"))
        for number in range(12)
    ]
    assert found["metrics"]["pixel_accuracy"] == pytest.approx(np.mean(right), abs=1e-4)
    assert f"pixel_accuracy {found['metrics']['pixel_accuracy']:.4f}" in result.stdout
    assert (found["task"], found["model"], found["n"]) == ("segmentation", "tiny", 12)


def test_training_writes_weights_that_segment_takes(data):
    pytest.importorskip("albumentations")
    arguments = ["train", "segmentation", "--data", "data", "--out", "run", "--preset", "test", "--steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "--start-from", "none", "--workers", "0", "--learning-rate", "1e-3"])
    assert result.exit_code == 0, result.output
    weights = result.stdout.strip()
    assert Path(weights) == Path("run/model.safetensors")
    assert segment("in/a.png", "-o", "trained", model=weights).exit_code == 0
    gone = CliRunner().invoke(app, [*arguments, "--start-from", "nonsense"])
    assert gone.exit_code == 4
    assert "nonsense: no such model" in gone.stderr


def test_weights_see_pictures_at_the_size_of_those_they_learned_from(data):
    pytest.importorskip("albumentations")
    arguments = ["train", "segmentation", "--data", "data", "--preset", "test", "--steps", "1", "--start-from", "none"]
    for out, work_px in (("small", 640), ("large", 700)):
        if out == "large":  # most of them are
            for number in range(10):
                for part in ("images", "labels"):
                    with Image.open(f"data/{part}/{number}.png") as picture:
                        picture.resize((700, 20), Image.Resampling.NEAREST).save(f"data/{part}/{number}.png")
        result = CliRunner().invoke(app, [*arguments, "--out", out, "--workers", "0"])
        assert result.exit_code == 0, result.output
        descriptor = moevision.load(f"{out}/model.safetensors", device="cpu")
        assert SegmentationTask(descriptor, device=torch.device("cpu")).size_px == work_px


def test_training_without_any_label_is_refused(data):
    pytest.importorskip("albumentations")
    for path in Path("data/labels").iterdir():
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(path)
    arguments = ["train", "segmentation", "--data", "data", "--out", "run", "--preset", "test", "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, "--start-from", "none", "--workers", "0"])
    assert result.exit_code == 2
    assert "data/labels: no pixel has a label" in result.stderr
    assert not Path("run").exists()
