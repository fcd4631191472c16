"""The one-liners. Everything heavy is imported inside the functions."""

from collections.abc import Callable, Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moevision.errors import InputError, UsageError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from moevision.checkpoint import ModelDescriptor
    from moevision.exported import Exported
    from moevision.imaging.sources import VideoSource
    from moevision.tasks.anomaly.calibration import SiteCalibration, Threshold
    from moevision.tasks.anomaly.detector import AnomalyDetector
    from moevision.tasks.anomaly.predict import Detection
    from moevision.tasks.fusion.predict import FusionTask
    from moevision.tasks.restoration.model import RestorationNet
    from moevision.tasks.restoration.predict import RestorationTask
    from moevision.tasks.segmentation.predict import Segmentation, SegmentationTask


ANOMALY_MODEL = "anomaly-ped2"


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
    builders = {
        "restoration": _build_restoration,
        "fusion": _build_fusion,
        "anomaly": _build_anomaly,
        "segmentation": _build_segmentation,
    }
    return builders[task](config)


def export_model(model: str | PathLike[str], path: str | PathLike[str], *, to: str) -> float:
    """Write a model as a file that other programs run, and run it: it is kept only if it does what the network does.

    Args:
        model: name from `list_models()` or a .safetensors path.
        path: what to write, with the format's suffix; what is there is replaced.
        to: "onnx" (.onnx), "openvino" (.xml, and .bin beside it) or "pt2" (.pt2, for torch without moevision).

    Returns:
        The largest difference between the file's results and the network's, of pictures of several sizes.

    Raises:
        UsageError: a model that cannot be exported, an unknown format, or a suffix that is not the format's.
        WeightsError: the model cannot be loaded. MissingExtraError: what the format needs is not installed.
    """
    from moevision.export import write_file
    from moevision.exported import portable_of

    return write_file(portable_of(model, load(model, device="cpu")), Path(path), to)


def restoration_task(
    *, model: "str | PathLike[str] | ModelDescriptor" = "restoration-small", device: str = "auto",
    precision: str = "auto", tile_px: int | None = None, strength: float = 1.0,
    weather: str | Collection[str] | None = None, runtime: str = "torch", experts_map: bool = False,
) -> "RestorationTask":  # fmt: skip
    """The restoration Task that the batch command, the API and evaluation all run.

    Like the other tasks' functions it also takes a model that `load` has given: who needs several tasks loads it once.

    Args:
        runtime: "torch"; or "onnx" or "openvino", which run an exported network on the CPU: a file from
            `export_model` given as `model`, or else one made of the weights and kept in the user's cache folder.
        experts_map: whether results carry the map `experts`: which expert came first where; with torch only.

    Raises:
        UsageError: strength outside [0, 1], an unknown weather, weights of another task, or a map of experts where
            there is none. WeightsError: weights cannot be loaded. MissingExtraError: the runtime is not installed.
    """
    from moevision.devices import pick_device, pick_precision
    from moevision.tasks.restoration.portable_net import PortableNet
    from moevision.tasks.restoration.predict import RestorationTask

    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength must be between 0 and 1, got {strength}")
    if exported := _exported("restoration", model, runtime, device, precision):
        runner, descriptor, open_form = exported
        network = (
            PortableNet(runner)
            if open_form is None
            else PortableNet(runner, cast("RestorationNet", descriptor.model), lambda: open_form("tile"))
        )
        return RestorationTask(
            descriptor, device=pick_device("cpu"), tile_px=tile_px, strength=strength, weather=weather, network=network,
            experts_map=experts_map,
        )  # fmt: skip
    descriptor = _load_for("restoration", model, device)
    torch_device = pick_device(device)
    dtype = pick_precision(torch_device, precision)
    return RestorationTask(
        descriptor, device=torch_device, dtype=dtype, tile_px=tile_px, strength=strength, weather=weather,
        experts_map=experts_map,
    )  # fmt: skip


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
    from moevision.imaging.given import picture_of
    from moevision.tasks.restoration.weathers import known_weathers

    picture, wrap = picture_of(source)
    told = None if weather is None else known_weathers(weather)  # the key of the cache
    key = "restore", str(model), device, precision, tile, strength, told
    task = _cached(key, lambda: restoration_task(
        model=model, device=device, precision=precision, tile_px=tile, strength=strength, weather=told
    ))  # fmt: skip
    return wrap(task((picture,)).picture)


def fusion_task(
    *, model: "str | PathLike[str] | ModelDescriptor" = "fusion-small", device: str = "auto", precision: str = "auto",
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
    from moevision.imaging.given import picture_of

    thermal, _ = picture_of(infrared)
    picture, wrap = picture_of(visible)
    key = "fuse", str(model), device, precision, tile, str(register), thermal_range
    task = _cached(key, lambda: fusion_task(
        model=model, device=device, precision=precision, tile_px=tile, register=register, thermal_range=thermal_range
    ))  # fmt: skip
    return wrap(task((thermal, picture)).picture)


def anomaly_detector(
    *, model: str | PathLike[str] | None = None, site: str | PathLike[str] | None = None, device: str = "auto",
    precision: str = "auto", false_alarms_per_hour: float = 6.0, p_value: float | None = None,
) -> "tuple[AnomalyDetector, Threshold]":  # fmt: skip
    """The detector that the command and the API run, and its threshold.

    Args:
        model: name or .safetensors path; None = the one that the site's calibration names; "none" = a calibration that
            was made without one.
        site: calibration of `anomaly-fit`; None = the one that is shipped with the model.
        device, precision: as for `restore`.
        false_alarms_per_hour: what the threshold is to give on normal footage.
        p_value: share of normal frames that exceed the threshold, instead of a rate.

    Raises:
        InputError: the calibration cannot be read or was made with another model. UsageError: a threshold that
            the calibration cannot give, no model and no site, weights of another task. WeightsError: weights cannot be
            loaded.
    """
    from moevision.checkpoint import file_sha256, find_weights
    from moevision.devices import pick_device
    from moevision.tasks.anomaly.calibration import SiteCalibration
    from moevision.tasks.anomaly.detector import AnomalyDetector

    calibration = SiteCalibration.read(_site_file(model or ANOMALY_MODEL) if site is None else Path(site))
    torch_device = pick_device(device)
    descriptor = None
    if model is not None and (str(model) == "none") != (not calibration.model):
        made = f"with the model {calibration.model}" if calibration.model else "without a model"
        raise InputError(f"{site or model}: the calibration was made {made}; leave out --model {model}")
    if calibration.model:
        model = _model_of(calibration, model, site)
        if file_sha256(find_weights(model)[0]) != calibration.model_sha256:
            raise InputError(
                f"{site or model}: the calibration was made with other weights than {model}; name those with --model "
                "or make another with moevision anomaly-fit"
            )
        descriptor = _load_for("anomaly", model, device)
    detector = AnomalyDetector(
        calibration, descriptor, device=torch_device, dtype=anomaly_precision(torch_device, precision)
    )
    if p_value is not None:
        return detector, calibration.threshold_for_p_value(p_value)
    return detector, calibration.threshold_for_rate(false_alarms_per_hour)


def detect(
    source: str | PathLike[str], *, site: str | PathLike[str] | None = None, model: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None, device: str = "auto", precision: str = "auto",
    false_alarms_per_hour: float = 6.0, p_value: float | None = None, fps: float = 25.0,
    duration_s: float | None = None,
) -> "Detection":  # fmt: skip
    """Find what does not belong in a video.

    A source that breaks off after its first frames (damaged, lost, or of another size from there on) is no error: what
    was found until then is returned and written, and `Detection.broken_off` says where and why.

    Args:
        source: a video file, a folder of pictures, `camera:0`, or an address that PyAV reads.
        site: what is normal there, from `moevision anomaly-fit`; None = the camera that the model was trained on.
        model: name or .safetensors path; None = the one that the calibration names.
        output: folder for scores.csv, events.json, heat.mp4 and scores.png, which replace files of these names; None =
            none of them.
        device, precision: as for `restore`.
        false_alarms_per_hour, p_value: see `anomaly_detector`.
        fps: frames a second of a folder of pictures.
        duration_s: stop after so much time.

    Returns:
        Scores of all frames, events, and the threshold with its interval.

    Raises:
        InputError: the source or the calibration cannot be used. UsageError: bad option. WeightsError: model cannot
            be loaded. MissingExtraError: PyAV is not installed.
    """
    import contextlib

    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly.outputs import DetectionWriter
    from moevision.tasks.anomaly.predict import detect as run

    detector, threshold = anomaly_detector(
        model=model, site=site, device=device, precision=precision, false_alarms_per_hour=false_alarms_per_hour,
        p_value=p_value,
    )  # fmt: skip
    with open_source(str(source), fps=fps) as frames, contextlib.ExitStack() as stack:
        writer = None
        if output is not None:
            writer = stack.enter_context(DetectionWriter.for_source(Path(output), frames, detector.site, threshold))
        return run(frames, detector, threshold, writer, duration_s=duration_s)


def fit_site(
    sources: Sequence[str | PathLike[str]], output: str | PathLike[str] | None = None, *,
    model: str | PathLike[str] = ANOMALY_MODEL, device: str = "auto", precision: str = "auto", fps: float = 25.0,
    say: Callable[[str], None] = lambda line: None, seen: "Callable[[VideoSource, int], None] | None" = None,
) -> "SiteCalibration":  # fmt: skip
    """Learn what is normal at one camera, for `detect(site=...)`.

    Args:
        sources: what it recorded on ordinary days: video files or folders of pictures. They are read twice.
        output: the calibration to write, a .json file that is replaced; None = none.
        model: name or .safetensors path; "none" = only what moves, and how fast, counts.
        device, precision: as for `restore`, but "auto" is fp32.
        fps: frames a second of folders of pictures.
        say: receives a line a recording.
        seen: called after every frame that is read, with its recording and how many of it were read so far.

    Returns:
        What is normal, with how much footage it rests on (`hours`).

    Raises:
        InputError: a recording cannot be used, they differ in size, or there is too little in them. UsageError: weights
            of another task. WeightsError: weights cannot be loaded. MissingExtraError: PyAV is not installed.
    """
    from functools import partial

    from moevision.checkpoint import file_sha256, find_weights
    from moevision.devices import pick_device
    from moevision.imaging.sources import open_source
    from moevision.tasks.anomaly import fit

    descriptor, name, sha256 = None, "", ""
    if str(model) != "none":
        path, entry = find_weights(str(model))
        descriptor, sha256 = _load_for("anomaly", model, device), file_sha256(path)
        name = entry["name"] if entry else path.name
    torch_device = pick_device(device)
    site = fit.fit_site(
        [partial(open_source, str(source), fps=fps) for source in sources], descriptor, model=name, model_sha256=sha256,
        device=torch_device, dtype=anomaly_precision(torch_device, precision), say=say, seen=seen or fit.unseen,
    )  # fmt: skip
    if output is not None:
        site.write(Path(output))
    return site


def segmentation_task(
    *, model: "str | PathLike[str] | ModelDescriptor" = "segmentation-camvid", device: str = "auto",
    precision: str = "auto", tile_px: int | None = None, size_px: int | None = None, experts: int | None = None,
    restore: str | Collection[str] = "off", restore_model: str | PathLike[str] = "restoration-small",
    overlay: bool = False, palette: bool = False, runtime: str = "torch",
) -> "SegmentationTask":  # fmt: skip
    """The segmentation Task that the batch command, the API and evaluation all run; for the options see `segment`.

    Args:
        runtime: of the segmenter, as for `restoration_task`; what restores first runs with torch.

    Raises:
        UsageError: a size, a number of experts or a weather that cannot be, or weights of another task. WeightsError:
            weights cannot be loaded. MissingExtraError: the runtime is not installed.
    """
    from moevision.devices import pick_device, pick_precision
    from moevision.tasks.segmentation.portable import PortableNet
    from moevision.tasks.segmentation.predict import SegmentationTask

    exported = _exported("segmentation", model, runtime, device, precision)
    descriptor = exported.descriptor if exported else _load_for("segmentation", model, device)
    torch_device = pick_device("cpu" if exported else device)
    restoration = None
    if restore != "off":
        weather = None if restore == "auto" else restore
        restoration = restoration_task(model=restore_model, device=device, precision=precision, weather=weather)
    return SegmentationTask(
        descriptor, device=torch_device, dtype=pick_precision(torch_device, precision), tile_px=tile_px,
        size_px=size_px, experts=experts, restore_first=restoration, overlay=overlay, palette=palette,
        network=PortableNet(exported.runner) if exported else None,
    )  # fmt: skip


def segment(
    source: Any, *, model: str | PathLike[str] = "segmentation-camvid", device: str = "auto", precision: str = "auto",
    tile: int | None = None, size: int | None = None, restore: str | Collection[str] = "off",
    restore_model: str | PathLike[str] = "restoration-small", experts: int | None = None,
) -> "Segmentation":  # fmt: skip
    """Label every pixel of a picture.

    Args:
        source: a path, an array or a PIL image as for `restore`.
        model: name from `list_models()` or a .safetensors path.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto", "fp32", "bf16".
        tile: edge of a tile of the picture as the network sees it; 0 = the whole picture, None = automatic.
        size: longer side, in pixels, of the picture as the network sees it; larger ones are shrunk first. 0 = as it is,
            None = what the model was made for.
        restore: "off"; "auto" takes away the weather that is detected first, one or several of "rain", "drops", "snow",
            "haze" take away these.
        restore_model: what takes it away: name from `list_models()` or a .safetensors path.
        experts: how many experts work on every part of the picture; None = as the model says.

    Returns:
        Ids and what they mean, for neither tells anything without the other: `ids_HW` (uint8, of the picture's size),
        `classes`, `palette`, `areas` by class name, `mask(name)` and `overlay()`.

    Raises:
        InputError: the picture cannot be read. UsageError: bad option. WeightsError: model cannot be loaded.
    """
    from moevision.imaging.given import picture_of

    picture, _ = picture_of(source)
    told = restore if isinstance(restore, str) else tuple(restore)
    key = "segment", str(model), device, precision, tile, size, told, str(restore_model), experts
    task = _cached(key, lambda: segmentation_task(
        model=model, device=device, precision=precision, tile_px=tile, size_px=size, restore=told,
        restore_model=restore_model, experts=experts,
    ))  # fmt: skip
    return task.segment(picture)


def anomaly_precision(device: "torch.device", name: str = "auto") -> "torch.dtype":
    """As `devices.pick_precision`, but "auto" is fp32: scores are compared with a calibration from any machine."""
    from moevision.devices import pick_precision

    return pick_precision(device, "fp32" if name == "auto" else name)


def _site_file(model: str | PathLike[str]) -> Path:
    """The calibration that is shipped with, or lies beside, a model's weights."""
    from moevision.checkpoint import find_weights

    if str(model) == "none":
        raise UsageError("--model none: has no calibration of its own; name one of moevision anomaly-fit with --site")
    path = find_weights(str(model))[0].with_suffix(".site.json")
    if not path.exists():
        raise InputError(f"{model}: has no calibration ({path.name}) beside it; name one with --site")
    return path


def _model_of(
    calibration: "SiteCalibration", model: str | PathLike[str] | None, site: str | PathLike[str] | None
) -> str | Path:
    """What the caller named; else the calibration's model, which lies beside it if it is a file of its own."""
    if model is not None:
        return str(model)
    if site is None:
        return ANOMALY_MODEL
    if Path(calibration.model).suffix != ".safetensors":
        return calibration.model
    beside = Path(site).parent / Path(calibration.model).name
    if not beside.exists():
        raise WeightsError(f"{beside}: no such file, but {site} was made with it; name the weights with --model")
    return beside


def _exported(
    task: str, model: "str | PathLike[str] | ModelDescriptor", runtime: str, device: str, precision: str
) -> "Exported | None":
    """What is to compute in the place of torch: the file `model`, or one made of its weights; None = nothing is."""
    from moevision import exported
    from moevision.devices import pick_device, pick_precision

    if runtime == "torch" and not exported.is_file(model):
        return None
    if not isinstance(model, str | PathLike):
        raise UsageError("an exported network is made of a model's name or file, not of a loaded model")
    if device not in ("auto", "cpu"):
        raise UsageError(f"--runtime {runtime} computes on the CPU; leave --device {device} out")
    # Only OpenVINO has bf16; where the others are asked for it by name, they say so.
    asked = precision if runtime == "openvino" or precision != "auto" else "fp32"
    bf16 = pick_precision(pick_device("cpu"), asked).itemsize == 2
    if exported.is_file(model):
        return exported.open_file(Path(model), task, runtime, bf16=bf16)
    return exported.open_cached(model, _load_for(task, model, "cpu"), runtime, bf16=bf16)


_CACHE: dict[tuple[Any, ...], Any] = {}


def _cached(key: tuple[Any, ...], make_task: Callable[[], Any]) -> Any:
    # A loop over restore() must not load the weights each time; only the last task is kept.
    if key not in _CACHE:
        task = make_task()
        _CACHE.clear()
        _CACHE[key] = task
    return _CACHE[key]


def _load_for(task: str, model: "str | PathLike[str] | ModelDescriptor", device: str) -> "ModelDescriptor":
    from moevision.checkpoint import check_task

    if isinstance(model, str | PathLike):
        name, descriptor = str(model), load(model, device=device)
    else:
        name, descriptor = model.name, model
    check_task(name, descriptor.task, task)
    return descriptor


def _build_restoration(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.restoration.model import RestorationConfig, RestorationNet

    return RestorationNet(RestorationConfig.from_dict(config))


def _build_fusion(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.fusion.model import FusionConfig, FusionNet

    return FusionNet(FusionConfig.from_dict(config))


def _build_anomaly(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.anomaly.model import MemoryOutConfig, MemoryOutNet

    return MemoryOutNet(MemoryOutConfig.from_dict(config))


def _build_segmentation(config: dict[str, Any]) -> "nn.Module":
    from moevision.tasks.segmentation.model import SegmentationConfig, SegmentationNet

    return SegmentationNet(SegmentationConfig.from_dict(config))
