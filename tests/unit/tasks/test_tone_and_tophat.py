"""Top-hats and tone statistics: what the network is given besides the pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.tasks.restoration.scene import THUMBNAIL_PX
from moevision.tasks.restoration.tone import QUANTILES, ToneBranch, tone_statistics
from moevision.tasks.restoration.tophat import WINDOWS_PX, opening, top_hat, top_hats, window_minimum


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 5, 9, 17]), st.sampled_from([1, 3, 5, 9, 17]))
def test_a_window_minimum_is_that_of_pooling_for_any_size(height, width, rows, columns):
    x = torch.rand(2, 3, height, width)
    expected = -torch.nn.functional.max_pool2d(-x, (rows, columns), stride=1, padding=(rows // 2, columns // 2))
    assert torch.equal(window_minimum(x, (rows, columns)), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from(WINDOWS_PX))
def test_a_top_hat_is_the_picture_less_its_opening_bit_for_bit(batch, channels, height, width, window):
    x = torch.rand(batch, channels, height, width)
    expected = x + window_minimum(-window_minimum(x, window), window)
    assert torch.equal(top_hat(x, window), expected)
    assert torch.equal(top_hat(x.to(memory_format=torch.channels_last), window), expected)
    assert torch.equal(top_hat(x.double(), window).float(), (x.double() - opening(x.double(), window)).float())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(WINDOWS_PX))
def test_an_opening_lies_below_the_picture_and_opening_again_changes_nothing(height, width, window):
    x = torch.rand(1, 3, height, width)
    opened = opening(x, window)
    assert (opened <= x).all()
    assert torch.equal(opening(opened, window), opened)


def test_top_hats_hold_what_is_small_and_bright_and_nothing_of_a_veil():
    dark = torch.full((1, 3, 64, 64), 0.2)
    streak, flake = dark.clone(), dark.clone()
    streak[..., 10:60, 30:32] = 0.9
    flake[..., 20:27, 20:27] = 0.9
    assert not any(hat.any() for hat in top_hats(dark + 0.3))
    for hat in top_hats(streak):
        torch.testing.assert_close(hat, streak - dark)
    across, five, nine, seventeen = top_hats(flake)
    assert (five == 0).all()
    for hat in (across, nine, seventeen):
        torch.testing.assert_close(hat, flake - dark)
    assert (top_hats(streak.mT)[0] == 0).all()  # what is long and level is no streak


def test_tone_statistics_are_the_quantiles_of_the_picture_and_the_size_of_its_top_hats():
    picture = 0.1 + 0.5 * torch.rand(2, 3, THUMBNAIL_PX, THUMBNAIL_PX)
    hats = top_hats(picture)
    statistics = tone_statistics(picture, hats)
    quantiles, sizes = statistics.split((len(QUANTILES) * 4, len(WINDOWS_PX)), dim=1)
    expected = torch.quantile(picture[1, 2].flatten(), torch.tensor(QUANTILES))
    torch.testing.assert_close(quantiles.view(2, 4, -1)[1, 2], expected)
    torch.testing.assert_close(quantiles.view(2, 4, -1)[0, 3, 0], picture[0].min())
    torch.testing.assert_close(sizes, torch.stack([10 * hat.mean((1, 2, 3)) for hat in hats], 1))
    veiled = tone_statistics(picture + 0.25, top_hats(picture + 0.25))
    torch.testing.assert_close(veiled, torch.cat([quantiles + 0.25, sizes], 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_tone_branch_says_nothing(dtype):
    branch = ToneBranch(3, 7, 4).to(dtype)
    picture = torch.rand(2, 3, 20, 30)
    logits, correction = branch(tone_statistics(picture, top_hats(picture)), torch.rand(2, 7, dtype=dtype))
    assert logits.shape == (2, 4)
    assert correction.shape == (2, 4, 6)
    assert not logits.any()
    assert not correction.any()
