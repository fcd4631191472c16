"""`moevision fuse` on the command line, with a task that needs no weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folders(tmp_path, monkeypatch, image):
    """ir/ and vis/ with a and sub/b in both, and an orphan each."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(
        ("ir/a.png", "ir/sub/b.png", "ir/only-ir.png", "vis/a.png", "vis/sub/b.png", "vis/x.png")
    ):
        image(name, seed)
    return tmp_path


def mean_of(infrared, visible):
    return np.asarray(Image.open(infrared)) // 2 + np.asarray(Image.open(visible)) // 2


def test_folders_are_fused_pair_by_pair_and_orphans_listed(cli, folders, tree):
    before = tree("ir") | tree("vis")
    result = cli("fuse", "ir", "vis", "-o", "out")
    assert result.exit_code == 3
    assert list(tree("out")) == ["a.png", "sub/b.png"]
    assert np.array_equal(np.asarray(Image.open("out/sub/b.png")), mean_of("ir/sub/b.png", "vis/sub/b.png"))
    assert "ir/only-ir.png: no only-ir in vis" in result.stderr
    assert "vis/x.png: no x in ir" in result.stderr
    assert tree("ir") | tree("vis") == before, "inputs are never changed"


def test_two_files_to_a_named_file_with_its_map(cli, folders):
    result = cli("fuse", "ir/a.png", "vis/a.png", "-o", "both.png", "--weights-map", "maps/w.png")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "both.png\n"
    assert Image.open("maps/w.png").mode == "L"
    assert np.array_equal(np.asarray(Image.open("both.png")), mean_of("ir/a.png", "vis/a.png"))


def test_maps_of_folders_keep_the_tree(cli, folders, tree):
    cli("fuse", "ir", "vis", "-o", "out", "--format", "jpg", "--weights-map", "maps")
    assert list(tree("out")) == ["a.jpg", "sub/b.jpg"]
    assert list(tree("maps")) == ["a.png", "sub/b.png"]


@pytest.mark.parametrize("place", ["w.png", "out", "vis/x.png"])
def test_a_map_that_has_no_place_is_refused_before_any_work(cli, folders, place):
    result = cli("fuse", "ir", "vis", "-o", "out", "--weights-map", place)
    assert result.exit_code == 2
    assert "--weights-map" in result.stderr
    assert not Path("out").exists()


def test_options_reach_the_task(cli, folders, fake_api):
    cli("fuse", "ir", "vis", "-o", "out", "--register", "ecc", "--thermal-range", "1,2", "--tile", "256")
    assert fake_api.requests == [
        {
            "model": "fusion-small",
            "device": "auto",
            "precision": "auto",
            "tile_px": 256,
            "register": "ecc",
            "thermal_range": "1,2",
        }
    ]


def test_an_unreadable_half_fails_alone_and_is_named(cli, folders):
    Path("ir/a.png").write_bytes(b"not a picture")
    result = cli("fuse", "ir", "vis", "-o", "out", "--report", "r.json")
    assert result.exit_code == 3
    assert "ir/a.png + vis/a.png: ir/a.png: " in result.stderr, "the reason says which of the two"
    assert not Path("out/a.png").exists()
    assert Path("out/sub/b.png").exists()
    statuses = [item["status"] for item in json.loads(Path("r.json").read_text())["items"]]
    assert sorted(statuses) == ["done", "failed", "refused", "refused"]


def test_resume_leaves_finished_pairs_out_and_redoes_one_whose_infrared_half_changed(cli, folders, image):
    assert cli("fuse", "ir", "vis", "-o", "out", "--resume").exit_code == 3
    again = cli("fuse", "ir", "vis", "-o", "out", "--resume")
    assert "2 skipped" in again.stderr
    image("ir/a.png", 77)
    changed = cli("fuse", "ir", "vis", "-o", "out", "--resume")
    assert changed.stdout.splitlines() == ["out/a.png"]


def test_a_dry_run_shows_the_pairs(cli, folders, tree):
    result = cli("fuse", "ir", "vis", "-o", "out", "--dry-run")
    assert "ir/a.png + vis/a.png -> out/a.png" in result.stdout
    assert not Path("out").exists()


def test_a_file_and_a_folder_are_no_pair(cli, folders):
    result = cli("fuse", "ir/a.png", "vis", "-o", "out")
    assert result.exit_code == 2
    assert "two files or two folders" in result.stderr


def test_the_page_shows_both_inputs_and_the_result(cli, folders, page_of):
    assert cli("fuse", "ir", "vis", "-o", "out", "--report", "r.html").exit_code == 3
    data, images = page_of("r.html")
    assert len(data["pictures"]) == 3
    assert [row[0] for row in data["rows"][:2]] == ["ir/a.png + vis/a.png", "ir/sub/b.png + vis/sub/b.png"]
    assert [len(pictures) for pictures in images] == [3, 3, 0, 0]
    assert all(row[5] == "no pictures: could not be begun" for row in data["rows"][2:])


@pytest.mark.parametrize("option", [["--report", "r.html"], ["--weights-map", "w"], ["--dry-run"], ["--resume"]])
def test_what_a_pair_of_videos_cannot_have_is_refused_and_not_left_out(cli, folders, option):
    result = cli("fuse", "ir.mp4", "vis.mp4", "-o", "both.mp4", "--video", *option)
    assert result.exit_code == 2
    assert f"--video and {option[0]} do not go together" in result.stderr
    assert not Path("both.mp4").exists()
