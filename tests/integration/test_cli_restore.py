import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.engine.ledger import LEDGER_NAME
from moevision.engine.names import shown
from moevision.engine.thumbnails import Thumbnails
from moevision.errors import MemoryExhaustedError, WeightsError


def test_a_folder_is_restored_with_its_sub_tree(cli, folder, tree):
    before = tree("in")
    result = cli("restore", "in", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert list(tree("out")) == ["a.png", "b.jpg", "sub/c.png"]
    assert result.stdout.splitlines() == ["out/a.png", "out/b.jpg", "out/sub/c.png"]
    assert "3 done" in result.stderr
    assert np.array_equal(255 - np.asarray(Image.open("in/a.png")), np.asarray(Image.open("out/a.png")))
    assert tree("in") == before, "inputs are never changed"


def test_one_file_to_a_named_file_leaves_nothing_else(cli, folder):
    result = cli("restore", "in/b.jpg", "-o", "new/x.png")
    assert result.exit_code == 0, result.stderr
    assert os.listdir("new") == ["x.png"]
    assert result.stdout == "new/x.png\n"


def test_one_by_one_equals_all_together(cli, folder, tree):
    cli("restore", "in", "-o", "all", "--jobs", 3)
    for name in ("a.png", "b.jpg"):
        cli("restore", f"in/{name}", "-o", "single")
    assert {name: data for name, data in tree("all").items() if "/" not in name} == tree("single")


def test_options_reach_the_task(cli, folder, fake_api):
    options = ("--tile", "0", "--strength", "0.5", "--device", "cpu", "--precision", "fp32", "--weather", "haze, rain")
    cli("restore", "in/a.png", "-o", "out", *options)
    cli("restore", "in/a.png", "-o", "out2")
    assert fake_api.requests == [
        {
            "model": "restoration-small",
            "device": "cpu",
            "precision": "fp32",
            "tile_px": 0,
            "strength": 0.5,
            "weather": ("rain", "haze"),
            "runtime": "torch",
            "experts_map": False,
        },
        {
            "model": "restoration-small",
            "device": "auto",
            "precision": "auto",
            "tile_px": None,
            "strength": 1.0,
            "weather": None,
            "runtime": "torch",
            "experts_map": False,
        },
    ]


def test_a_list_on_stdin(cli, folder):
    result = cli("restore", "-", "-o", "out", stdin=b"in/a.png\r\n\nin/sub\n")
    assert result.stdout.splitlines() == ["out/a.png", "out/c.png"]
    assert cli("restore", "-", "-o", "out2", stdin=b"\n").exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on Unix only")
def test_a_name_that_is_not_utf8(cli, folder, image):
    name = b"caf\xe9 \x1b[31m\xf0\x9f\x98\x80.png"
    os.rename("in/a.png", b"in/" + name)
    result = cli("restore", "-", "-o", "out", "--report", "r.csv", stdin=b"in/" + name + b"\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == b"out/" + name + b"\n"
    assert name in os.listdir(b"out")
    assert cli("restore", "in", "-o", "out2").exit_code == 0
    Path(os.fsdecode(b"in/" + name)).write_bytes(b"bad")
    result = cli("restore", "in", "-o", "out3")
    assert result.exit_code == 3
    assert "\x1b[31m" not in result.stderr


def test_names_with_markup_are_printed_as_they_are(cli, folder):
    Path("in/[red]x.png").write_bytes(b"bad")
    result = cli("restore", "in/[red]x.png", "-o", "out")
    assert "failed: in/[red]x.png:" in result.stderr


def test_bad_and_missing_files_give_3_and_the_rest_is_done(cli, folder, tree):
    Path("in/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    result = cli("restore", "in", "missing.png", "-o", "out")
    assert result.exit_code == 3
    assert list(tree("out")) == ["a.png", "b.jpg", "sub/c.png"]
    assert len(re.findall(r"^failed: in/bad\.png: ", result.stderr, re.MULTILINE)) == 1
    assert "failed: missing.png: no such file" in result.stderr
    assert "3 done, 2 failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_nothing_to_do_gives_2_and_the_remedy(cli, folder):
    Path("empty").mkdir()
    result = cli("restore", "empty", "-o", "out")
    assert result.exit_code == 2
    assert "moevision: error: nothing to do: no image found; name" in result.stderr
    assert not Path("out").exists()


def test_colliding_outputs_give_2_before_any_work(cli, folder, image, fake_api):
    image("other/a.png")
    result = cli("restore", "in/a.png", "other/a.png", "-o", "out")
    assert result.exit_code == 2
    assert "in/a.png and other/a.png would both become out/a.png" in result.stderr
    assert not Path("out").exists()
    assert not fake_api.requests


@pytest.mark.parametrize(
    ("mode", "code", "names"),
    [
        ("fail", 2, ["a.png"]),
        ("skip", 0, ["a.png", "b.jpg"]),
        ("overwrite", 0, ["a.png", "b.jpg"]),
        ("rename", 0, ["a-1.png", "a.png", "b.jpg"]),
    ],
)
def test_on_exists(cli, folder, tree, mode, code, names):
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    result = cli("restore", "in/a.png", "in/b.jpg", "-o", "out", "--on-exists", mode)
    assert result.exit_code == code, result.stderr
    assert sorted(tree("out")) == names
    assert (Path("out/a.png").read_bytes() == b"mine") == (mode != "overwrite")
    assert ("--on-exists" in result.stderr) == (mode == "fail")


def test_a_dry_run_touches_nothing(cli, folder, tree, fake_api):
    before = tree(".")
    result = cli("restore", "in", "missing.png", "-o", "out", "--dry-run", "--report", "r.json")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "in/a.png -> out/a.png",
        "in/b.jpg -> out/b.jpg",
        "in/sub/c.png -> out/sub/c.png",
    ]
    assert "dry run: 3 to do, 0 skipped, 1 failed; nothing was touched" in result.stderr
    assert tree(".") == before
    assert not Path("out").exists()
    assert not fake_api.requests


def test_resume_does_only_what_is_missing(cli, folder, fake_api):
    cli("restore", "in/a.png", "-o", "out")
    result = cli("restore", "in", "-o", "out", "--resume")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["out/b.jpg", "out/sub/c.png"]
    assert "2 done, 1 skipped" in result.stderr
    result = cli("restore", "in", "-o", "out", "--resume")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert len(fake_api.requests) == 2, "with nothing to do no model is loaded"
    assert len(cli("restore", "in", "-o", "out", "--resume", "--quality", 80).stdout.splitlines()) == 3
    fake_api.models[0]["sha256"] = "1" * 64
    assert len(cli("restore", "in", "-o", "out", "--resume", "--quality", 80).stdout.splitlines()) == 3


def test_a_torn_ledger_does_not_hinder(cli, folder):
    cli("restore", "in", "-o", "out")
    path = Path("out", LEDGER_NAME)
    os.truncate(path, path.stat().st_size - 30)
    result = cli("restore", "in", "-o", "out", "--resume")
    assert result.stdout.splitlines() == ["out/sub/c.png"]


def test_running_twice_into_a_folder_inside_the_input_finds_the_same_inputs(cli, folder, tree):
    cli("restore", "in", "-o", "in/out")
    result = cli("restore", "in", "-o", "in/out", "--on-exists", "overwrite")
    assert result.exit_code == 0, result.stderr
    assert list(tree("in/out")) == ["a.png", "b.jpg", "sub/c.png"]


def test_an_unexpected_error_is_a_bug_at_the_end(cli, folder, fake_api):
    def fail(picture):
        if picture.format == "JPEG":
            raise KeyError("oops")

    fake_api.before = fail
    result = cli("restore", "in", "-o", "out")
    assert result.exit_code == 1
    assert "bug: in/b.jpg: KeyError: 'oops'" in result.stderr
    assert "Traceback" not in result.stderr
    assert "--debug" in result.stderr
    assert len(result.stdout.splitlines()) == 2
    result = cli("restore", "in", "-o", "out2", "--debug")
    assert "Traceback" in result.stderr


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code"), [(WeightsError("weights.safetensors: damaged"), 4), (MemoryExhaustedError("out of memory"), 5)]
)
def test_exit_codes_of_weights_and_memory(cli, folder, fake_api, tree, error, code):
    fake_api.before = lambda _: raise_(error)
    result = cli("restore", "in/a.png", "-o", "out")
    assert result.exit_code == code
    assert str(error) in result.stderr
    assert not tree("out")


def test_weights_that_do_not_load_leave_no_output_folder(cli, folder, monkeypatch):
    import sys

    sys.modules["moevision.api"].restoration_task = lambda **_: raise_(WeightsError("no weights called x"))
    result = cli("restore", "in", "-o", "out")
    assert result.exit_code == 4
    assert result.stderr == "moevision: error: no weights called x\n"
    assert not Path("out").exists()


@pytest.mark.parametrize("suffix", ["json", "csv", "html"])
def test_reports(cli, folder, suffix):
    Path("in/bad.png").write_bytes(b"bad")
    result = cli("restore", "in", "-o", "out", "--report", f"reports/r.{suffix}")
    assert result.exit_code == 3
    text = Path(f"reports/r.{suffix}").read_text("utf-8")
    assert "in/bad.png" in text
    assert "haze" in text
    if suffix == "json":
        values = json.loads(text)
        assert values["exit_code"] == 3
        assert values["counts"] == {"done": 3, "failed": 1}
        assert values["settings"]["model"] == "restoration-small"
        assert re.match(r"\d{4}-", values["started"])
    if suffix == "csv":
        assert {row["status"] for row in csv.DictReader(text.splitlines())} == {"done", "failed"}


def test_the_page_shows_before_and_after_and_says_why_where_it_does_not(cli, folder, page_of):
    Path("in/bad.png").write_bytes(b"bad")
    assert cli("restore", "in", "-o", "out", "--report", "r.html").exit_code == 3
    data, images = page_of("r.html")
    assert data["pictures"] == ["before", "after"]
    for row, pictures in zip(data["rows"], images, strict=True):
        if row[2] == "failed":
            assert (pictures, row[5]) == ([], "no pictures: it failed")
            continue
        before, after = (np.asarray(picture, float).mean() for picture in pictures)
        assert after == pytest.approx(255 - before, abs=2)
    cli("restore", "in", "-o", "out", "--resume", "--report", "again.html")
    data, images = page_of("again.html")
    assert {row[5] for row in data["rows"] if row[2] == "skipped"} == {"no pictures: skipped"}


@pytest.mark.parametrize("report", [[], ["--report", "r.json"], ["--report", "r.csv"]])
def test_without_a_page_no_thumbnail_is_made(cli, folder, monkeypatch, report):
    monkeypatch.setattr(Thumbnails, "__init__", lambda *_: pytest.fail("made"))
    assert cli("restore", "in", "-o", "out", *report).exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="such names are for Unix only")
def test_a_file_name_cannot_get_into_the_page_as_markup(cli, folder, page_of):
    name = "<script>alert(1)<\\script>\n\u202e\"'&.png"
    os.rename("in/a.png", os.path.join("in", name))
    assert cli("restore", "in", "-o", "out", "--report", "r.html").exit_code == 0
    assert "<script>alert" not in Path("r.html").read_text("utf-8")
    assert shown(Path("in", name)) in [row[0] for row in page_of("r.html")[0]["rows"]]


def test_true_pictures_give_columns_and_means(cli, folder, image):
    image("true/a.bmp", 0)
    image("true/sub/c.png", 1)
    image("true/c.png", 2)
    result = cli("restore", "in", "-o", "out", "--format", "png", "--truth", "true", "--report", "r.json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(Path("r.json").read_text())
    a, b, c = (item["facts"] for item in values["items"])
    assert a["input_psnr"] == 100, "the true picture is the input"
    assert a["truth"] == c["truth"] == "compared"
    assert b["truth"] == "no picture of this name"
    assert values["means"]["psnr"] == pytest.approx((a["psnr"] + c["psnr"]) / 2, abs=1e-3)
    assert "means: psnr " in result.stderr
    assert values["counts"] == {"done": 3}


def test_true_pictures_follow_the_input_where_the_output_is_called_otherwise(cli, folder, image):
    image("true/a.png", 0)
    cli("restore", "in/a.png", "-o", "new/x.png", "--truth", "true", "--report", "r.json")
    assert json.loads(Path("r.json").read_text())["items"][0]["facts"]["input_psnr"] == 100
    Path("out").mkdir()
    Path("out/a.png").touch()
    cli("restore", "in/a.png", "-o", "out", "--on-exists", "rename", "--truth", "true", "--report", "r.json")
    assert json.loads(Path("r.json").read_text())["items"][0]["facts"]["input_psnr"] == 100


def test_a_folder_of_true_pictures_that_is_not_there_gives_2_before_any_work(cli, folder):
    result = cli("restore", "in", "-o", "out", "--truth", "nowhere")
    assert result.exit_code == 2
    assert "--truth nowhere: no such folder" in result.stderr
    assert not Path("out").exists()


def test_true_pictures_do_not_change_what_resume_leaves_out(cli, folder, image):
    image("true/a.png", 0)
    cli("restore", "in", "-o", "out")
    assert "3 skipped" in cli("restore", "in", "-o", "out", "--resume", "--truth", "true").stderr


def test_a_report_of_unknown_format_is_refused_before_any_work(cli, folder):
    assert cli("restore", "in", "-o", "out", "--report", "r.txt").exit_code == 2
    assert not Path("out").exists()


def test_quiet_says_nothing_but_errors(cli, folder):
    result = cli("restore", "in", "-o", "out", "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    result = cli("restore", "missing.png", "-o", "out", "--quiet")
    assert result.exit_code == 3
    assert "missing.png" in result.stderr


def test_format_and_metadata_options(cli, folder):
    result = cli("restore", "in", "-o", "out", "--format", "webp", "--quality", "100")
    assert result.stdout.splitlines() == ["out/a.webp", "out/b.webp", "out/sub/c.webp"]
    assert Image.open("out/a.webp").format == "WEBP"
    image = Image.open("in/b.jpg")
    exif = Image.Exif()
    exif[0x010F] = "maker"
    image.save("in/b.jpg", exif=exif)
    cli("restore", "in/b.jpg", "-o", "kept.jpg")
    cli("restore", "in/b.jpg", "-o", "stripped.jpg", "--strip-metadata")
    assert Image.open("kept.jpg").getexif().get(0x010F) == "maker"
    assert 0x010F not in Image.open("stripped.jpg").getexif()


@pytest.mark.parametrize(
    "options",
    [
        ["--tile", "7"],
        ["--tile", "big"],
        ["--strength", "2"],
        ["--weather", "hail"],
        ["--weather", "rain,"],
        ["--on-exists", "ask"],
        ["--format", "gif"],
        ["--jobs", "0"],
        ["--quality", "0"],
        ["--nonsense"],
    ],
)
def test_unknown_values_are_usage_errors(cli, folder, options):
    result = cli("restore", "in", "-o", "out", *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert not Path("out").exists()


def test_an_output_folder_that_cannot_be_made_is_one_line(cli, folder, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = cli("restore", "in", "-o", "out")
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr


def test_whatever_changes_the_result_is_part_of_what_resume_compares(cli, folder):
    cli("restore", "in/a.png", "-o", "out")
    changes = "--strength 0.5", "--weather rain,haze", "--model own.safetensors", "--tile 128", "--strip-metadata"
    for options in (change.split() for change in changes):
        assert cli("restore", "in/a.png", "-o", "out", "--resume", *options).stdout == "out/a.png\n"
        assert cli("restore", "in/a.png", "-o", "out", "--resume", *options).stdout == ""
