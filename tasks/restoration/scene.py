"""SceneBranch: what the whole picture looks like, for every part of it.

How thick haze is, or how much veil a shower adds, cannot be told from a few pixels: a white wall and a hazy one look
alike. The branch sees the whole picture as a thumbnail, with ordinary attention between all its positions, and hands a
coarse feature map to the full-resolution network. It is measured once a picture, so tiles agree on it, and costs the
same for a 12-megapixel photograph as for a small one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.backbone.backbone import STRIDE
from moevision.moe import Context, Window
from moevision.tasks.restoration.tophat import window_minimum

THUMBNAIL_PX = 96
# Thumbnail, and its darkest value per channel in windows of 7 and 31 px: the statistic of the dark-channel prior.
SCENE_CHANNELS = 9


class SceneBranch(nn.Module):
    """Thumbnail -> coarse map, read out at the cells of the stride-8 grid of any tile.

    Args:
        config: of the branch's own backbone; `in_channels` must be SCENE_CHANNELS.
        out_channels: channels of the features the read-out is added to.
    """

    def __init__(self, config: BackboneConfig, out_channels: int) -> None:
        super().__init__()
        self.backbone = MoEBackbone(config, "scene.")
        # Zero at the start: a network without the branch can be extended by it without losing what it knows.
        self.project = nn.Conv2d(config.stage_channels[2], out_channels, 1)
        nn.init.zeros_(self.project.weight)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def measure(self, picture_BCHW: Tensor, context: Context) -> Tensor:
        """The map (B, out_channels, h, w) of whole pictures of any size, RGB in [0, 1]."""
        return self.project(self.backbone(scene_inputs(picture_BCHW).to(self.project.weight.dtype), context)[-1])

    def read(self, map_BChw: Tensor, x8_BCHW: Tensor, window: Window) -> Tensor:
        """The map at the stride-8 cells of a tile: same shape as the tile's features `x8_BCHW`."""
        height, width = x8_BCHW.shape[-2:]
        y_H = _cell_positions(window.top_px, height, window.picture_height_px, map_BChw)
        x_W = _cell_positions(window.left_px, width, window.picture_width_px, map_BChw)
        grid_HW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), dim=-1)
        grid_BHW2 = grid_HW2.expand(map_BChw.shape[0], -1, -1, -1)
        map_BChw = map_BChw.to(grid_BHW2.dtype)
        read_BCHW = F.grid_sample(map_BChw, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)
        return read_BCHW.to(x8_BCHW.dtype).expand(x8_BCHW.shape[0], -1, -1, -1)


def thumbnail(picture_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w), longer side THUMBNAIL_PX.

    Stretched to multiples of 8, so that its map covers the picture exactly.
    """
    height, width = picture_BCHW.shape[-2:]
    longer: Any = torch.sym_max(height, width)  # whole numbers all, which torch does not say
    size: list[Any] = [
        STRIDE * torch.sym_max(1, _rounded(side * (THUMBNAIL_PX // STRIDE), longer)) for side in (height, width)
    ]
    return F.interpolate(picture_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False)


def _rounded(a: int, b: int) -> int:
    """round(a / b) for a, b > 0 in whole numbers, half to even: an exporter of any size can follow these."""
    up, down = ((2 * a + b - low) // (2 * b) for low in (0, 1))  # they differ where a / b lies half way
    return up - (up - down) * (up % 2)


def scene_inputs(picture_BCHW: Tensor) -> Tensor:
    """Thumbnail and its windowed minima: (B, 3, H, W) -> (B, SCENE_CHANNELS, h, w)."""
    small_BChw = thumbnail(picture_BCHW)
    dark7 = window_minimum(small_BChw, (7, 7))
    dark31 = window_minimum(dark7, (7, 7), dilation=4)
    return torch.cat([small_BChw, dark7, dark31], dim=1).contiguous(memory_format=torch.channels_last)


def _cell_positions(first_px: int, cells: int, length_px: int, like: Tensor) -> Tensor:
    # Centres of the stride-8 cells in grid_sample's coordinates, where -1 and 1 are the picture's edges.
    # At least float32: bf16 cannot tell neighbouring cells of a large picture apart.
    dtype = torch.promote_types(like.dtype, torch.float32)
    centres_px = first_px + STRIDE * (torch.arange(cells, device=like.device, dtype=dtype) + 0.5)
    return centres_px * (2 / length_px) - 1
