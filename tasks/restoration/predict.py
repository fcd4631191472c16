"""From a picture to the restored picture: tiles, picture-wide statistics, strength, detected weather."""

from collections.abc import Collection
from typing import cast

import numpy as np
import torch
from torch import Tensor

from moevision.checkpoint import ModelDescriptor
from moevision.devices import retry_smaller
from moevision.engine.task import JSON, TaskResult
from moevision.errors import UsageError
from moevision.imaging.picture import Picture, to_float_tile
from moevision.imaging.scaling import shrink
from moevision.imaging.tiling import Tile, map_picture, plan_tiles
from moevision.moe import Context, Window
from moevision.tasks.restoration.experts_map import ExpertsMap, mapped_layer
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.restoration.portable_net import PortableNet
from moevision.tasks.restoration.weathers import WEATHERS, known_weathers

# Up to this size a picture is one tile and measures its own statistics; an exported network has its own limit.
WHOLE_PX = 768
_PATCH_PX = 128


class RestorationTask:
    """Restores one picture per call; implements the engine's Task protocol.

    Args:
        descriptor: a loaded restoration model.
        device, dtype: where and in which float type the network runs; the model is moved there.
        tile_px: edge of a tile; 0 = the whole picture at once, None = the descriptor's choice.
        strength: 0 returns the input, 1 the network's output, between a linear mix.
        weather: what to take away, one name or several of WEATHERS, none = nothing; None = what the network detects.
        network: an exported network that computes instead of the descriptor's.
        experts_map: whether results carry the map `experts`, see `experts_map.ExpertsMap`.

    Raises:
        UsageError: an unknown weather, or a map of experts asked for of a network that has none to show.
    """

    name = "restore"

    def __init__(
        self, descriptor: ModelDescriptor, *, device: torch.device, dtype: torch.dtype = torch.float32,
        tile_px: int | None = None, strength: float = 1.0, weather: str | Collection[str] | None = None,
        network: PortableNet | None = None, experts_map: bool = False,
    ) -> None:  # fmt: skip
        self.weather = None if weather is None else known_weathers(weather)
        self.descriptor, self.device = descriptor, device
        self.model = network or cast("RestorationNet", descriptor.model.to(device=device, dtype=dtype))
        self.whole_px = network.whole_px if network else WHOLE_PX
        self.tile_px, self.strength = tile_px, strength
        if experts_map:
            _check_experts(self.model)
        self.experts_map = experts_map
        self._told_BW = None if self.weather is None else _told(self.weather).to(device)

    @torch.inference_mode()
    def __call__(self, pictures: tuple[Picture, ...]) -> TaskResult:
        """Restore `pictures[0]`; the result has its size, depth, alpha and metadata.

        Raises MemoryExhaustedError when not even tiles of 128 px fit.

        Facts: `weather` (the likeliest detected, or "clean"), `confidence`, `weathers` (probability of each),
        `tiles`, `mean_change` (mean absolute change of the pixels, of full scale). With `experts_map` also `experts`
        and `first_weight`, and the map `experts`.
        """
        (picture,) = pictures
        height, width = picture.pixels_HWC.shape[:2]
        return retry_smaller(lambda tile_px: self._restore(picture, tile_px), self._tile_px(height, width))

    def _restore(self, picture: Picture, tile_px: int) -> TaskResult:
        height, width = picture.pixels_HWC.shape[:2]
        overlap_px = min(self.descriptor.overlap_px, tile_px // 2)
        multiple_px = self.descriptor.size.tile_multiple_px
        tiles = sum(len(row) for row in plan_tiles(height, width, tile_px, overlap_px, multiple_px))
        measured = self._measure(picture) if tiles > 1 or max(height, width) > self.whole_px else None
        seen = measured or Context()
        experts = ExpertsMap(cast("RestorationNet", self.model), height, width) if self.experts_map else None

        def restore(tile_HWC: np.ndarray, tile: Tile) -> np.ndarray:
            context = seen
            if measured is not None:
                window = Window(tile.y0, tile.x0, height, width)
                context = Context(frozen_statistics=measured.statistics, window=window)
            restored_HWC = self._restore_tile(tile_HWC, context)
            if experts is not None:
                experts.add(context, tile)
            return restored_HWC

        restored = map_picture(picture, restore, tile_px=tile_px, overlap_px=overlap_px, multiple_px=multiple_px)
        facts = {**self._weather(seen), "tiles": tiles, "mean_change": _change(picture, restored)}
        if experts is None:
            return TaskResult(restored, facts)
        return TaskResult(restored, facts | experts.facts(), {"experts": experts.picture()})

    def _tile_px(self, height: int, width: int) -> int:
        if self.tile_px is not None:
            return self.tile_px
        return 0 if max(height, width) <= self.whole_px else self.descriptor.tile_px

    def _restore_tile(self, tile_HWC: np.ndarray, context: Context) -> np.ndarray:
        x_BCHW = self._to_tensor(tile_HWC)
        restored_BCHW = self.model(x_BCHW, context, self._told_BW).restored_BCHW
        restored_HWC = restored_BCHW[0].permute(1, 2, 0).float().clamp_(0, 1).cpu().numpy()
        if self.strength == 1.0:
            return restored_HWC
        return np.asarray(tile_HWC + np.float32(self.strength) * (restored_HWC - tile_HWC))

    def _measure(self, picture: Picture) -> Context:
        """Picture-wide statistics: the scene map from a thumbnail, the rest from a mosaic of patches at native scale.

        Rain streaks and small drops vanish in a thumbnail; patches keep what the fine stages must see. They are spread
        evenly over the picture and keep their order, so the scene map stretched over the mosaic fits them.
        """
        context = Context()
        if self.model.scene is not None:
            small_BCHW = self._to_tensor(to_float_tile(shrink(picture.pixels_HWC, WHOLE_PX)))
            context.frozen_statistics = {"scene": self.model.scene.measure(small_BCHW, Context())}
        mosaic_HWC = statistics_mosaic(picture.pixels_HWC, self.descriptor.statistics_px)
        self.model(self._to_tensor(to_float_tile(mosaic_HWC)), context, self._told_BW)
        return context

    def _to_tensor(self, image_HWC: np.ndarray) -> Tensor:
        # HWC memory seen as BCHW is exactly torch's channels-last layout: no copy.
        return torch.from_numpy(image_HWC).permute(2, 0, 1)[None].to(self.device)

    def _weather(self, context: Context) -> dict[str, JSON]:
        probability_W = self.model.judge(context)[0][0].float().sigmoid().tolist()
        weathers = dict(zip(WEATHERS, (round(p, 3) for p in probability_W), strict=True))
        likeliest = max(weathers, key=lambda weather: weathers[weather])
        seen = weathers[likeliest] >= 0.5
        confidence = weathers[likeliest] if seen else round(1 - weathers[likeliest], 3)
        return {"weather": likeliest if seen else "clean", "confidence": confidence, "weathers": dict(weathers)}


def _check_experts(model: RestorationNet | PortableNet) -> None:
    if isinstance(model, PortableNet):
        raise UsageError("an exported network does not say which experts worked; use --runtime torch and its weights")
    mapped_layer(model)


def _told(weather: tuple[str, ...]) -> Tensor:
    return torch.tensor([[float(name in weather) for name in WEATHERS]])


def statistics_mosaic(pixels_HWC: np.ndarray, side_px: int) -> np.ndarray:
    """An evenly spaced grid of native-scale patches set side by side.

    Args:
        pixels_HWC: the picture, any depth.
        side_px: side of the mosaic; a picture that is smaller in one direction fills that direction whole.

    Returns:
        (min(H, side), min(W, side), C) of the same dtype.
    """
    rows, columns = (_patch_rows(length, side_px) for length in pixels_HWC.shape[:2])
    return np.ascontiguousarray(pixels_HWC[rows][:, columns])


def _patch_rows(length: int, side_px: int) -> np.ndarray:
    if length <= side_px:
        return np.arange(length)
    count = max(1, side_px // _PATCH_PX)
    starts = np.linspace(0, length - _PATCH_PX, count).round().astype(int)
    return (starts[:, None] + np.arange(_PATCH_PX)).reshape(-1)


def _change(before: Picture, after: Picture) -> float:
    # Every 4th pixel of every 4th row tells the mean as well, at a sixteenth of the time and memory.
    a, b = (picture.pixels_HWC[::4, ::4].astype(np.float32) for picture in (before, after))
    full_scale = {"uint8": 255.0, "uint16": 65535.0}.get(before.pixels_HWC.dtype.name, 1.0)
    return round(float(np.abs(a - b).mean()) / full_scale, 5)
