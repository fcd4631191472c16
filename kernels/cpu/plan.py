"""`plan` on the CPU: numpy's stable sort of small integers is a counting sort, many times as fast as torch's sort."""

import numpy as np
import torch
from torch import Tensor

from moevision.kernels import reference


def plan(index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `reference.plan`."""
    if index_NK.device.type != "cpu" or num_experts >= np.iinfo(np.uint16).max:
        return reference.plan(index_NK, num_experts)
    slots_R = index_NK.reshape(index_NK.shape[0] * index_NK.shape[1]).numpy()
    # Seen as unsigned, a negative index is a huge one: one comparison finds both kinds of empty slots.
    key_R = np.minimum(slots_R.view(np.uint64), num_experts).astype(np.uint8 if num_experts < 256 else np.uint16)
    offsets_E1 = np.zeros(num_experts + 1, np.int64)
    np.cumsum(np.bincount(key_R, minlength=num_experts + 1)[:num_experts], out=offsets_E1[1:])
    return torch.from_numpy(np.argsort(key_R, kind="stable")), torch.from_numpy(offsets_E1)
