"""What the page says and writes, without a server."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from moevision.app.models import Models
from moevision.app.page import Page, chosen, told
from moevision.app.pictures import write_result, write_view
from moevision.app.settings import Settings
from moevision.errors import InputError, UsageError, WeightsError
from moevision.imaging.picture import Picture


def weights(path, task):
    """A file with the header of our weights and nothing else."""
    header = json.dumps({"__metadata__": {"format": "1", "task": task, "config": "{}", "training": "{}"}}).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return str(path)


def test_what_is_named_comes_first_under_names_that_tell_no_path(tmp_path):
    named = [weights(tmp_path / folder / "own.safetensors", "fusion") for folder in "ab"]
    offered = Models(Settings(fusion_models=(*named, named[0]))).offered
    assert list(offered["fusion"]) == ["own", "own (2)", "fusion-small"]
    assert list(offered["fusion"].values()) == [*named, "fusion-small"]
    assert list(offered["segmentation"]) == ["segmentation-camvid", "segmentation-camvid-weather"]


def test_weights_that_cannot_be_used_are_refused_before_the_page_opens(tmp_path):
    with pytest.raises(WeightsError, match="nothing: no such model"):
        Models(Settings(segmentation_models=("nothing",)))
    with pytest.raises(UsageError, match="a fusion model; name a restoration model"):
        Models(Settings(restoration_models=(weights(tmp_path / "x.safetensors", "fusion"),)))


def test_a_visitor_cannot_name_a_file_and_few_models_are_kept(tmp_path, monkeypatch):
    named = tuple(weights(tmp_path / f"{number}.safetensors", "restoration") for number in range(6))
    models, loaded = Models(Settings(restoration_models=named)), []
    monkeypatch.setattr("moevision.api.load", lambda model, device: loaded.append(model) or SimpleNamespace(name=model))
    monkeypatch.setattr("moevision.api.restoration_task", lambda model, **rest: lambda pictures: model.name)
    asked = [models.restore(None, 1, None, label=label) for label in (None, "0", "1", "2", "3", "4", "0", "4")]
    assert asked == [named[0], named[0], *named[1:5], named[0], named[4]]
    assert loaded == [*named[:5], named[0]]
    for label in (named[0], "../0", "fusion-small", ""):
        with pytest.raises(InputError, match="no such model here"):
            models.restore(None, 1, None, label=label)


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
