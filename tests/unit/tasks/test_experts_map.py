"""The map of who restored what: it shows what the router decided, and changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moevision.backbone import MoEConfig
from moevision.checkpoint import ModelDescriptor
from moevision.errors import UsageError
from moevision.imaging.picture import picture_from_array, to_float_tile
from moevision.moe import Context
from moevision.tasks.restoration.experts_map import expert_colours
from moevision.tasks.restoration.model import PRESETS, RestorationNet
from moevision.tasks.restoration.predict import RestorationTask


def task(moe=None, **options):
    torch.manual_seed(0)
    config = PRESETS["test"]()
    net = RestorationNet(config if moe is None else config.with_moe(moe)).eval()
    torch.nn.init.normal_(net.head.weight, std=0.05)
    return RestorationTask(
        ModelDescriptor("test", "restoration", net, net.config.to_dict(), {}), device=torch.device("cpu"), **options
    )


def picture(height, width):
    return picture_from_array(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_it_shows_what_the_router_decided():
    one, source = task(experts_map=True), picture(37, 50)
    result = one((source,))
    context = Context()
    with torch.inference_mode():
        one.model(torch.from_numpy(to_float_tile(source.pixels_HWC)).permute(2, 0, 1)[None], context)
    routing = context.records["stage8.0.ffn"].routing
    first_hw = routing.index_NK[torch.arange(35), routing.weight_NK.argmax(1)].reshape(5, 7).numpy()
    ids_HW = result.maps["experts"].pixels_HWC[:, :, 0]
    assert ids_HW.shape == (37, 50)
    np.testing.assert_array_equal(ids_HW[::8, ::8], first_hw)
    np.testing.assert_array_equal(ids_HW[7::8, 7::8], first_hw[:4, :6])
    shares = result.facts["experts"]
    assert shares == {str(e): round(float((first_hw == e).mean()), 4) for e in map(int, shares)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert result.facts["first_weight"] == pytest.approx(float(routing.weight_NK.max(1)[0].mean()), abs=1e-3)


@pytest.mark.parametrize("tile_px", [0, 64, 100])
def test_asking_for_it_changes_nothing_else_and_tiles_fill_it(tile_px):
    source = picture(150, 211)
    plain, asked = task(tile_px=tile_px)((source,)), task(tile_px=tile_px, experts_map=True)((source,))
    np.testing.assert_array_equal(plain.picture.pixels_HWC, asked.picture.pixels_HWC)
    assert plain.maps == {}
    assert plain.facts.items() <= asked.facts.items()
    assert asked.maps["experts"].pixels_HWC.shape == (150, 211, 1)
    assert asked.maps["experts"].pixels_HWC.max() < 4
    assert 0.5 <= asked.facts["first_weight"] <= 1  # of two experts, everywhere


def test_a_network_without_experts_has_no_map():
    with pytest.raises(UsageError, match="needs a model with"):
        task(replace(MoEConfig(), experts="dense"), experts_map=True)


def test_experts_have_colours_of_their_own():
    for count in (1, 4, 16, 256):
        assert len(set(expert_colours(count))) == count
