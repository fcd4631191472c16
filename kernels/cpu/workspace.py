"""Memory that the CPU bodies write and drop within one call, kept from call to call.

At vision widths a fresh buffer costs more in page faults than the product that fills it. Every thread keeps one block,
as large as the largest call so far but no larger than `LIMIT_BYTES`; what does not fit is allocated as usual.
"""

import math
import threading

import torch
from torch import Tensor

LIMIT_BYTES = 32 * 1024 * 1024
_ALIGNMENT = 64


class _Block(threading.local):
    memory: Tensor | None = None


_block = _Block()


class Workspace:
    """Hands out parts of the thread's block; made at the start of a call and forgotten at its end.

    Two workspaces of one thread share the block, so a body must not call another body while it uses one, and nothing
    from it may be returned.
    """

    def __init__(self, like: Tensor) -> None:
        self.dtype, self.device = like.dtype, like.device
        self.used_bytes = 0

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor of `like`'s type on its device."""
        wanted_bytes = math.prod(shape) * self.dtype.itemsize
        start, end = self.used_bytes, self.used_bytes + wanted_bytes
        if self.device.type != "cpu" or end > LIMIT_BYTES:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        self.used_bytes = -(-end // _ALIGNMENT) * _ALIGNMENT
        if _block.memory is None or _block.memory.shape[0] < end:
            # Parts handed out before keep the old block alive.
            with torch.inference_mode(False):
                _block.memory = torch.empty(self.used_bytes, dtype=torch.uint8)
        return _block.memory[start:end].view(self.dtype).view(shape)
