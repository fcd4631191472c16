"""Weights on disk and in memory.

A weights file is safetensors; its header carries the whole config, so a file needs nothing beside it to be loaded. The
manifest lists the shipped files with their checksums (safetensors has none of its own: a flipped data byte would load).
A loaded model travels in a `ModelDescriptor`, which knows what the network needs from its caller.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moevision.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import nn

FORMAT = "1"
_MAX_HEADER_BYTES = 4 * 2**20


@dataclass(frozen=True)
class SizeRequirement:
    """What the network needs of a picture's size: at least `minimum_px`, a multiple of `multiple_px`.

    Our networks pad inside, so both are 1 for a caller; a tiler should still start tiles at multiples of
    `tile_multiple_px`, the coarsest stride.
    """

    minimum_px: int = 1
    multiple_px: int = 1
    tile_multiple_px: int = 8


@dataclass(frozen=True)
class ModelDescriptor:
    """A loaded network and everything a caller may want to know of it.

    Attributes:
        name: manifest name or file stem.
        task: "restoration", ...
        model: the network in eval mode, channels-last.
        config: the header's config.
        training: how the weights were made (preset, seed, steps, ...).
        size: size requirement.
        tile_px, overlap_px: what a tiler should use on the CPU; the overlap covers the local receptive field.
        statistics_px: side of the mosaic on which picture-wide statistics are measured when a picture is tiled.
        precisions: float types the network was checked with.
    """

    name: str
    task: str
    model: "nn.Module"
    config: dict[str, Any]
    training: dict[str, Any]
    size: SizeRequirement = SizeRequirement()
    tile_px: int = 512
    overlap_px: int = 64
    statistics_px: int = 512
    precisions: tuple[str, ...] = ("fp32", "bf16")


def weights_folder() -> Path:
    """The folder of shipped weights."""
    return Path(str(resources.files("moevision.weights")))


def read_manifest() -> list[dict[str, Any]]:
    """Entries of the shipped models (name, file, bytes, sha256, task, params, ...). No torch needed."""
    path = weights_folder() / "manifest.json"
    try:
        return list(json.loads(path.read_text())["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: the list of shipped weights cannot be read ({error}); reinstall moevision"
        ) from None


def find_weights(name_or_path: str | Path) -> tuple[Path, dict[str, Any] | None]:
    """The file of a shipped model's name, or a path as it is; with the manifest entry that covers it, if any.

    Raises WeightsError for an unknown name or a missing file.
    """
    for entry in read_manifest():
        if entry["name"] == str(name_or_path):
            return weights_folder() / entry["file"], entry
    path = Path(name_or_path)
    if path.suffix == "" and path.parent == Path() and not path.exists():
        names = ", ".join(entry["name"] for entry in read_manifest())
        raise WeightsError(f"{name_or_path}: no such model; shipped are: {names}")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: only .safetensors weights are read; pickle files can run code and are refused")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path or use a name from `moevision models`")
    return path, None


def read_task(name_or_path: str | Path) -> str:
    """The task of a shipped model, or of any weights file of ours, from its header. No torch needed.

    Raises WeightsError as `load_model` does, but does not look at the tensors.
    """
    path, entry = find_weights(name_or_path)
    return str(entry["task"]) if entry else _read_header(path, _read_checked(path, None))["task"]


def check_task(model: str | Path, task: str, wanted: str) -> None:
    """Raises UsageError where a model of one task is used for another."""
    if task != wanted:
        raise UsageError(f"{model}: a {task} model; choose one for {wanted} from `moevision models`")


def file_sha256(path: Path) -> str:
    """Of a weights file; raises WeightsError if it cannot be read."""
    return hashlib.sha256(_read_checked(path, None)).hexdigest()


def save_model(model: "nn.Module", path: Path, *, task: str, training: dict[str, Any]) -> None:
    """Write a model whose `config.to_dict()` describes it; tensors are stored in float32, contiguous."""
    from safetensors.torch import save_file

    header = {
        "format": FORMAT,
        "task": task,
        "config": json.dumps(model.config.to_dict()),  # type: ignore[union-attr, operator]
        "training": json.dumps(training),
    }
    tensors = {name: t.detach().float().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, path, metadata=header)


def load_model(
    name_or_path: str | Path, build: Callable[[str, dict[str, Any]], "nn.Module"], *, device: Any = "cpu"
) -> ModelDescriptor:
    """Load a shipped model by name or any weights file of ours.

    Args:
        name_or_path: manifest name or path of a .safetensors file.
        build: (task, config) -> network; raises KeyError, TypeError or ValueError for a config it does not know.
        device: where the tensors go.

    Raises:
        WeightsError: unknown name, missing, damaged or foreign file; one line with the remedy.
    """
    import torch

    path, entry = find_weights(name_or_path)
    data = _read_checked(path, entry)
    header = _read_header(path, data)
    model = _assemble(path, header, data, build)
    model = model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    name = entry["name"] if entry else path.stem
    config, training = json.loads(header["config"]), json.loads(header["training"])
    size = SizeRequirement(tile_multiple_px=getattr(model, "tile_multiple_px", SizeRequirement.tile_multiple_px))
    return ModelDescriptor(name, header["task"], model, config, training, size)


def _read_checked(path: Path, entry: dict[str, Any] | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); reinstall moevision or check the path"
        ) from None
    if entry is not None and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise WeightsError(f"{path}: damaged (its checksum is not the manifest's); reinstall moevision")
    return data


def _read_header(path: Path, data: bytes) -> dict[str, str]:
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or not 0 < length <= min(_MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError("no safetensors header")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        version, _, _, _ = (
            header["format"],
            header["task"],
            json.loads(header["config"]),
            json.loads(header["training"]),
        )
    except (ValueError, KeyError, TypeError):
        raise WeightsError(f"{path}: not a moevision weights file, or damaged; download it again") from None
    if version != FORMAT:
        raise WeightsError(f"{path}: weights format {version} is newer than this moevision; upgrade moevision")
    return dict(header)


def _assemble(
    path: Path, header: dict[str, str], data: bytes, build: Callable[[str, dict[str, Any]], "nn.Module"]
) -> "nn.Module":
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        model = build(header["task"], json.loads(header["config"]))
        model.load_state_dict(load(data))
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged ({error}); download it again") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: does not fit this version of moevision ({reason}); train or download it again"
        ) from None
    return model
