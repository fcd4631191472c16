"""From a picture to the class of every pixel: shrunk to what the network was made for, enlarged again, tiled if large.

source -> work size -> network (tiles: blended logits) -> logits at stride 4 -> bands of rows: enlarged, likeliest class
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moevision.backbone.inverted import fold_norms
from moevision.checkpoint import ModelDescriptor
from moevision.devices import retry_smaller
from moevision.engine.task import JSON, Task, TaskResult
from moevision.errors import UsageError
from moevision.imaging.metadata import Metadata
from moevision.imaging.picture import Picture, require_finite, to_float_tile, warn_if_clipped
from moevision.imaging.scaling import shrink
from moevision.imaging.tiling import blend_weights, extend_edges, plan_tiles
from moevision.tasks.segmentation.areas import as_facts
from moevision.tasks.segmentation.labels import draw_overlay, label_bands
from moevision.tasks.segmentation.model import STRIDE, SegmentationConfig, SegmentationNet, set_active_experts
from moevision.tasks.segmentation.portable import PortableNet
from moevision.tasks.segmentation.video import segment_video

WORK_PX = 640  # longer side of what the network sees, where its weights do not say another
WHOLE_PX = 1024  # up to this work size a picture is one tile
TILE_PX, OVERLAP_PX = 640, 128

Palette = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel of one picture.

    Attributes:
        ids_HW: uint8, places in `classes`; of the picture's size.
        classes: their names.
        palette: a colour (red, green, blue; 0 to 255) for each class.
        areas: share of the picture by class, 0 to 1; they add up to one.
        picture: the source, also where it was restored before it was labelled.
        facts: what else there is to say: `tiles`, and of a picture that was restored first its `weather`.
    """

    ids_HW: NDArray[np.uint8]
    classes: tuple[str, ...]
    palette: Palette
    areas: dict[str, float]
    picture: Picture
    facts: dict[str, JSON]

    def overlay(self, opacity: float = 0.5) -> NDArray[np.uint8]:
        """The classes' colours over the picture, HxWx3 uint8 RGB; opacity from 0 to 1."""
        return draw_overlay(self.picture.pixels_HWC, self.ids_HW, self.palette, opacity)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where one class is, HxW. Raises KeyError for a class that the model does not know."""
        if name not in self.classes:
            raise KeyError(f"{name}: not one of {', '.join(self.classes)}")
        return np.asarray(self.ids_HW == self.classes.index(name))


class SegmentationTask:
    """Labels one picture per call, or a video; implements the engine's VideoTask protocol.

    Args:
        descriptor: a loaded segmentation model; it is not changed, the task works with a copy.
        device, dtype: where and in which float type the network runs.
        tile_px: edge of a tile of the picture at work size; 0 = the whole picture at once, None = automatic.
        size_px: longer side of what the network sees; larger pictures are shrunk to it, smaller ones stay. 0 = every
            picture as it is, None = what the weights were made for.
        experts: how many experts every item uses; None = as the weights were made with.
        restore_first: what is done to a picture before it is labelled, such as a RestorationTask.
        overlay: whether results carry the map `overlay`.
        palette: whether the picture of ids carries the classes' colours.
        network: an exported network that computes instead of the descriptor's, in fp32 on the CPU.

    Raises:
        UsageError: sizes or a number of experts that cannot be.
    """

    name = "segment"

    def __init__(
        self, descriptor: ModelDescriptor, *, device: torch.device, dtype: torch.dtype = torch.float32,
        tile_px: int | None = None, size_px: int | None = None, experts: int | None = None,
        restore_first: Task | None = None, overlay: bool = True, palette: bool = False,
        network: PortableNet | None = None,
    ) -> None:  # fmt: skip
        if size_px is None:
            size_px = int(descriptor.training.get("work_px", WORK_PX))
        if size_px and size_px < 32:
            raise UsageError(f"size {size_px}: use 0 for the picture as it is, or at least 32 px")
        config = SegmentationConfig.from_dict(descriptor.config)
        self.classes, self.palette = config.classes, config.palette
        if len(self.classes) > 256:
            raise UsageError(f"{descriptor.name}: has {len(self.classes)} classes, more than 8 bits can tell apart")
        if network is not None and experts is not None:
            raise UsageError(f"--experts {experts}: an exported network's are fixed; leave the option out")
        self.descriptor, self.device = descriptor, device
        self.dtype = dtype if network is None else torch.float32
        self.model = network or _prepared(descriptor, experts).to(device=device, dtype=dtype)
        self._multiple_px = config.backbone.strides[-1]
        self.tile_px, self.size_px, self.restore_first = tile_px, size_px, restore_first
        self._with_overlay, self._with_palette = overlay, palette

    def __call__(self, pictures: tuple[Picture, ...]) -> TaskResult:
        """Label `pictures[0]`; the result is a grey picture of its size whose values are class ids.

        Raises MemoryExhaustedError when not even tiles of 128 px fit, InputError where the network yields NaN.

        Facts: `classes` (how many occur), `area.NAME` (share of the picture, for every class of the model), `tiles`,
        and of a picture that was restored first what the restoration says. Maps: `overlay`. Views: picture, classes.
        """
        (picture,) = pictures
        found = self.segment(picture)
        ids = Picture(found.ids_HW[:, :, None], palette=self.palette if self._with_palette else None)
        maps = {}
        if self._with_overlay:
            # The profile says what the colours mean; place and time are no business of an overlay.
            icc = picture.metadata.icc if picture.pixels_HWC.shape[2] == 3 else None
            maps["overlay"] = Picture(found.overlay(), metadata=Metadata(icc=icc))
        occur = sum(share > 0 for share in found.areas.values())
        facts: dict[str, JSON] = {"classes": occur, **as_facts(found.areas), **found.facts}
        return TaskResult(ids, facts, maps, partial(_views, picture, found.ids_HW, self.palette))

    def video(
        self, source: Path, output: Path, *, replaces: bool = False, follow: Callable[[int, int | None], None]
    ) -> dict[str, JSON]:
        """Label every frame of a video, see `segment_video`."""
        return segment_video(self, source, output, replaces=replaces, follow=follow)

    @torch.inference_mode()
    def segment(self, picture: Picture) -> Segmentation:
        """Label one picture. Raises as `__call__`."""
        facts: dict[str, JSON] = {}
        seen = picture
        if self.restore_first is not None:
            restored = self.restore_first((picture,))
            seen = restored.picture
            facts = {key: restored.facts[key] for key in ("weather", "confidence") if key in restored.facts}
        warn_if_clipped(seen)
        height, width = picture.pixels_HWC.shape[:2]
        small_HWC = shrink(_without_hidden(seen), self.size_px)
        seen_hw = small_HWC.shape[0], small_HWC.shape[1]
        logits_KHW, tiles = retry_smaller(lambda tile_px: self._logits(small_HWC, tile_px), self._tile_px(*seen_hw))
        ids_HW = np.empty((height, width), np.uint8)
        counts_K = np.zeros(len(self.classes), np.int64)
        for top, band_HW in label_bands(logits_KHW, STRIDE, seen_hw, (height, width)):
            ids_HW[top : top + len(band_HW)] = band_HW
            counts_K += np.bincount(band_HW.ravel(), minlength=len(self.classes))
        areas = {name: int(count) / ids_HW.size for name, count in zip(self.classes, counts_K, strict=True)}
        return Segmentation(ids_HW, self.classes, self.palette, areas, picture, {"tiles": tiles, **facts})

    def _tile_px(self, height: int, width: int) -> int:
        if self.tile_px is not None:
            return self.tile_px
        return 0 if max(height, width) <= WHOLE_PX else TILE_PX

    def _logits(self, image_HWC: np.ndarray, tile_px: int) -> tuple[Tensor, int]:
        """Logits (K, H', W') at stride 4 of the image padded to the coarsest stride, and the number of tiles."""
        tile_px += -tile_px % self._multiple_px
        overlap_px = min(OVERLAP_PX, tile_px // 2)
        height, width = image_HWC.shape[:2]
        rows = plan_tiles(height, width, tile_px, overlap_px, self._multiple_px)
        along_y = self._on_grid([(row[0].y0, row[0].y1) for row in rows], overlap_px)
        along_x = self._on_grid([(tile.x0, tile.x1) for tile in rows[0]], overlap_px)
        size = along_y[-1][0].stop, along_x[-1][0].stop
        logits_KHW = torch.zeros(len(self.classes), *size, device=self.device)
        for row, (y, weight_H) in zip(rows, along_y, strict=True):
            for tile, (x, weight_W) in zip(row, along_x, strict=True):
                tile_KHW = self._run(image_HWC[tile.y0 : tile.y1, tile.x0 : tile.x1])
                logits_KHW[:, y, x] += tile_KHW * (weight_H[:, None] * weight_W)
        require_finite(logits_KHW.sum(0).cpu().numpy(), "values from the network", "retry with --precision fp32")
        return logits_KHW, sum(len(row) for row in rows)

    def _on_grid(self, spans: list[tuple[int, int]], overlap_px: int) -> list[tuple[slice, Tensor]]:
        """Where tiles lie on the grid of the logits, each padded to the coarsest stride, and their weights there."""
        padded = [(start // STRIDE, (stop + -stop % self._multiple_px) // STRIDE) for start, stop in spans]
        weights = blend_weights(padded[-1][1], padded, overlap_px // STRIDE)
        return [
            (slice(*span), torch.from_numpy(weight_N).to(self.device))
            for span, weight_N in zip(padded, weights, strict=True)
        ]

    def _run(self, image_HWC: np.ndarray) -> Tensor:
        # HWC memory seen as BCHW is exactly torch's channels-last layout: no copy.
        x_BCHW = torch.from_numpy(to_float_tile(image_HWC)).permute(2, 0, 1)[None].to(self.device, self.dtype)
        return self.model.logits(x_BCHW)[0][0].float()


def _views(picture: Picture, ids_HW: NDArray[np.uint8], palette: Palette, longer_px: int) -> dict[str, Picture]:
    """The picture and its classes' colours over it, both small."""
    small_HWC = shrink(picture.pixels_HWC, longer_px)
    # Ids have no mean: of every patch the one in its middle.
    rows, columns = (
        (np.arange(small) * size + size // 2) // small
        for small, size in zip(small_HWC.shape[:2], ids_HW.shape, strict=True)
    )
    overlay_HWC = draw_overlay(small_HWC, ids_HW[np.ix_(rows, columns)], palette)
    return {"picture": Picture(small_HWC), "classes": Picture(overlay_HWC)}


def _without_hidden(picture: Picture) -> np.ndarray:
    """The pixels, with the nearest visible colour where nothing is seen: what lies there is arbitrary."""
    alpha_HW = picture.alpha_HW
    if alpha_HW is None or alpha_HW.all():
        return picture.pixels_HWC
    return extend_edges(picture.pixels_HWC, np.asarray(alpha_HW == 0))


def _prepared(descriptor: ModelDescriptor, experts: int | None) -> SegmentationNet:
    """A copy of the network that computes with so many experts."""
    net = cast("SegmentationNet", copy.deepcopy(descriptor.model).eval())
    if experts is not None:
        try:
            set_active_experts(net, experts)
        except ValueError as error:
            raise UsageError(f"--experts {experts}: {error}; choose another number or leave the option out") from None
    fold_norms(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
