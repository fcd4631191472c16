"""Labelled pictures: every kind of label file gives the same classes, faults are told, crops keep labels in place."""

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moevision.datasets import augment
from moevision.datasets.segmentation import IGNORE, Labelled, LabelledCrops, LabelledFolder, read_classes, read_label
from moevision.errors import InputError, MissingExtraError, UsageError

CLASSES = "0 sky 10 20 30\n1 unlabelled 0 0 0\n2 road 128 64 128\n3 car 64 0 128\n"
IDS_HW = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
needs_albumentations = pytest.mark.skipif(find_spec("albumentations") is None, reason="needs albumentations")
INDICES_HW = [[0, IGNORE, 1], [2, IGNORE, 0]]


def write(root, name, ids_HW=IDS_HW, size_px=None):
    """A picture and its label."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    height, width = size_px or ids_HW.shape
    image_HWC = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(image_HWC).save(root / "images" / f"{name}.png")
    Image.fromarray(ids_HW).save(root / "labels" / f"{name}.png")
    return image_HWC


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.txt").write_text(CLASSES)
    return read_classes(tmp_path / "classes.txt")


@pytest.fixture
def root(tmp_path, classes):
    write(tmp_path / "val", "a")
    write(tmp_path / "val", "b")
    return tmp_path / "val"


def test_items_are_rgb_with_class_indices_and_names(tmp_path, root):
    image_HWC = write(root, "a")
    item = LabelledFolder(root)[0]
    np.testing.assert_array_equal(item.image_HWC, image_HWC)
    assert item.label_HW.tolist() == INDICES_HW
    assert item.label_HW.dtype == item.image_HWC.dtype == np.uint8
    assert [item.name for item in LabelledFolder(root)] == ["a", "b"]
    assert len(LabelledFolder(root)) == 2


def test_the_class_list_lies_in_the_folder_or_beside_it_or_is_given(tmp_path, root, monkeypatch):
    assert LabelledFolder(root).classes.names == ("sky", "road", "car")
    monkeypatch.chdir(root)
    assert LabelledFolder(".").classes.names == ("sky", "road", "car")
    (root / "classes.txt").write_text("a\nvoid\nb\nc\n")
    assert LabelledFolder(root).classes.names == ("a", "b", "c")
    (tmp_path / "other.txt").write_text("x\nvoid\ny\nz\n")
    assert LabelledFolder(root, tmp_path / "other.txt").classes.names == ("x", "y", "z")


def test_no_class_list_is_refused_with_both_places(tmp_path, root):
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UsageError, match="nor in"):
        LabelledFolder(root)


def test_labels_without_picture_are_listed_and_pictures_without_label_refused(root):
    (root / "images" / "b.png").unlink()
    folder = LabelledFolder(root)
    assert [path.name for path in folder.orphans] == ["b.png"]
    for number in range(5):
        Image.new("RGB", (3, 2)).save(root / "images" / f"n{number}.jpg")
    with pytest.raises(UsageError, match=r"5 of 6 pictures have no label .*: n0, n1, n2 and 2 more"):
        LabelledFolder(root)


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_a_missing_folder_is_one_line_with_the_path(tmp_path, root, missing):
    (root / missing).rename(tmp_path / "gone")
    with pytest.raises(UsageError, match=missing):
        LabelledFolder(root)


def test_no_picture_at_all_and_two_of_one_stem_are_refused(root):
    Image.new("L", (3, 2)).save(root / "labels" / "a.tif")
    with pytest.raises(UsageError, match="same stem"):
        LabelledFolder(root)
    for path in [*(root / "images").iterdir(), root / "labels" / "a.tif"]:
        path.unlink()
    with pytest.raises(UsageError, match="no picture"):
        LabelledFolder(root)


def test_unequal_sizes_are_refused_with_both(root):
    write(root, "a", size_px=(4, 5))
    with pytest.raises(InputError, match="5x4 against 3x2"):
        LabelledFolder(root)[0]


def palette_picture(ids_HW):
    picture = Image.fromarray(ids_HW).convert("L").copy()
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([value for index in range(256) for value in (255 - index, 7, index)])
    return picture


def colour_picture(ids_HW):
    colours = np.zeros((256, 3), np.uint8)
    colours[[0, 2, 3]] = (10, 20, 30), (128, 64, 128), (64, 0, 128)
    return Image.fromarray(colours[ids_HW])


@pytest.mark.parametrize(
    ("suffix", "made"),
    [
        ("png", Image.fromarray(IDS_HW)),
        ("png", Image.fromarray(IDS_HW.astype(np.uint16))),
        ("tif", Image.fromarray(IDS_HW.astype(np.uint16))),
        ("tif", Image.fromarray(IDS_HW.astype(np.int32))),
        ("png", palette_picture(IDS_HW)),
        ("bmp", palette_picture(IDS_HW)),
        ("png", colour_picture(IDS_HW)),
        ("png", colour_picture(IDS_HW).convert("RGBA")),
    ],
)
def test_every_kind_of_label_gives_the_same_classes(tmp_path, classes, suffix, made):
    made.save(tmp_path / f"label.{suffix}")
    assert read_label(tmp_path / f"label.{suffix}", classes).tolist() == INDICES_HW


def test_one_bit_is_class_0_or_1(tmp_path):
    (tmp_path / "two.txt").write_text("no\nyes\n")
    mask_HW = np.array([[True, False]])
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    assert read_label(tmp_path / "mask.png", read_classes(tmp_path / "two.txt")).tolist() == [[1, 0]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_palette_and_colours_mean_what_the_ids_mean(tmp_path_factory, height, width, seed):
    folder = tmp_path_factory.mktemp("labels")
    (folder / "classes.txt").write_text(CLASSES)
    classes = read_classes(folder / "classes.txt")
    ids_HW = np.random.default_rng(seed).choice(np.array([0, 1, 2, 3], np.uint8), (height, width))
    expected = np.array([0, IGNORE, 1, 2])[ids_HW]
    for made in (Image.fromarray(ids_HW), palette_picture(ids_HW), colour_picture(ids_HW)):
        made.save(folder / "label.png")
        np.testing.assert_array_equal(read_label(folder / "label.png", classes), expected)


def test_ids_that_are_no_class_are_named(tmp_path, classes):
    Image.fromarray(np.array([[0, 4, 9, 300]], np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: id 4, 9, 300 in no class"):
        read_label(tmp_path / "x.png", classes)


def test_the_commonest_unknown_colour_is_told_with_its_count(tmp_path, classes):
    image_HWC = np.array([[(10, 20, 30), (1, 2, 3), (1, 2, 3), (9, 9, 9)]], np.uint8)
    Image.fromarray(image_HWC).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"colour \(1, 2, 3\) of 2 pixels, one of 2 in no class"):
        read_label(tmp_path / "x.png", classes)


def test_float_labels_and_damaged_files_are_refused(tmp_path, classes):
    Image.fromarray(IDS_HW.astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match="mode F"):
        read_label(tmp_path / "x.tif", classes)
    Image.fromarray(np.tile(IDS_HW, (30, 30))).save(tmp_path / "y.png")
    whole = (tmp_path / "y.png").read_bytes()
    for data in (b"", b"no picture", whole[: len(whole) // 2], whole[:20]):
        (tmp_path / "y.png").write_bytes(data)
        with pytest.raises(InputError, match=r"y\.png") as caught:
            read_label(tmp_path / "y.png", classes)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"gone\.png"):
        read_label(tmp_path / "gone.png", classes)


def made_items(height=60, width=80):
    """Grey patches that say their class: a class k is a level of 40 + 30 k."""
    items = []
    for seed in range(3):
        blocks_HW = np.random.default_rng(seed).integers(0, 6, (3, 4), dtype=np.uint8)
        label_HW = cv2.resize(blocks_HW, (width, height), interpolation=cv2.INTER_NEAREST)
        items.append(Labelled(np.repeat((40 + 30 * label_HW)[..., None], 3, 2).astype(np.uint8), label_HW, str(seed)))
    return items


@needs_albumentations
@pytest.mark.parametrize("weather", [False, True])
def test_a_batch_is_a_function_of_its_generator_alone(weather):
    crops = LabelledCrops(made_items(), 48, weather=weather)
    first = crops.batch(np.random.default_rng(3), 6)
    crops.batch(np.random.default_rng(4), 2)
    again = crops.batch(np.random.default_rng(3), 6)
    other = crops.batch(np.random.default_rng(5), 6)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


@needs_albumentations
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_any_size_of_picture_and_crop_gives_the_promised_form(height, width, crop_px, weather):
    crops = LabelledCrops(made_items(height, width), crop_px, weather=weather)
    images_BCHW, labels_BHW = crops.batch(np.random.default_rng(0), 3)
    assert images_BCHW.shape == (3, 3, crop_px, crop_px)
    assert labels_BHW.shape == (3, crop_px, crop_px)
    assert images_BCHW.dtype == np.float32
    assert labels_BHW.dtype == np.int64
    assert 0 <= images_BCHW.min() <= images_BCHW.max() <= 1
    assert set(np.unique(labels_BHW)) <= {*range(6), IGNORE}


@needs_albumentations
@pytest.mark.parametrize("crop_px", [20, 48, 200])
def test_labels_stay_on_their_pixels_and_what_lies_outside_is_grey_and_unlabelled(monkeypatch, crop_px):
    monkeypatch.setattr(augment, "photometric", lambda image_HWC, rng: image_HWC)
    crops = LabelledCrops(made_items(), crop_px)
    images_BCHW, labels_BHW = crops.batch(np.random.default_rng(0), 20)
    level_BHW = np.round(images_BCHW[:, 0] * 255).astype(int)
    expected_BHW = np.where(labels_BHW == IGNORE, crops.grey, 40 + 30 * labels_BHW)
    assert (np.abs(level_BHW - expected_BHW) <= 1).mean() > 0.85  # all but the blended edges between patches
    # 60 x 80 px, doubled at most, never fill 200; and fill 20 at any scale.
    outside_B = (labels_BHW == IGNORE).any((1, 2))
    assert outside_B.all() if crop_px == 200 else outside_B.any() == (crop_px > 30)


@needs_albumentations
def test_labels_do_not_drift_by_half_a_pixel_when_a_picture_shrinks(monkeypatch):
    monkeypatch.setattr(augment, "photometric", lambda image_HWC, rng: image_HWC)
    monkeypatch.setattr("moevision.datasets.segmentation.SCALES", (0.2, 0.2))
    step_HW = (np.arange(100)[None].repeat(100, 0) >= 52).astype(np.uint8)
    crops = LabelledCrops([Labelled(np.repeat(step_HW[..., None] * 200, 3, 2), step_HW, "step")], 20)
    images_BCHW, labels_BHW = crops.batch(np.random.default_rng(0), 4)
    # The step lies at 10.4 of the crop: of the pixel it cuts, the label has the larger part.
    np.testing.assert_array_equal(labels_BHW == 1, images_BCHW[:, 0] > 100 / 255)


@needs_albumentations
def test_scales_places_mirrors_and_pictures_vary():
    item = made_items()[0]
    grid_HW = np.arange(60 * 80).reshape(60, 80) % 250
    crops = LabelledCrops([item._replace(label_HW=grid_HW.astype(np.uint8))], 16)
    _, labels_BHW = crops.batch(np.random.default_rng(0), 60)
    steps = [np.abs(np.median(np.diff(label_HW[8].astype(int)))) for label_HW in labels_BHW]
    assert min(steps) <= 0.5  # enlarged
    assert max(steps) >= 1.5  # shrunk
    mirrored = [np.median(np.diff(label_HW[8])[np.diff(label_HW[8]) != 0]) < 0 for label_HW in labels_BHW]
    assert 0.3 < np.mean(mirrored) < 0.7


@needs_albumentations
def test_stored_pictures_stay_untouched():
    items = made_items()
    before = [(item.image_HWC.copy(), item.label_HW.copy()) for item in items]
    LabelledCrops(items, 40, weather=True).batch(np.random.default_rng(0), 20)
    for item, (image_HWC, label_HW) in zip(items, before, strict=True):
        np.testing.assert_array_equal(item.image_HWC, image_HWC)
        np.testing.assert_array_equal(item.label_HW, label_HW)


@needs_albumentations
def test_weather_changes_half_of_the_crops_and_half_of_it_lies_in_a_street(monkeypatch):
    seen = []
    monkeypatch.setattr(augment, "photometric", lambda image_HWC, rng: seen.append(image_HWC) or image_HWC)
    crops = LabelledCrops(made_items(200, 200), 24, weather=True)
    monkeypatch.setattr("moevision.datasets.segmentation.weather.degrade", lambda image_HWC, kind, rng: image_HWC * 0)
    monkeypatch.setattr(
        "moevision.datasets.segmentation.street.add_street_weather", lambda image_HWC, kind, rng: image_HWC * 0 + 1
    )
    crops.batch(np.random.default_rng(0), 400)
    for value in (0, 255):
        assert 0.18 < np.mean([(image_HWC == value).all() for image_HWC in seen]) < 0.32


def test_without_albumentations_crops_are_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    augment.photometric_pipeline.cache_clear()
    with pytest.raises(MissingExtraError, match=r'pip install "moevision\[train\]"'):
        LabelledCrops(made_items(), 16)
    augment.photometric_pipeline.cache_clear()
