"""moevision inside mmsegmentation: a backbone, its balance loss, and restoration as a step of any pipeline.

    custom_imports = dict(imports=["moevision.tasks.segmentation.mmseg"])

Importing this module registers `MoEVisionBackbone` and `MoEVisionBalanceHead` in mmseg's MODELS and `MoEVisionRestore`
in its TRANSFORMS. It is also the opt-in to the stand-in for `mmcv.ops` where mmcv-lite is installed (see `mmcv_ops`): a
script that imports `mmseg.models` or `mmseg.apis` must import this module before them.

Nothing else in moevision imports it, and mmseg, mmengine and mmcv are imported by no other file but `mmcv_ops`.
"""

import functools
import io
import json
import pickle
import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from moevision.backbone import BackboneConfig, MoEBackbone
from moevision.checkpoint import load_model
from moevision.devices import pick_device, pick_precision
from moevision.errors import InputError, MissingExtraError, UsageError
from moevision.imaging.atomic import atomic_write_bytes
from moevision.imaging.picture import picture_from_array
from moevision.moe import Context
from moevision.tasks.restoration.weathers import known_weathers
from moevision.tasks.segmentation.mmcv_ops import install_mmcv_stand_in
from moevision.tasks.segmentation.model import PRESETS, SegmentationConfig, SegmentationNet, segmentation_backbone

if TYPE_CHECKING:
    from moevision.tasks.restoration.predict import RestorationTask

_EXTRA = 'pip install "moevision[mmseg]"'
_RANGE = (-0.5, 1.5)  # augmentation may overshoot [0, 1] a little; any other normalisation leaves this at once


class StageFeatures(tuple[Tensor, ...]):
    """The backbone's features, one a stage, with the balance loss of the pass that made them.

    The loss travels with the features, not on the backbone, so that it belongs to its own pass. One that a training
    pass made and nobody took is warned of, as Python does of a coroutine that was never awaited.
    """

    balance_loss: Tensor
    owed = False

    def take_balance_loss(self) -> Tensor:
        """(), already weighted."""
        self.owed = False
        return self.balance_loss

    def __del__(self) -> None:
        if self.owed:
            warnings.warn(
                "MoEVisionBackbone: nothing took its balance loss, so experts may fall idle; add "
                'auxiliary_head=dict(type="MoEVisionBalanceHead") to the model',
                stacklevel=2,
            )


class MoEVisionBackbone(nn.Module):
    """Our segmentation backbone for the decode heads of mmseg.

    Wants RGB in [0, 1]: `SegDataPreProcessor` with mean 0, std 255 and bgr_to_rgb=True. Its balance loss reaches the
    training loss by a `MoEVisionBalanceHead`.

    Args:
        preset: sizes by name, see PRESETS of `model`.
        sizes: arguments of `segmentation_backbone` instead of a preset.
        out_indices: which of the stages at strides 2, 4, 8 and 16 to return.
        neck: config of a neck that follows. It stands here and not in the segmentor, where it would drop the balance
            loss on its way to the heads.
        init_cfg: dict(type="Pretrained", checkpoint=...) begins with the backbone of a segmentation model of ours, a
            name or a .safetensors path. Read by `init_weights`, which mmengine's Runner calls; `init_model` leaves it
            out.

    Attributes:
        out_channels: of the returned features; of a neck, what its config says.

    Raises:
        UsageError: an unknown preset, or an init_cfg of another type.
    """

    def __init__(
        self, preset: str = "small", sizes: dict[str, Any] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3), neck: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if sizes is None and preset not in PRESETS:
            raise UsageError(f"MoEVisionBackbone: no preset {preset!r}; choose one of {', '.join(PRESETS)}, or sizes")
        if init_cfg is not None and init_cfg.get("type") != "Pretrained":
            raise UsageError('MoEVisionBackbone: init_cfg is dict(type="Pretrained", checkpoint=...) or None')
        self.init_cfg = init_cfg
        self.out_indices = tuple(out_indices)
        self.body = MoEBackbone(PRESETS[preset]() if sizes is None else segmentation_backbone(**sizes))
        self.out_channels: Any = tuple(self.body.config.stage_channels[i] for i in self.out_indices)
        self.neck: Any = None if neck is None else _build_neck(neck)
        if neck is not None:
            self.out_channels = neck.get("out_channels")
        self._seen_input = False

    def init_weights(self) -> None:
        """What mmengine calls before training.

        Raises WeightsError for weights that cannot be loaded, UsageError for those of another task or other sizes.
        """
        if self.init_cfg is not None:
            name = self.init_cfg["checkpoint"]
            source = cast("SegmentationNet", load_model(name, _build_segmentation).model).backbone
            _require_same_sizes(name, source.config, self.body.config)
            self.body.load_state_dict(source.state_dict())
        if self.neck is not None and hasattr(self.neck, "init_weights"):
            self.neck.init_weights()

    def forward(self, x_BCHW: Tensor) -> StageFeatures:
        """(B, 3, H, W), RGB in [0, 1] -> for each out index (B, C, ceil(H / s), ceil(W / s)).

        Raises UsageError where the first batch is of another range.
        """
        if not self._seen_input:
            _require_range(x_BCHW)
            self._seen_input = True
        height, width = x_BCHW.shape[-2:]
        context = Context()
        every = self.body(x_BCHW, context)
        chosen = [(every[i], self.body.config.strides[i]) for i in self.out_indices]
        # Without the padding up to a multiple of 16, which the heads would stretch over the picture.
        features: Sequence[Tensor] = tuple(y[..., : -(-height // s), : -(-width // s)] for y, s in chosen)
        if self.neck is not None:
            features = self.neck(features)
        carried = StageFeatures(features)
        loss = context.auxiliary_loss()
        carried.balance_loss = loss if isinstance(loss, Tensor) else x_BCHW.new_zeros(())
        carried.owed = self.training and carried.balance_loss.requires_grad
        return carried


class MoEVisionBalanceHead(nn.Module):
    """An auxiliary head without parameters that returns the balance loss of `MoEVisionBackbone`.

    mmseg sums what the heads return, and nothing else. So as a head the loss is logged (`aux.loss_balance`), and scaled
    by mixed precision and gradient accumulation as every other is; a gradient that the backbone added in its
    own backward pass could know neither factor.

    Args:
        loss_weight: on top of the backbone's own weight, 0.01.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def loss(self, features: Any, data_samples: Any = None, train_cfg: Any = None) -> dict[str, Tensor]:
        """The signature of a decode head's. Raises UsageError where the features are not straight from the backbone."""
        if not isinstance(features, StageFeatures):
            raise UsageError(
                "MoEVisionBalanceHead: the features do not come straight from MoEVisionBackbone; put a neck into it: "
                'backbone=dict(type="MoEVisionBackbone", neck=dict(...))'
            )
        return {"loss_balance": self.loss_weight * features.take_balance_loss()}


class MoEVisionRestore:
    """Takes rain, raindrops, snow and haze out of `results["img"]`; a transform for any place after the loading.

    The weights are loaded once a process, at its first picture. In DataLoader workers stay on the CPU, or set
    `num_workers=0` for a GPU: CUDA does not survive a fork.

    Args:
        model: name or .safetensors path of a restoration model.
        weather: what to take away, one or several of "rain", "drops", "snow", "haze"; None = what is detected.
        strength: 0 keeps the picture, 1 is full restoration.
        device, precision: as for `moevision.restore`.

    Raises:
        UsageError: strength outside [0, 1], or an unknown weather.
    """

    def __init__(
        self, model: str | PathLike[str] = "restoration-small", weather: str | Collection[str] | None = None,
        strength: float = 1.0, device: str = "cpu", precision: str = "auto",
    ) -> None:  # fmt: skip
        if not 0.0 <= strength <= 1.0:
            raise UsageError(f"MoEVisionRestore: strength must be between 0 and 1, got {strength}")
        told = None if weather is None else known_weathers(weather)
        self.options = (str(model), told, strength, device, precision)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces `img` and nothing else: same size, channels and dtype.

        `img` is HxW or HxWx1 (grey), or HxWx3/4 with the colours in the order BGR: uint8, uint16, or float32 from 0 to
        255, as mmcv loads them. Raises InputError for another array, or none.
        """
        image = results.get("img")
        if image is None:
            raise InputError("MoEVisionRestore: no picture yet; it belongs after LoadImageFromFile in the pipeline")
        scale = np.float32(255) if image.dtype == np.float32 else None
        rgb = image[..., 2::-1] if image.ndim == 3 and image.shape[2] in (3, 4) else image
        picture = picture_from_array(rgb if scale is None else rgb / scale)
        pixels_HWC = _restoration(*self.options)((picture,)).picture.pixels_HWC[..., ::-1]
        restored = image.copy()
        channels = restored.reshape(*image.shape[:2], -1)  # a view
        channels[..., : pixels_HWC.shape[2]] = pixels_HWC if scale is None else pixels_HWC * scale
        return {**results, "img": restored}

    def __repr__(self) -> str:
        model, weather, strength, device, precision = self.options
        return f"MoEVisionRestore({model=}, {weather=}, {strength=}, {device=}, {precision=})"


def publish(checkpoint: str | PathLike[str], out: str | PathLike[str]) -> None:
    """Reduce a checkpoint of mmengine to what `mmseg.apis.init_model` needs: the weights, class names and colours.

    torch >= 2.6 refuses mmengine's own checkpoints, for the Python objects beside the weights. Here those are read as
    inert placeholders: the check stays on, and nothing in the file is run.

    Args:
        checkpoint: the .pth file of a Runner; its weights are the averaged ones where an EMAHook was at work.
        out: file to write, which may exist.

    Raises:
        InputError: no such file, no checkpoint of mmengine, or `out` cannot be written.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = {name: tensor for name, tensor in saved["state_dict"].items() if isinstance(tensor, Tensor)}
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint}: not a checkpoint of mmengine, or damaged ({reason})") from None
    meta = {name: value for name, value in _dataset_meta(saved).items() if _is_plain(value)}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": meta}}, buffer)
    atomic_write_bytes(Path(out), buffer.getvalue())


class _Inert:
    """Stands for every object of a checkpoint that is no tensor and no plain value; takes anything, does nothing."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _dataset_meta(saved: dict[str, Any]) -> dict[str, Any]:
    meta = saved.get("meta")
    dataset_meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    return dataset_meta if isinstance(dataset_meta, dict) else {}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=2)
def _restoration(
    model: str, weather: tuple[str, ...] | None, strength: float, device: str, precision: str
) -> "RestorationTask":
    from moevision.tasks.restoration.predict import RestorationTask

    torch_device = pick_device(device)
    dtype = pick_precision(torch_device, precision)
    descriptor = load_model(model, _build_restoration)
    return RestorationTask(descriptor, device=torch_device, dtype=dtype, strength=strength, weather=weather)


def _build_restoration(task: str, config: dict[str, Any]) -> nn.Module:
    from moevision.tasks.restoration.model import RestorationConfig, RestorationNet

    if task != "restoration":
        raise UsageError(f"MoEVisionRestore: the weights are of a {task} model; it runs restoration models")
    return RestorationNet(RestorationConfig.from_dict(config))


def _build_segmentation(task: str, config: dict[str, Any]) -> nn.Module:
    if task != "segmentation":
        raise UsageError(f"MoEVisionBackbone: the weights are of a {task} model; it begins with segmentation models")
    return SegmentationNet(SegmentationConfig.from_dict(config))


def _require_same_sizes(name: str, theirs: BackboneConfig, ours: BackboneConfig) -> None:
    a, b = ({**asdict(config), **asdict(config.moe), "moe": None, "balance_weight": None} for config in (theirs, ours))
    if differences := [f"{field} {a[field]}, not {b[field]}" for field in a if a[field] != b[field]]:
        raise UsageError(f"MoEVisionBackbone: {name} has {'; '.join(differences)}; give its preset or sizes")


def _require_range(x_BCHW: Tensor) -> None:
    low, high = (float(value) for value in x_BCHW.detach().aminmax())
    if low < _RANGE[0] or high > _RANGE[1]:
        raise UsageError(
            f"MoEVisionBackbone: values from {low:.3g} to {high:.3g}, but it wants RGB in [0, 1]: data_preprocessor="
            "dict(type='SegDataPreProcessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, ...)"
        )


def _build_neck(neck: dict[str, Any]) -> Any:
    from mmseg.registry import MODELS

    return MODELS.build(neck)


def _register() -> None:
    """Runs when this module is imported.

    Raises:
        MissingExtraError: mmseg, mmengine, mmcv or what they need is not installed. UsageError: versions of them that
            do not go together.
    """
    try:
        install_mmcv_stand_in()
        from mmseg.registry import MODELS, TRANSFORMS
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise MissingExtraError(f"mmsegmentation needs {missing}, which is not installed: {_EXTRA}") from None
    except AssertionError as error:  # how mmseg refuses versions; it does not say which are too new
        refused = str(error).partition(". ")[0]
        raise UsageError(
            f"mmsegmentation: {refused}; it works with mmcv 2.1.0 and mmengine 0.10.7: pip install mmcv-lite==2.1.0 "
            "mmengine==0.10.7 (or an mmcv 2.1.0 built for your torch instead of mmcv-lite)"
        ) from None
    # Again after a reload, too.
    for part in (MoEVisionBackbone, MoEVisionBalanceHead):
        MODELS.register_module(module=part, force=True)
    TRANSFORMS.register_module(module=MoEVisionRestore, force=True)


_register()
