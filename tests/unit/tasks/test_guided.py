"""Maps that break where the picture does."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.backbone.backbone import pad_to_stride
from moevision.tasks.restoration.guided import follow_edges
from moevision.tasks.restoration.model import SMOOTHED

WINDOWS = list(SMOOTHED.values())


def half_size(map_BCHW):
    return torch.nn.functional.avg_pool2d(pad_to_stride(map_BCHW), 2)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.sampled_from(WINDOWS))
def test_a_level_map_stays_as_it_is_for_any_size(batch, channels, height, width, window):
    levels = torch.randn(batch, channels, 1, 1)
    maps = half_size(levels.expand(-1, -1, height, width))
    followed = follow_edges(maps, torch.rand(batch, 1, height, width), *window)
    torch.testing.assert_close(followed, levels.expand(-1, -1, height, width), atol=1e-4, rtol=1e-4)


def test_a_blurred_outline_becomes_as_sharp_as_the_pictures():
    guide = torch.full((1, 1, 96, 96), 0.2)
    guide[..., 50:] = 0.8
    sharp = (guide > 0.5).float()
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(sharp, (8,) * 4, mode="replicate"), 17, 1)
    before, after = (
        (image - sharp)[..., 20:76, 42:58].abs().mean()
        for image in (blurred, follow_edges(half_size(blurred), guide, 4, 4))
    )
    assert after < 0.5 * before


def test_what_wavers_where_there_is_nothing_to_see_is_evened_out():
    torch.manual_seed(0)
    wavering = torch.randn(1, 1, 48, 48)
    followed = follow_edges(wavering, torch.full((1, 1, 96, 96), 0.7), 4, 4)
    assert followed.std() < 0.2 * wavering.std()


def test_the_result_has_the_guides_type_and_gradients_reach_the_maps():
    maps = torch.rand(1, 2, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    followed = follow_edges(maps, torch.rand(1, 1, 13, 15), 4, 4)
    assert followed.dtype == torch.float32
    followed.sum().backward()
    assert (maps.grad != 0).all()
