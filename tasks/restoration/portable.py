"""The restoration network for other programs: whole pictures in and out, or tiles of pictures already measured."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moevision.export import EXAMPLE_SIDES_PX, Portable
from moevision.moe import Context, Window
from moevision.tasks.restoration.model import RestorationNet
from moevision.tasks.restoration.weathers import WEATHERS

SMALLEST_PX = 16
"""What is traced holds from here; files were seen to work below."""
_STATISTIC = "statistic."
_WINDOW = "window"


class WholePicture(nn.Module):
    """(1, 3, H, W) and what to take away -> the restored picture in [0, 1], and how likely each weather is."""

    def __init__(self, net: RestorationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, picture_1CHW: Tensor, weather_1W: Tensor) -> tuple[Tensor, Tensor]:
        """As `RestorationNet.forward` without a context."""
        result = self.net(picture_1CHW, None, weather_1W)
        return result.restored_BCHW.clamp(0, 1), result.weather_BW.sigmoid()


class PictureTile(nn.Module):
    """A tile of a picture whose statistics are known, by `statistics` in their order -> the restored tile."""

    def __init__(self, net: RestorationNet, statistics: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.statistics = net, statistics

    def forward(self, tile_1CHW: Tensor, weather_1W: Tensor, window_4: Tensor, *frozen: Tensor) -> tuple[Tensor]:
        """`window_4` are the numbers of a `Window`, as floats."""
        window = Window(*window_4.unbind())  # type: ignore[arg-type]  # it is computed with, and nothing else
        context = Context(frozen_statistics=dict(zip(self.statistics, frozen, strict=True)), window=window)
        return (self.net(tile_1CHW, context, weather_1W).restored_BCHW.clamp(0, 1),)


def whole_picture(net: RestorationNet, facts: Mapping[str, str]) -> Portable:
    """Inputs `picture` and `weather` (1, 4), NaN = as detected; outputs `restored` and `probability` (1, 4)."""
    weathers = [
        _detected(),
        *(_detected() for _ in EXAMPLE_SIDES_PX[2:]),
        torch.tensor([[0.0, 1.0, float("nan"), 0.5]]),
    ]
    examples = [
        {"picture": _picture(sides, seed), "weather": weather}
        for seed, (sides, weather) in enumerate(zip(EXAMPLE_SIDES_PX, weathers, strict=True))
    ]
    dynamic = {"picture": {2: ("height", SMALLEST_PX), 3: ("width", SMALLEST_PX)}}
    told = {**facts, "moevision.weathers": ",".join(WEATHERS)}
    return Portable(WholePicture(net).eval(), ("restored", "probability"), examples, dynamic, told)


def picture_tile(net: RestorationNet, facts: Mapping[str, str]) -> Portable:
    """Inputs `tile`, `weather`, `window` and every picture-wide statistic by name; output `restored`."""
    examples = []
    for seed, sides in enumerate(EXAMPLE_SIDES_PX[:3]):
        whole = _picture((sides[0] + 64, sides[1] + 32 * seed), seed)
        context = Context()
        with torch.no_grad():
            net(whole, context)
        top, left = 16, 8 * seed
        tile = whole[..., top : top + sides[0], left : left + sides[1]].contiguous()
        examples.append(tile_inputs(tile, None, Window(top, left, *whole.shape[-2:]), context.statistics))
    statistics = tuple(n.removeprefix(_STATISTIC) for n in examples[0] if n.startswith(_STATISTIC))
    dynamic = {"tile": {2: ("height", SMALLEST_PX), 3: ("width", SMALLEST_PX)}}
    if "scene" in statistics:  # its map has the form of the picture
        dynamic[f"{_STATISTIC}scene"] = {2: ("scene_height", 2), 3: ("scene_width", 2)}
    told = {**facts, "moevision.weathers": ",".join(WEATHERS)}
    return Portable(PictureTile(net, statistics).eval(), ("restored",), examples, dynamic, told)


def tile_inputs(
    tile_1CHW: Tensor, weather_1W: Tensor | None, window: Window, statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Inputs of a `picture_tile` file; None = weathers as detected."""
    place = [window.top_px, window.left_px, window.picture_height_px, window.picture_width_px]
    inputs = {"tile": tile_1CHW, "weather": _detected() if weather_1W is None else weather_1W}
    inputs[_WINDOW] = torch.tensor(place, dtype=torch.float32)
    # What only the scene branch's own blocks measured is in the scene map already; names are part of the file.
    return inputs | {f"{_STATISTIC}{n}": t for n, t in sorted(statistics.items()) if not n.startswith("scene.")}


def picture_inputs(picture_1CHW: Tensor, weather_1W: Tensor | None) -> dict[str, Tensor]:
    """Inputs of a `whole_picture` file; None = weathers as detected."""
    return {"picture": picture_1CHW, "weather": _detected() if weather_1W is None else weather_1W}


def _detected() -> Tensor:
    return torch.full((1, len(WEATHERS)), torch.nan)


def _picture(sides_px: tuple[int, int], seed: int) -> Tensor:
    """Something with smooth parts, an edge and noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = sides_px
    slope = torch.linspace(0.2, 0.8, width).expand(3, height, width)
    edge = torch.where(torch.arange(height)[:, None] > height // 2, 0.15, 0.0)
    noise = 0.1 * torch.rand(3, height, width, generator=generator)
    return (slope + edge + noise).clamp(0, 1)[None].contiguous()
