"""The one-liners. Everything heavy is imported inside the functions."""

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moevision.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from torch import nn

    from moevision.checkpoint import ModelDescriptor
    from moevision.imaging.picture import Picture
    from moevision.tasks.fusion.predict import FusionTask
    from moevision.tasks.restoration.predict import RestorationTask


def list_models() -> list[dict[str, Any]]:
    """Manifest entries of the shipped models: name, task, params, bytes, sha256, metrics, limits."""
    from moevision.checkpoint import read_manifest

    return read_manifest()


def load(name_or_path: str | PathLike[str] = "restoration-small", *, device: str = "auto") -> "ModelDescriptor":
    """Load a shipped model by name, or any of our .safetensors files.

    Returns:
        A descriptor whose `.model` is the torch network in eval mode and which knows task, sizes and precisions.

    Raises:
        WeightsError: unknown name, missing, damaged or foreign file.
    """
    from moevision.checkpoint import load_model
    from moevision.devices import pick_device

    return load_model(str(name_or_path), build_model, device=pick_device(device))


def build_model(task: str, config: dict[str, Any]) -> "nn.Module":
    """The network of a weights header; raises KeyError for an unknown task."""
    builders = {"restoration": _build_restoration, "fusion": _build_fusion}
    return builders[task](config)


def restoration_task(
    *, model: str | PathLike[str] = "restoration-small", device: str = "auto", precision: str = "auto",
    tile_px: int | None = None, strength: float = 1.0, weather: str | Collection[str] | None = None,
) -> "RestorationTask":  # fmt: skip
    """The restoration Task that the batch command, the API and evaluation all run.

    Raises:
        UsageError: strength outside [0, 1], an unknown weather, or weights of another task. WeightsError: weights
            cannot be loaded.
    """
    from moevision.devices import pick_device, pick_precision
    from moevision.tasks.restoration.predict import RestorationTask

    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength must be between 0 and 1, got {strength}")
    descriptor = _load_for("restoration", model, device)
    torch_device = pick_device(device)
    dtype = pick_precision(torch_device, precision)
    return RestorationTask(
        descriptor, device=torch_device, dtype=dtype, tile_px=tile_px, strength=strength, weather=weather
    )


def restore(
    source: Any, *, model: str | PathLike[str] = "restoration-small", device: str = "auto", precision: str = "auto",
    tile: int | None = None, strength: float = 1.0, weather: str | Collection[str] | None = None,
) -> Any:  # fmt: skip
    """Restore one picture taken in rain, raindrops, snow or haze.

    Args:
        source: a path, an array (HxW, HxWx1/2/3/4; uint8, uint16 or float32 in [0, 1]) or a PIL image.
        model: name from `list_models()` or a .safetensors path.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto", "fp32", "bf16".
        tile: edge of a tile in pixels; 0 = whole picture, None = automatic.
        strength: 0 keeps the input, 1 is full restoration.
        weather: what to take away, one or several of "rain", "drops", "snow", "haze"; None = what is detected, an
            empty list = nothing.

    Returns:
        The same kind, size, depth and channels as the source; an array (upright, RGB or grey) for a path.

    Raises:
        InputError: the picture cannot be read. UsageError: bad option. WeightsError: model cannot be loaded.
    """
    picture, wrap = _picture_of(source)
    from moevision.tasks.restoration.weathers import known_weathers

    told = None if weather is None else known_weathers(weather)  # the key of the cache
    key = "restore", str(model), device, precision, tile, strength, told
    task = _cached(key, lambda: restoration_task(
        model=model, device=device, precision=precision, tile_px=tile, strength=strength, weather=told
    ))  # fmt: skip
    return wrap(task((picture,)).picture)


def fusion_task(
    *, model: str | PathLike[str] = "fusion-small", device: str = "auto", precision: str = "auto",
    tile_px: int | None = None, register: str | PathLike[str] = "none",
    thermal_range: "str | tuple[float, float]" = "auto",
) -> "FusionTask":  # fmt: skip
    """The fusion Task that the batch command, the API and evaluation all run.

    Raises:
        UsageError: an unreadable homography, a bad range, or weights of another task. WeightsError: weights cannot be
            loaded.
    """
    from moevision.devices import pick_device, pick_precision
    from moevision.imaging.registration import read_homography
    from moevision.tasks.fusion.infrared import parse_range
    from moevision.tasks.fusion.predict import FusionTask

    how = register if register in ("none", "ecc") else read_homography(Path(register))
    values = parse_range(thermal_range) if isinstance(thermal_range, str) else thermal_range
    descriptor = _load_for("fusion", model, device)
    torch_device = pick_device(device)
    dtype = pick_precision(torch_device, precision)
    return FusionTask(
        descriptor, device=torch_device, dtype=dtype, tile_px=tile_px, register=how, thermal_range=values
    )  # fmt: skip


def fuse(
    infrared: Any, visible: Any, *, model: str | PathLike[str] = "fusion-small", device: str = "auto",
    precision: str = "auto", tile: int | None = None, register: str | PathLike[str] = "none",
    thermal_range: "str | tuple[float, float]" = "auto",
) -> Any:  # fmt: skip
    """Fuse an infrared and a visible picture of the same view.

    Args:
        infrared: a path, an array or a PIL image as for `restore`: grey, 8 or 16 bit (counts of a thermal camera too)
            or float; of the visible picture's shape, but not necessarily of its size.
        visible: the same kinds.
        model: name from `list_models()` or a .safetensors path.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto", "fp32", "bf16".
        tile: edge of a tile in pixels; 0 = whole picture, None = automatic.
        register: "none"; "ecc" brings the infrared picture onto the visible one where that helps; or a JSON file with a
            3x3 homography from points of the visible picture to the infrared one.
        thermal_range: of 16-bit and float infrared: "auto", "full", "LOW,HIGH" or (low, high).

    Returns:
        The kind, size, depth and channels of `visible`; an array (upright, RGB or grey) for a path.

    Raises:
        InputError: a picture cannot be read, or the two do not show the same view. UsageError: bad option.
        WeightsError: model cannot be loaded.
    """
    thermal, _ = _picture_of(infrared)
    picture, wrap = _picture_of(visible)
    key = "fuse", str(model), device, precision, tile, str(register), thermal_range
    task = _cached(key, lambda: fusion_task(
        model=model, device=device, precision=precision, tile_px=tile, register=register, thermal_range=thermal_range
    ))  # fmt: skip
    return wrap(task((thermal, picture)).picture)


_CACHE: dict[tuple[Any, ...], Any] = {}


def _cached(key: tuple[Any, ...], make_task: Callable[[], Any]) -> Any:
    # A loop over restore() must not load the weights each time; only the last task is kept.
    if key not in _CACHE:
        task = make_task()
        _CACHE.clear()
        _CACHE[key] = task
    return _CACHE[key]


def _load_for(task: str, model: str | PathLike[str], device: str) -> "ModelDescriptor":
    descriptor = load(model, device=device)
    if descriptor.task != task:
        raise UsageError(f"{model}: a {descriptor.task} model; choose a {task} model from `moevision models`")
    return descriptor


def _picture_of(source: Any) -> tuple["Picture", Any]:
    import numpy as np
    import PIL.Image

    from moevision.imaging.picture import picture_from_array
    from moevision.imaging.read import picture_from_pil, read_picture

    if isinstance(source, str | PathLike):
        return read_picture(Path(source)), _to_array
    if isinstance(source, PIL.Image.Image):
        return picture_from_pil(source), _to_pil
    if isinstance(source, np.ndarray):
        return picture_from_array(source), lambda picture: _to_array(picture).reshape(source.shape)
    raise InputError(f"{type(source).__name__} is not a picture; pass a path, a numpy array or a PIL image")


def _to_array(picture: "Picture") -> "np.ndarray":
    import numpy as np

    if picture.alpha_HW is None:
        return picture.pixels_HWC
    return np.concatenate([picture.pixels_HWC, picture.alpha_HW[..., None]], axis=2)


def _to_pil(picture: "Picture") -> "PIL.Image.Image":
    import PIL.Image

    array = _to_array(picture)
    return PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _build_restoration(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.restoration.model import RestorationConfig, RestorationNet

    return RestorationNet(RestorationConfig.from_dict(config))


def _build_fusion(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.fusion.model import FusionConfig, FusionNet

    return FusionNet(FusionConfig.from_dict(config))
