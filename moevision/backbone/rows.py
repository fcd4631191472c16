"""Maps in bands of rows: what a block computes on the way stays in the cache.

At full resolution a map of few channels is large and each step on it is short: written whole, every step waits for
memory, and on a fresh buffer for the operating system to hand out its pages, which takes several times as long as the
arithmetic. In bands of a few megabytes the same steps run at the speed of the cores.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The rows that go into one band, of all maps together. What is computed from them is wider by a factor of 2 to 6.
BAND_BYTES = 2 * 1024 * 1024


def by_rows(
    function: Callable[..., Tensor], maps: Sequence[Tensor], *, halo: int = 0, strides: Sequence[int] | None = None,
    out: Tensor | None = None, band_bytes: int = BAND_BYTES,
) -> Tensor:  # fmt: skip
    """function(*maps), computed band by band where that is faster: on the CPU, without gradients.

    Args:
        function: of maps (B, C, rows, W); returns as many rows as its first map has. No row of its result may depend
            on rows farther away than `halo`; what lies outside the picture it must supply itself, as padding does.
        maps: (B, C, H, W) each.
        halo: in rows of the coarsest map.
        strides: rows of each map to one row of the coarsest, which may lack some at its bottom; None = 1 for all.
        out: memory for the result, of its shape; may be one of the maps if `halo` is 0. Not used where gradients are
            needed.
        band_bytes: see BAND_BYTES.
    """
    first = maps[0]
    strides = strides or [1] * len(maps)
    rows = max(-(-x.shape[2] // stride) for x, stride in zip(maps, strides, strict=True))
    row_bytes = sum(x.numel() * x.element_size() for x in maps) // max(rows, 1)
    band = max(band_bytes // max(row_bytes, 1), 8 * halo, 1)
    if first.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or band >= rows:
        return function(*maps)
    for top in range(0, rows, band):
        above, bottom = min(top, halo), min(top + band, rows)
        parts = [x[:, :, (top - above) * s : (bottom + halo) * s] for x, s in zip(maps, strides, strict=True)]
        part = function(*parts)
        if out is None:
            shape, layout = (*part.shape[:2], first.shape[2], part.shape[3]), _layout(part, first)
            out = torch.empty(shape, dtype=part.dtype, memory_format=layout)
        place = out[:, :, top * strides[0] : bottom * strides[0]]
        place.copy_(part[:, :, above * strides[0] :][:, :, : place.shape[2]])
    assert out is not None
    return out


def _layout(part: Tensor, first: Tensor) -> torch.memory_format:
    """Of a part; of one that could be of either (a single pixel, a single channel), of the first map."""
    for x in (part, first):
        last, plain = x.is_contiguous(memory_format=torch.channels_last), x.is_contiguous()
        if last != plain:
            return torch.channels_last if last else torch.contiguous_format
    return torch.contiguous_format
