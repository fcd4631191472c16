"""What the page says and writes, without a server."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.app.models import Models
from moevision.app.page import Page, chosen, told
from moevision.app.pictures import write_result, write_view
from moevision.app.settings import Settings
from moevision.errors import InputError
from moevision.imaging.picture import Picture


def test_missing_weights_are_told_in_one_line():
    said = Models(Settings(segmentation_model="nothing")).missing_segmentation()
    assert said is not None
    assert said.startswith("nothing: no such model")
    assert "\n" not in said


def test_failures_lose_paths_and_markup():
    pytest.importorskip("gradio", reason="the extra `app` is not installed")

    def fail():
        raise InputError("/tmp/a b/c/<b>x</b>.png: cannot\nbe read; /home/me/site.json too")

    with pytest.raises(Exception, match="cannot be read") as caught:
        told(fail)()
    assert "/tmp" not in str(caught.value)
    assert "/home" not in str(caught.value)
    assert "<b>" not in str(caught.value)

    def break_down():
        raise ZeroDivisionError("secret")

    with pytest.raises(Exception, match="something is wrong in the program") as caught:
        told(break_down)()
    assert "secret" not in str(caught.value)


def test_results_of_a_failure_are_taken_away(tmp_path):
    page = Page(Settings(), tmp_path)

    def fail():
        with page.results() as folder:
            (folder / "half.png").write_bytes(b"")
            raise InputError("no")

    with pytest.raises(InputError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no picture yet"):
        chosen(None, "picture")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_small_and_opaque(tmp_path, dtype, channels):
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    pixels = np.full((30, 4100, channels), full, dtype)
    alpha = np.zeros((30, 4100), dtype)
    alpha[:, 2050:] = full
    path = write_view(Picture(pixels, alpha, format="TIFF"), tmp_path / "view.jpg")
    seen = np.asarray(Image.open(path))
    assert seen.shape[:2] == (15, 2048)
    assert abs(int(seen[8, 100].max()) - 128) <= 2
    assert seen[8, 2000].min() >= 253


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("a.JPG", "JPEG", "a-x.JPG"),
        ("a.png", "JPEG", "a-x.jpg"),
        ("a", "PNG", "a-x.png"),
        ("s.v2", "TIFF", "s.v2-x.tif"),
    ],
)
def test_a_result_is_called_after_its_source_and_its_content(tmp_path, name, form, expected):
    pixels = np.zeros((4, 5, 3), np.uint8)
    assert Path(write_result(Picture(pixels, format=form), tmp_path, name, "x")).name == expected
