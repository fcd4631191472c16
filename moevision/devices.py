"""Where and how precisely to compute: device and precision choice, and smaller tiles when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from moevision.errors import MemoryExhaustedError, UsageError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SMALLEST_TILE_PX = 128
LARGEST_TILE_PX = 512
"""The tile tried after a whole image did not fit."""

PRECISIONS = ("auto", "fp32", "bf16")

T = TypeVar("T")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA (or ROCm), then Apple's MPS, then the CPU.

    Raises UsageError when a device asked for by name is not there: silently computing elsewhere would only look slow.
    """
    import torch

    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    count = _device_count(device.type)
    if count == 0:
        raise UsageError(f"--device {name}: PyTorch sees no such device here; use --device cpu or auto")
    if (device.index or 0) >= count:
        raise UsageError(f"--device {name}: only {count} present, numbered from 0")
    return device


def pick_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The computing type called `name`; `auto` takes bf16 only where the hardware multiplies it natively."""
    import torch

    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: choose one of {', '.join(PRECISIONS)}")
    if name == "fp32":
        return torch.float32
    is_native = has_native_bf16(device)
    if name == "auto":
        return torch.bfloat16 if is_native else torch.float32
    if not is_native:
        logger.warning("bf16 may be emulated on this %s and slower than fp32; --precision auto avoids it", device.type)
    return torch.bfloat16


def has_native_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 have hardware of their own (AVX512_BF16, AMX or Arm's BF16 on a CPU)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps" or not torch.backends.mkldnn.is_available():  # Apple: only some chips have it; fp32 is safe
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch before get_capabilities


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine itself, has no memory left."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator and MPS raise plain RuntimeErrors.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def retry_smaller(fn: Callable[[int], T], tile_px: int) -> T:
    """Call `fn(tile_px)`, with ever smaller tiles while memory runs out.

    `tile_px` 0 means the whole image and falls back to tiles of 512. Tiles are halved down to 128 (a smaller wish is
    tried once); if even that does not fit, MemoryExhaustedError.
    """
    tried = tile_px
    for tried in _tile_sizes(tile_px):
        try:
            return fn(tried)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.info("out of memory with %s", f"tiles of {tried} px" if tried else "the whole image")
        _release()  # outside the handler, where the failed call's tensors are no longer held by the traceback
    remedy = "close other programs, or use --device cpu"
    raise MemoryExhaustedError(
        f"out of memory even with {f'tiles of {tried} px' if tried else 'the whole image'}; {remedy}"
    )


def _tile_sizes(tile_px: int) -> Iterator[int]:
    yield tile_px
    size = tile_px // 2 if tile_px else LARGEST_TILE_PX
    if tile_px and tile_px <= SMALLEST_TILE_PX:
        return
    while size > SMALLEST_TILE_PX:
        yield size
        size //= 2
    yield SMALLEST_TILE_PX


def _release() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _device_count(kind: str) -> int:
    import torch

    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 1
