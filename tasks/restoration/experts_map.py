"""Which experts worked on which place of a picture: what `--experts-map` writes and the page shows.

Experts of different layers have nothing to do with each other, so one layer is looked at: the last, which is nearest to
the result. What is told is what the router decided, not what an expert is good at: experts have no names.
"""

import colorsys

import numpy as np

from moevision.engine.task import JSON
from moevision.errors import UsageError
from moevision.imaging.picture import Picture
from moevision.imaging.tiling import Tile
from moevision.moe import Context, MoELayer
from moevision.tasks.restoration.model import RestorationNet

_MOST_EXPERTS = 256  # numbers of experts are the pixels of an 8-bit picture


def mapped_layer(net: RestorationNet) -> MoELayer:
    """The layer that is looked at. Raises UsageError for a network without experts."""
    layers = [module for module in net.backbone.modules() if isinstance(module, MoELayer)]
    if not layers or layers[-1].experts.num_experts > _MOST_EXPERTS:
        raise UsageError(f"a map of experts needs a model with 2 to {_MOST_EXPERTS} experts; leave it out for this one")
    return layers[-1]


class ExpertsMap:
    """Collects tile by tile what the router decided for one picture.

    Args:
        net: the network that restores; see `mapped_layer` for what is raised.
        height, width: of the picture in pixels.
    """

    def __init__(self, net: RestorationNet, height: int, width: int) -> None:
        layer = mapped_layer(net)
        self._layer, self.num_experts = layer.name, layer.experts.num_experts
        self._size_hw, self._cell_px = (height, width), net.config.backbone.strides[-1]
        self._first_hw = np.zeros((self._cells(height), self._cells(width)), np.uint8)
        self._weight_hw = np.zeros(self._first_hw.shape, np.float32)

    def _cells(self, length_px: int) -> int:
        return -(-length_px // self._cell_px)

    def add(self, context: Context, tile: Tile) -> None:
        """Take over what is recorded of a forward pass over `tile`, which starts at a multiple of the stride."""
        routing = context.records[self._layer].routing
        rows, columns = self._cells(tile.y1 - tile.y0), self._cells(tile.x1 - tile.x0)
        y, x = tile.y0 // self._cell_px, tile.x0 // self._cell_px
        place = slice(y, y + rows), slice(x, x + columns)
        weight_NK = routing.weight_NK.float().masked_fill(routing.index_NK < 0, 0)
        weight_N, slot_N = weight_NK.max(1)
        first_N = routing.index_NK.gather(1, slot_N[:, None])[:, 0].clamp_min(0)
        self._first_hw[place] = first_N.cpu().numpy().reshape(rows, columns)
        self._weight_hw[place] = weight_N.cpu().numpy().reshape(rows, columns)

    def facts(self) -> dict[str, JSON]:
        """`experts`: of each that came first somewhere, the share of the picture where it did, largest first;
        `first_weight`: how much the first had to say there on average. Both 0 to 1, experts counted from 0.
        """  # fmt: skip
        share_E = np.bincount(self._first_hw.ravel(), minlength=self.num_experts) / self._first_hw.size
        order = [int(expert) for expert in np.argsort(-share_E, kind="stable") if share_E[expert] > 0]
        shares: dict[str, JSON] = {str(expert): round(float(share_E[expert]), 4) for expert in order}
        return {"experts": shares, "first_weight": round(float(self._weight_hw.mean()), 3)}

    def picture(self) -> Picture:
        """Of the picture's size: each pixel the number, from 0, of the expert that came first, shown as its colour."""
        height, width = self._size_hw
        wide_HW = self._first_hw.repeat(self._cell_px, 0).repeat(self._cell_px, 1)
        ids_HW1 = np.ascontiguousarray(wide_HW[:height, :width, None])
        return Picture(ids_HW1, palette=expert_colours(self.num_experts))


def expert_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """A colour (red, green, blue; 0 to 255) for each expert: hues all around, light and dark in turns."""
    colours: list[tuple[int, int, int]] = []
    for number in range(count):
        saturation, value = ((0.9, 0.65), (0.55, 1.0))[number % 2]
        colour = 255 * np.array(colorsys.hsv_to_rgb(number / count, saturation, value))
        red, green, blue = (int(part) for part in colour.round())
        colours.append((red, green, blue))
    return tuple(colours)
