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

    def window_mean(x_BChw: Tensor) -> Tensor:  # what lies outside is left out
        return F.avg_pool2d(x_BChw, 2 * radius_cells + 1, stride=1, padding=radius_cells, count_include_pad=False)

    height, width = guide_B1HW.shape[-2:]
    guide = F.avg_pool2d(pad_to_stride(guide_B1HW), cell_px)
    maps = F.avg_pool2d(maps_BChw.to(guide.dtype), cell_px // 2)
    guide_mean, maps_mean = window_mean(guide), window_mean(maps)
    variance = window_mean(guide * guide) - guide_mean * guide_mean
    slope = (window_mean(guide * maps) - guide_mean * maps_mean) / (variance + EPSILON)
    offset = maps_mean - slope * guide_mean
    line = F.interpolate(
        window_mean(torch.cat([slope, offset], 1)), scale_factor=cell_px, mode="bilinear", align_corners=False
    )
    slope, offset = line[..., :height, :width].chunk(2, dim=1)
    return torch.addcmul(offset, slope, guide_B1HW)
