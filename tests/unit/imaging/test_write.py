"""Writing: complete or not at all, never over something that is there, one clear line on failure."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moevision.errors import InputError, UsageError
from moevision.imaging import atomic
from moevision.imaging.metadata import EXIF_PREFIX, Metadata
from moevision.imaging.read import read_picture
from moevision.imaging.write import atomic_write_bytes, atomic_write_text, format_of, write_picture


def fail_with(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("on_exists", ["fail", "overwrite"])
def test_only_the_finished_file_is_in_the_folder(on_exists, make_picture, tmp_path):
    write_picture(make_picture(), tmp_path / "out.png", on_exists=on_exists)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_an_existing_file_is_left_alone_by_default(make_picture, tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        write_picture(make_picture(), path)
    assert path.read_bytes() == b"precious"
    write_picture(make_picture(), path, on_exists="overwrite")
    assert read_picture(path).format == "PNG"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(links, tmp_path, monkeypatch):
    path = tmp_path / "out.bin"
    real_fsync = os.fsync

    def appear(descriptor):
        path.write_bytes(b"other program")
        real_fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", appear)
    if not links:
        monkeypatch.setattr(atomic.os, "link", fail_with(errno.EPERM))
    with pytest.raises(InputError, match="exists already"):
        atomic_write_bytes(path, b"ours", on_exists="fail")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.bin"]
    assert path.read_bytes() == b"other program"


def test_without_hard_links_a_new_file_is_still_written(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "link", fail_with(errno.EPERM))
    atomic_write_bytes(tmp_path / "out.bin", b"ours", on_exists="fail")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.bin", b"ours")]


@pytest.mark.parametrize(
    ("call", "number", "remedy"),
    [
        ("replace", errno.EIO, "check the output path"),
        ("fsync", errno.ENOSPC, "free some space"),
        ("open", errno.EROFS, "choose a folder"),
        ("open", errno.EACCES, "permissions"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(
    call, number, remedy, make_picture, tmp_path, monkeypatch
):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail_with(number))
        with pytest.raises(InputError, match=remedy) as caught:
            write_picture(make_picture(), path, on_exists="overwrite")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("out.png", b"old")]


def test_a_failure_between_claim_and_rename_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "link", fail_with(errno.EPERM))
    monkeypatch.setattr(atomic.os, "replace", fail_with(errno.EIO))
    with pytest.raises(InputError):
        atomic_write_bytes(tmp_path / "out.bin", b"ours", on_exists="fail")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "out.bin", b"ours")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_device_is_reported(tmp_path, monkeypatch):
    real_open = os.open
    monkeypatch.setattr(atomic.os, "open", lambda *_args: real_open("/dev/full", os.O_WRONLY))
    with pytest.raises(InputError, match="free some space"):
        atomic_write_bytes(tmp_path / "out.bin", bytes(100_000))
    assert not list(tmp_path.iterdir())


def test_a_temporary_file_of_somebody_else_is_not_touched(tmp_path):
    foreign = tmp_path / f".out.bin.{os.getpid()}.part"
    foreign.write_bytes(b"theirs")
    atomic_write_bytes(tmp_path / "out.bin", b"ours")
    assert foreign.read_bytes() == b"theirs"
    assert (tmp_path / "out.bin").read_bytes() == b"ours"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["ü" * 125 + ".png", "a b 'c'.png", "-o.png", "\u202eevil.png", ".hidden.png"])
def test_unusual_names_are_written(name, make_picture, tmp_path):
    write_picture(make_picture(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out", "out.gif", "out.jp2", "x" * 300 + ".png", "no/such/folder.png", "nul\0.png"])
def test_impossible_outputs_are_input_errors(name, make_picture, tmp_path):
    with pytest.raises(InputError, match=";"):
        write_picture(make_picture(), tmp_path / name, on_exists="overwrite")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_an_input_error(make_picture, tmp_path):
    (tmp_path / "out.png").mkdir()
    for on_exists in ("fail", "overwrite"):
        with pytest.raises(InputError):
            write_picture(make_picture(), tmp_path / "out.png", on_exists=on_exists)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_wrong_options_are_usage_errors(make_picture, tmp_path):
    with pytest.raises(UsageError, match="quality"):
        write_picture(make_picture(), tmp_path / "out.jpg", quality=0)
    with pytest.raises(UsageError, match="on_exists"):
        write_picture(make_picture(), tmp_path / "out.jpg", on_exists="maybe")


def test_exif_too_long_for_jpeg_is_an_input_error(make_picture, tmp_path):
    picture = replace(make_picture(), metadata=Metadata(EXIF_PREFIX + b"II*\x00" + bytes(70_000)))
    with pytest.raises(InputError, match="choose png or tiff"):
        write_picture(picture, tmp_path / "out.jpg")


def test_a_picture_too_wide_for_webp_is_an_input_error(noise, make_picture, tmp_path):
    wide = replace(make_picture(), pixels_HWC=np.zeros((1, 20_000, 3), np.uint8))
    with pytest.raises(InputError, match="cannot be encoded as WEBP"):
        write_picture(wide, tmp_path / "out.webp")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_tiff_cannot_store_does_not_cost_the_picture(make_picture, tmp_path):
    picture = replace(make_picture(), metadata=Metadata(EXIF_PREFIX + b"II*\x00\xff\xff\xff\x7f"))
    write_picture(picture, tmp_path / "out.tif")
    assert np.array_equal(read_picture(tmp_path / "out.tif").pixels_HWC, picture.pixels_HWC)


def test_writing_does_not_change_the_picture(make_picture, tmp_path):
    for dtype, name in ((np.uint8, "a.jpg"), (np.uint16, "b.png"), (np.uint16, "c.tif"), (np.float32, "d.tif")):
        picture = make_picture(dtype=dtype)
        before = picture.pixels_HWC.copy()
        write_picture(picture, tmp_path / name)
        assert np.array_equal(picture.pixels_HWC, before)


def test_text_is_utf8_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "report.json"
    for text in ("first", "zweite Fassung: äöü\n"):
        atomic_write_text(path, text)
        assert path.read_bytes() == text.encode()


def test_suffix_names_the_format_whatever_its_case():
    assert format_of(Path("A.JPEG")) == "JPEG"
    assert format_of(Path("a.tiff")) == "TIFF"
