"""Clips of video to learn from: folders, labels, masks, and crops of places that move."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.datasets.video import (
    ClipFolder,
    MovingCrops,
    grey_of,
    read_clip,
    read_labels,
    read_masks,
    resized,
)
from moevision.errors import InputError, UsageError
from moevision.imaging.video import VideoWriter


def moving_clip(count=12, height=48, width=64, seed=0):
    """A small bright square moves over a still texture."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(60, 140, (1, height, width), np.uint8), count, 0)
    for number in range(count):
        left = 3 * number % (width - 8)
        frames[number, 4:12, left : left + 8] = 240
    return frames


def numbered(count, height=32, width=40):
    """Frames that are told by their grey level."""
    return np.arange(count, dtype=np.uint8)[:, None, None].repeat(height, 1).repeat(width, 2)


def levels(batch):
    """Back to grey levels."""
    return np.round((batch + 1) * 127.5).astype(int)


# Files


def test_a_folder_gives_its_videos_by_name(tmp_path):
    for name in ("b.mp4", "a.AVI", "notes.txt", "c.mkv", "d.png"):
        (tmp_path / name).touch()
    folder = ClipFolder(tmp_path)
    assert [path.name for path in folder.paths] == ["a.AVI", "b.mp4", "c.mkv"]
    assert len(folder) == len(ClipFolder(str(tmp_path))) == 3


def test_a_folder_that_is_missing_or_holds_no_video_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    for path in (tmp_path / "missing", tmp_path / "a.txt"):
        with pytest.raises(UsageError, match="no such folder") as caught:
            ClipFolder(path)
        assert str(caught.value).startswith(str(path))
    with pytest.raises(UsageError, match=r"no video found.*\.mp4") as caught:
        ClipFolder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_labels_and_masks_are_read(tmp_path):
    rng = np.random.default_rng(0)
    labels = {"01": np.array([0, 1, 1], np.uint8), "02": np.zeros(5, np.uint8)}
    masks = {"01": rng.random((3, 4, 13)) < 0.5, "02": np.zeros((5, 4, 13), bool)}
    np.savez(tmp_path / "labels.npz", **labels)
    assert read_masks(tmp_path, 13) == {}
    packed = {name: np.packbits(mask, axis=-1) for name, mask in masks.items()}
    np.savez_compressed(tmp_path / "pixel_masks_packbits.npz", **packed)
    found = read_labels(tmp_path), read_masks(tmp_path, 13)
    for read, written in zip(found, (labels, masks), strict=True):
        assert read.keys() == written.keys()
        assert all(np.array_equal(read[name], written[name]) for name in written)
    assert found[1]["01"].dtype == bool


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "foreign", "truncated", "one array", "damaged inside", "folder"]
)
def test_labels_that_cannot_be_read_are_refused_with_their_path(tmp_path, damage):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).integers(0, 2, 900, np.uint8))
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3, np.uint8))
    elif damage != "missing":
        middle = data[:100] + bytes(100) + data[200:]
        path.write_bytes(
            {"empty": b"", "foreign": b"no arrays", "truncated": data[:-40], "damaged inside": middle}[damage]
        )
    with pytest.raises(UsageError, match="one array per test clip") as caught:
        read_labels(tmp_path)
    assert str(caught.value).startswith(f"{path}: cannot be read")
    assert "\n" not in str(caught.value)


def test_a_clip_is_read_grey_and_at_the_wanted_size(tmp_path):
    pytest.importorskip("av")
    with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
        for value in (20, 120, 220):
            writer.write(np.full((48, 64, 3), value, np.uint8))
    clip = read_clip(tmp_path / "a.mp4", (24, 32))
    assert clip.shape == (3, 24, 32)
    assert clip.dtype == np.uint8
    np.testing.assert_allclose(clip.mean((1, 2)), [20, 120, 220], atol=4)
    with pytest.raises(InputError):
        read_clip(tmp_path / "missing.mp4", (24, 32))


def test_grey_is_luma():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert grey_of(primaries).tolist() == [[76, 150, 29, 255]]


def test_a_frame_is_averaged_where_it_shrinks_and_kept_where_it_has_the_size():
    stripes = np.tile(np.array([[0, 200]], np.uint8), (8, 8))
    assert resized(stripes, (8, 16)) is stripes
    np.testing.assert_array_equal(resized(stripes, (4, 8)), np.full((4, 8), 100))
    assert resized(stripes, (12, 24)).shape == (12, 24)


# Crops


def test_a_batch_is_a_function_of_its_generator():
    crops = MovingCrops([moving_clip(seed=0), moving_clip(20, seed=1)], 5)
    first, again, other = (crops.batch(np.random.default_rng(seed), 6, 24) for seed in ((3, 7), (3, 7), (3, 8)))
    assert first.shape == (6, 5, 24, 24)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    alike = MovingCrops([moving_clip(seed=0), moving_clip(20, seed=1)], 5)
    assert np.array_equal(alike.batch(np.random.default_rng((3, 7)), 6, 24), first)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 48), st.integers(2, 6), st.integers(0, 99))
def test_crops_of_any_size_hold_the_levels_of_their_clip(height, width, crop_px, frames, seed):
    clip = np.random.default_rng(seed).integers(0, 256, (frames + 2, height, width), np.uint8)
    batch = MovingCrops([clip], frames).batch(np.random.default_rng(seed), 3, crop_px)
    assert batch.shape == (3, frames, crop_px, crop_px)
    assert -1 <= batch.min() <= batch.max() <= 1
    assert set(levels(batch).ravel()) <= set(clip.ravel().tolist())


def test_frames_follow_one_another_and_every_start_of_every_clip_comes():
    long, short = numbered(9), 100 + numbered(5)
    batch = levels(MovingCrops([long, short], 5).batch(np.random.default_rng(0), 300, 16))
    assert (batch == batch[:, :, :1, :1]).all()
    assert (np.diff(batch[:, :, 0, 0], axis=1) == 1).all()
    starts, counts = np.unique(batch[:, 0, 0, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 4, 100]
    assert counts.min() > 300 / 6 / 2, "clips are drawn by their length"


def test_crops_lie_where_something_moves_most_of_the_time():
    clip = moving_clip(12, 96, 128)
    moved = clip[4:] != clip[3:-1]
    assert moved.any((1, 2)).all()
    batch = levels(MovingCrops([clip], 5).batch(np.random.default_rng(0), 200, 24))
    share = (batch[:, -1] != batch[:, -2]).any((1, 2)).mean()
    assert 0.75 < share < 1
    static = np.repeat(clip[:1], 12, 0)
    assert MovingCrops([static], 5).batch(np.random.default_rng(0), 2, 24).shape == (2, 5, 24, 24)


def test_crops_of_a_still_clip_come_from_everywhere():
    place = np.arange(32 * 8).reshape(32, 8).repeat(5, 1)[None].astype(np.uint8).repeat(6, 0)
    corners = levels(MovingCrops([place], 5).batch(np.random.default_rng(0), 200, 16))[:, 0].reshape(200, -1)
    assert corners.min() == place.min()
    assert corners.max() == place.max()


def test_half_of_the_crops_are_mirrored():
    ramp = np.arange(64, dtype=np.uint8)[None, None].repeat(6, 0).repeat(48, 1)
    batch = levels(MovingCrops([ramp], 5).batch(np.random.default_rng(0), 200, 16))
    steps = np.diff(batch, axis=3)
    assert set(np.unique(steps)) == {-1, 1}
    assert 0.4 < (steps[:, 0, 0, 0] == -1).mean() < 0.6


def test_clips_smaller_than_the_crop_are_mirrored_at_the_edge():
    clip = moving_clip(5, 10, 13)
    padded = np.pad(clip, [(0, 0), (0, 22), (0, 19)], mode="symmetric")
    for crop in levels(MovingCrops([clip], 5).batch(np.random.default_rng(0), 6, 32)):
        assert np.array_equal(crop, padded) or np.array_equal(crop[:, :, ::-1], padded)


def test_clips_that_are_too_short_are_refused():
    MovingCrops([moving_clip(5)], 5)
    with pytest.raises(InputError, match=r"a clip of 3 frames: at least 5"):
        MovingCrops([moving_clip(8), moving_clip(4), moving_clip(3)], 5)
