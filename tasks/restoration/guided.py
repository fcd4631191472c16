"""Maps that break where the picture does.

How much airlight lies over a pixel depends on its distance: a map that is smooth but for the outlines of things. A
network that predicts it at half the size blurs the outlines, seen as halos, and wavers where there is little to see,
in sky; what it says about drops wavers in the same way, more finely. A guided filter (He, Sun and Tang, TPAMI 2013)
makes a map a linear function of brightness in every window: it gets the picture's own edges and nothing finer. Lines
are fitted on a smaller picture, as in the fast guided filter (He and Sun, 2015). kornia's filter needs the map at full
size and fails on pictures smaller than its window.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.backbone.backbone import pad_to_stride

# The variance of brightness that counts as an edge.
EPSILON = 1e-3


def follow_edges(maps_BChw: Tensor, guide_B1HW: Tensor, cell_px: int, radius_cells: int) -> Tensor:
    """Maps at half size -> at full size, linear in the guide within every window.

    Args:
        maps_BChw: any number of maps, at stride 2 of the picture padded to a multiple of 8.
        guide_B1HW: brightness of the picture in [0, 1], any H, W >= 1; the result has its size and type.
        cell_px: 2, 4 or 8; lines are fitted to means over cells of this size.
        radius_cells: cells from the centre of a window to its edge.
    """
    return along_lines(fit_lines(maps_BChw, guide_B1HW, cell_px, radius_cells), guide_B1HW, cell_px)


def fit_lines(maps_BChw: Tensor, guide_B1HW: Tensor, cell_px: int, radius_cells: int) -> Tensor:
    """(slope, offset) of every map in every cell: (B, 2 C, cells, cells). Arguments as of `follow_edges`."""
    guide = F.avg_pool2d(pad_to_stride(guide_B1HW), cell_px)
    maps = F.avg_pool2d(maps_BChw.to(guide.dtype), cell_px // 2)
    moments = _window_mean(torch.cat([guide, guide * guide, maps, guide * maps], 1), radius_cells)
    guide_mean, guide2_mean, maps_mean, product_mean = moments.split((1, 1, maps.shape[1], maps.shape[1]), dim=1)
    slope = (product_mean - guide_mean * maps_mean) / (guide2_mean - guide_mean * guide_mean + EPSILON)
    offset = maps_mean - slope * guide_mean
    return _window_mean(torch.cat([slope, offset], 1), radius_cells)


def along_lines(lines_BLhw: Tensor, guide_B1HW: Tensor, cell_px: int) -> Tensor:
    """What the lines say at the guide's brightness: (B, C, H, W)."""
    height, width = guide_B1HW.shape[-2:]
    # Plane by plane: of so few channels that is twice as fast as side by side.
    lines_BLHW = F.interpolate(lines_BLhw.contiguous(), scale_factor=cell_px, mode="bilinear", align_corners=False)
    slope, offset = lines_BLHW[..., :height, :width].chunk(2, dim=1)
    return torch.addcmul(offset, slope, guide_B1HW)


def _window_mean(x_BChw: Tensor, radius: int) -> Tensor:
    """Mean over square windows, what lies outside left out: a sum down and one across, as a convolution with ones,
    for which processors have fast code and for the mean of a window have not.
    """
    channels, height, width = x_BChw.shape[1:]
    side = 2 * radius + 1
    ones = x_BChw.new_ones(channels, 1, side, 1)
    x_BChw = F.conv2d(x_BChw.contiguous(memory_format=torch.channels_last), ones, padding=(radius, 0), groups=channels)
    x_BChw = F.conv2d(x_BChw, ones.mT, padding=(0, radius), groups=channels)
    down, across = (_inside(length, radius, x_BChw) for length in (height, width))
    return x_BChw / (down.unsqueeze(1) * across)


def _inside(length: int, radius: int, like: Tensor) -> Tensor:
    """How many cells of the window around each cell lie inside: (length,)."""
    at = torch.arange(length, device=like.device)
    return ((at + radius).clamp_max(length - 1) - (at - radius).clamp_min(0) + 1).to(like.dtype)
