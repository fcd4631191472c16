"""The scene branch: one map a picture, read alike by every tile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.moe import Context, Window
from moevision.tasks.restoration.model import RestorationNet, scene_backbone
from moevision.tasks.restoration.scene import SCENE_CHANNELS, THUMBNAIL_PX, SceneBranch, scene_inputs


def branch(out_channels=5):
    torch.manual_seed(0)
    scene = SceneBranch(scene_backbone(8, 1, 4), out_channels).eval()
    torch.nn.init.normal_(scene.project.weight)
    return scene


def test_a_new_branch_adds_nothing():
    torch.manual_seed(0)
    scene = SceneBranch(scene_backbone(8, 1, 4), 5)
    assert (scene.measure(torch.rand(1, 3, 40, 56), Context()) == 0).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 300))
def test_inputs_have_a_bounded_size_in_multiples_of_8_for_any_picture(height, width):
    inputs = scene_inputs(torch.rand(1, 3, height, width))
    assert inputs.shape[1] == SCENE_CHANNELS
    assert max(inputs.shape[-2:]) == THUMBNAIL_PX
    assert all(side % 8 == 0 for side in inputs.shape[-2:])
    assert inputs.isfinite().all()


def test_the_dark_channels_are_minima_over_windows_of_7_and_31():
    picture = torch.rand(1, 3, THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail, dark7, dark31 = scene_inputs(picture).chunk(3, dim=1)
    torch.testing.assert_close(thumbnail, picture)
    for dark, window in ((dark7, 7), (dark31, 31)):
        expected = -torch.nn.functional.max_pool2d(-picture, window, stride=1, padding=window // 2)
        torch.testing.assert_close(dark, expected)


def test_reading_a_whole_picture_is_bilinear_interpolation_of_its_map():
    scene_map, x8 = torch.rand(1, 5, 6, 9), torch.zeros(1, 5, 12, 18)
    read = branch().read(scene_map, x8, Window(0, 0, 96, 144))
    expected = torch.nn.functional.interpolate(scene_map, size=(12, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(read, expected)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (16, 40), (56, 88)])
def test_a_tile_reads_the_same_values_as_the_whole_picture_there(top, left):
    scene, scene_map = branch(), torch.rand(1, 5, 6, 9)
    whole = scene.read(scene_map, torch.zeros(1, 5, 12, 18), Window(0, 0, 96, 144))
    tile = scene.read(scene_map, torch.zeros(2, 5, 5, 7), Window(top, left, 96, 144))
    torch.testing.assert_close(tile[1:], whole[..., top // 8 : top // 8 + 5, left // 8 : left // 8 + 7])


def test_a_network_extended_by_the_branch_starts_where_it_was():
    from dataclasses import replace

    from moevision.tasks.restoration.model import PRESETS

    torch.manual_seed(0)
    config = PRESETS["test"]()
    plain = RestorationNet(replace(config, scene=None)).eval()
    torch.nn.init.normal_(plain.head.weight, std=0.05)
    extended = RestorationNet(config).eval()
    new, foreign = extended.load_state_dict(plain.state_dict(), strict=False)
    assert foreign == []
    assert {name.split(".")[0] for name in new} == {"scene"}
    x = torch.rand(1, 3, 40, 33)
    torch.testing.assert_close(extended(x)[0], plain(x)[0])
