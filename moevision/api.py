"""The one-liners. Everything heavy is imported inside the functions."""

from collections.abc import Collection
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
    from moevision.tasks.restoration.predict import RestorationTask

DEFAULT_MODEL = {"restoration": "restoration-small"}


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
    builders = {"restoration": _build_restoration}
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
    descriptor = load(model, device=device)
    if descriptor.task != "restoration":
        raise UsageError(f"{model}: a {descriptor.task} model; choose a restoration model from `moevision models`")
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
    task = _cached_task(str(model), device, precision, tile, strength, told)
    return wrap(task((picture,)).picture)


_CACHE: dict[tuple[Any, ...], "RestorationTask"] = {}


def _cached_task(*key: Any) -> "RestorationTask":
    # A loop over restore() must not load the weights each time; only the last task is kept.
    if key not in _CACHE:
        model, device, precision, tile, strength, weather = key
        task = restoration_task(
            model=model, device=device, precision=precision, tile_px=tile, strength=strength, weather=weather
        )
        _CACHE.clear()
        _CACHE[key] = task
    return _CACHE[key]


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
