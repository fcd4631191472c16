"""From a pair of pictures to the fused picture: brightness of both, registration, tiles, colour."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.checkpoint import ModelDescriptor
from moevision.devices import retry_smaller
from moevision.engine.task import JSON, TaskResult
from moevision.imaging.picture import Picture, to_float_tile
from moevision.imaging.registration import register_ecc, warp
from moevision.imaging.scaling import shrink
from moevision.imaging.tiling import Tile, map_picture, plan_tiles
from moevision.moe import Context
from moevision.tasks.fusion.infrared import Range, infrared_brightness, is_coloured
from moevision.tasks.fusion.model import FusionNet

logger = logging.getLogger(__name__)

# Up to this size a pair is one tile and measures its own statistics; larger ones are measured on a thumbnail of it.
WHOLE_PX = 1024
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Where the visible picture is darker than this its colour is noise.
_DARK, _DIM = 0.02, 0.10
_SHARE_FLOOR = 1e-3


class FusionTask:
    """Fuses one pair per call; implements the engine's Task protocol.

    Args:
        descriptor: a loaded fusion model.
        device, dtype: where and in which float type the network runs; the model is moved there.
        tile_px: edge of a tile; 0 = the whole pair at once, None = the descriptor's choice.
        register: "none", "ecc", or a homography (3, 3) that maps points of the visible picture to the infrared one.
        thermal_range: how infrared values become brightness, see `infrared.infrared_brightness`.
    """

    name = "fuse"

    def __init__(
        self, descriptor: ModelDescriptor, *, device: torch.device, dtype: torch.dtype = torch.float32,
        tile_px: int | None = None, register: str | NDArray[np.float64] = "none", thermal_range: str | Range = "auto",
    ) -> None:  # fmt: skip
        self.descriptor, self.device = descriptor, device
        self.model = cast("FusionNet", descriptor.model.to(device=device, dtype=dtype))
        self.tile_px, self.register, self.thermal_range = tile_px, register, thermal_range
        # What a pair's forward pass remembers; a video puts one here that remembers earlier frames.
        self.new_context: Callable[[], Context] = Context
        self._warned_of_colour = False

    @torch.inference_mode()
    def __call__(self, pictures: tuple[Picture, ...]) -> TaskResult:
        """Fuse (infrared, visible); the result has size, depth, channels, alpha and metadata of the visible picture.

        Raises InputError when the two do not show the same view, MemoryExhaustedError when not even tiles of 128 px
        fit.

        Facts: `visible_weight` (mean share of the visible picture, 0 to 1), `experts` (weights of the chosen experts by
        gate), `tiles`, with registration `registered`, `shift_px` and `correlation_gain`, and `infrared_coloured` where
        it is. Maps: `weights`. Views: infrared (its brightness, not registered), visible, fused.
        """
        infrared, visible = pictures
        coloured = is_coloured(infrared)
        if coloured and not self._warned_of_colour:  # once, not for every frame of a video
            self._warned_of_colour = True
            logger.warning(
                "an infrared picture is coloured: its luma is taken, wrong for a palette; are the two swapped?"
            )
        infrared_HW, hidden_HW, facts = self._aligned(infrared, visible)
        height, width = visible.pixels_HWC.shape[:2]
        tile_px = self.tile_px if self.tile_px is not None else 0 if max(height, width) <= WHOLE_PX else None
        first = self.descriptor.tile_px if tile_px is None else tile_px
        result = retry_smaller(lambda tile_px: self._fuse(visible, infrared_HW, hidden_HW, tile_px), first)
        result.facts.update(facts, **({"infrared_coloured": True} if coloured else {}))

        def views(longer_px: int) -> dict[str, Picture]:
            # Counts of a thermal camera as a picture are black.
            small = Picture(shrink(infrared.pixels_HWC, longer_px))
            grey_HW = infrared_brightness(small, small.pixels_HWC.shape[:2], self.thermal_range)
            return {"infrared": Picture(grey_HW[:, :, None]), "visible": visible, "fused": result.picture}

        return replace(result, views=views)

    def _aligned(
        self, infrared: Picture, visible: Picture
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, dict[str, JSON]]:
        """Infrared brightness on the visible picture's grid, where it shows nothing, and what was done."""
        size_hw = visible.pixels_HWC.shape[:2]
        if not isinstance(self.register, str):
            own_hw = infrared.pixels_HWC.shape[:2]
            infrared_HW = infrared_brightness(infrared, own_hw, self.thermal_range)
            warped_HW, hidden_HW = warp(infrared_HW, self.register, size_hw)
            return warped_HW, hidden_HW, {"registered": "file"}
        infrared_HW = infrared_brightness(infrared, size_hw, self.thermal_range)
        if self.register == "none":
            return infrared_HW, None, {}
        found = register_ecc(luma(to_float_tile(visible.pixels_HWC)), infrared_HW)
        gain = found.correlation_after - found.correlation_before
        facts: dict[str, JSON] = {
            "registered": "ecc" if found.taken else "no gain",
            "shift_px": round(found.shift_px, 2),
            "correlation_gain": round(gain, 3) if math.isfinite(gain) else None,
        }
        if not found.taken:
            return infrared_HW, None, facts
        return *warp(infrared_HW, found.warp_33, size_hw), facts

    def _fuse(
        self, visible: Picture, infrared_HW: NDArray[np.float32], hidden_HW: NDArray[np.bool_] | None, tile_px: int
    ) -> TaskResult:
        height, width = infrared_HW.shape
        overlap_px = min(self.descriptor.overlap_px, tile_px // 2)
        multiple_px = self.descriptor.size.tile_multiple_px
        tiles = sum(len(row) for row in plan_tiles(height, width, tile_px, overlap_px, multiple_px))
        measured = self._measure(visible, infrared_HW) if tiles > 1 or max(height, width) > WHOLE_PX else None
        seen = measured or self.new_context()
        weight_HW = np.empty((height, width), np.uint8)

        def fuse(tile_HWC: np.ndarray, tile: Tile) -> np.ndarray:
            place = slice(tile.y0, tile.y1), slice(tile.x0, tile.x1)
            context = seen if measured is None else Context(frozen_statistics=measured.statistics)
            visible_HW = luma(tile_HWC)
            fusion = self.model(self._to_tensor(visible_HW), self._to_tensor(infrared_HW[place]), context)
            fused_HW, share_HW = (t[0, 0].float().clamp(0, 1).cpu().numpy() for t in fusion[:2])
            if hidden_HW is not None:
                fused_HW = np.where(hidden_HW[place], visible_HW, fused_HW)
                share_HW = np.where(hidden_HW[place], 1, share_HW)
            weight_HW[place] = np.rint(255 * share_HW)
            return recolour(tile_HWC, visible_HW, fused_HW)

        fused = map_picture(visible, fuse, tile_px=tile_px, overlap_px=overlap_px, multiple_px=multiple_px)
        weights = Picture(weight_HW[:, :, None])
        facts: dict[str, JSON] = {"visible_weight": round(float(weight_HW.mean()) / 255, 4), "tiles": tiles}
        return TaskResult(fused, {**facts, "experts": _shares(seen)}, {"weights": weights})

    def _measure(self, visible: Picture, infrared_HW: NDArray[np.float32]) -> Context:
        """Picture-wide statistics from a thumbnail of the pair: gates and channel gates then agree in all tiles."""
        visible_HW = luma(to_float_tile(shrink(visible.pixels_HWC, WHOLE_PX)))
        small_HW = shrink(infrared_HW[:, :, None], WHOLE_PX)[:, :, 0]
        context = self.new_context()
        self.model(self._to_tensor(visible_HW), self._to_tensor(small_HW), context)
        return context

    def _to_tensor(self, image_HW: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(image_HW, np.float32))[None, None].to(self.device)


def luma(rgb_HWC: NDArray[np.float32]) -> NDArray[np.float32]:
    """BT.601 luma of full range, (H, W, 3) -> (H, W), both in [0, 1]."""
    return np.asarray(rgb_HWC @ _LUMA, dtype=np.float32)


def recolour(
    rgb_HWC: NDArray[np.float32], luma_HW: NDArray[np.float32], fused_HW: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The picture with its luma replaced, its colour kept without fringes: (H, W, 3), not clipped.

    The differences of the channels to the luma are kept, so brightness alone changes. They shrink with a luma that
    falls (or a dark object would glow in its old colour), and where the visible picture is so dark that its colour is
    noise.
    """
    falls_HW = np.minimum(1, fused_HW / np.maximum(luma_HW, 1e-3))
    lit_HW = np.clip((luma_HW - _DARK) / (_DIM - _DARK), 0, 1)
    keep_HW = falls_HW * lit_HW * lit_HW * (3 - 2 * lit_HW)
    return np.asarray(fused_HW[..., None] + keep_HW[..., None] * (rgb_HWC - luma_HW[..., None]), np.float32)


def _shares(context: Context) -> dict[str, JSON]:
    """Of every picture-level gate the chosen experts with their weights: {"global": {"2": 0.61, "0": 0.39}}."""
    shares: dict[str, JSON] = {}
    for name, record in context.records.items():
        routing = record.routing
        if routing.index_NK.shape[0] == 1:
            chosen = zip(routing.index_NK[0].tolist(), routing.weight_NK[0].tolist(), strict=True)
            shares[name] = {str(expert): round(weight, 3) for expert, weight in chosen if weight > _SHARE_FLOOR}
    return shares
