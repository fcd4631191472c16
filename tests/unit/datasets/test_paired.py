"""Pairs by stem: what matches, what is left over, what is refused in one line."""

import numpy as np
import pytest

from moevision.datasets.paired import PairedFolder, list_images, read_image
from moevision.errors import InputError, UsageError

from .conftest import make_photo, save


@pytest.fixture
def root(tmp_path):
    for name in ("input/a.png", "gt/a.jpg", "input/room_2.png", "input/room_10.png", "gt/room.webp"):
        save(tmp_path / name, make_photo(1, 20, 30))
    return tmp_path


def test_stems_match_across_suffixes_and_levels_share_a_truth(root):
    pairs = PairedFolder(root)
    assert len(pairs) == 3
    assert {(a.stem, b.stem) for a, b in pairs.pairs} == {("a", "a"), ("room_2", "room"), ("room_10", "room")}
    assert pairs.orphans == []


def test_item_is_rgb_uint8_with_its_name(root):
    degraded, truth, name = PairedFolder(root)[0]
    assert degraded.dtype == truth.dtype == np.uint8
    assert degraded.shape == truth.shape == (20, 30, 3)
    assert name == "a"
    np.testing.assert_allclose(degraded / 255, make_photo(1, 20, 30), atol=1 / 255)  # RGB, not BGR


def test_iteration_gives_every_pair_once(root):
    assert [name for _, _, name in PairedFolder(root)] == ["a", "room_10", "room_2"]


def test_exact_stem_goes_before_the_level_rule(root):
    save(root / "gt" / "room_2.png", make_photo(2, 20, 30))
    assert {a.stem: b.stem for a, b in PairedFolder(root).pairs}["room_2"] == "room_2"


def test_files_without_partner_are_listed(root):
    save(root / "input" / "lonely.png", make_photo(2, 20, 30))
    save(root / "gt" / "unused.png", make_photo(2, 20, 30))
    (root / "input" / "notes.txt").write_text("no picture")
    assert {path.name for path in PairedFolder(root).orphans} == {"lonely.png", "unused.png"}


@pytest.mark.parametrize("missing", ["input", "gt"])
def test_missing_folder_is_one_line_with_the_path(tmp_path, missing):
    (tmp_path / ("gt" if missing == "input" else "input")).mkdir()
    with pytest.raises(UsageError, match=missing) as caught:
        PairedFolder(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_pair_at_all_is_refused(tmp_path):
    save(tmp_path / "input" / "a.png", make_photo(1, 8, 8))
    save(tmp_path / "gt" / "b.png", make_photo(1, 8, 8))
    with pytest.raises(UsageError, match="no pair"):
        PairedFolder(tmp_path)


def test_unequal_sizes_are_refused_with_both(root):
    save(root / "gt" / "a.jpg", make_photo(1, 20, 31))
    with pytest.raises(InputError, match="30x20 against 31x20"):
        PairedFolder(root)[0]


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_damaged_picture_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


def test_missing_picture_is_refused_with_its_path(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_grey_picture_comes_as_three_channels(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "g.png"), np.full((4, 5), 9, np.uint8))
    assert read_image(tmp_path / "g.png").shape == (4, 5, 3)


def test_listing_is_sorted_and_only_pictures(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(UsageError, match="no such folder"):
        list_images(tmp_path / "none")
