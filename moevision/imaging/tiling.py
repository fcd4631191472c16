"""Run a function over a large picture tile by tile, in bounded memory and without seams.

Tiles have equal size; the last of a row or column is shifted inward, never padded. Networks that work on a grid of
strides see the same phase in every tile: tiles start at multiples of `multiple_px`. Overlaps are blended with a
raised-cosine window whose weights are normalised to sum to one; because the grid is a full product of row and column
positions, the normalisation is done once per axis. Only one band of tile rows exists as float32 at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moevision.errors import UsageError
from moevision.imaging.picture import Picture, quantise, to_float_tile, warn_if_clipped

_CHUNK_ROWS = 64


@dataclass(frozen=True)
class Tile:
    """A crop, in pixels of the source: rows y0 to y1, columns x0 to x1 (ends exclusive)."""

    y0: int
    y1: int
    x0: int
    x1: int


TileFunction = Callable[[np.ndarray, Tile], np.ndarray]


def plan_tiles(height: int, width: int, tile_px: int, overlap_px: int, multiple_px: int = 1) -> list[list[Tile]]:
    """Rows of tiles that cover a picture of height x width; one tile if `tile_px` is 0 or the picture fits.

    All tiles have the same size, but the last of a row or column may be up to `multiple_px` - 1 larger, so that every
    tile starts at a multiple of `multiple_px`; neighbours share at least `overlap_px` pixels. Raises UsageError for a
    negative size or an overlap that leaves no step forward.
    """
    columns, rows = (_spans(length, tile_px, overlap_px, multiple_px) for length in (width, height))
    return [[Tile(y0, y1, x0, x1) for x0, x1 in columns] for y0, y1 in rows]


def _spans(length: int, tile_px: int, overlap_px: int, multiple_px: int) -> list[tuple[int, int]]:
    if tile_px < 0 or overlap_px < 0 or (tile_px and overlap_px >= tile_px):
        raise UsageError(
            f"tile of {tile_px} px with an overlap of {overlap_px} px is impossible; "
            "choose 0 <= overlap < tile, or tile 0 for the whole picture"
        )
    if tile_px == 0 or length <= tile_px:
        return [(0, length)]
    last = (length - tile_px) // multiple_px * multiple_px
    step = max(multiple_px, (tile_px - overlap_px) // multiple_px * multiple_px)
    starts = [*range(0, last, step), last]
    return [(start, start + tile_px if start < last else length) for start in starts]


def raised_cosine(length_px: int, ramp_px: int) -> np.ndarray:
    """Window of `length_px` float64 weights in (0, 1]: a cosine ramp of `ramp_px` at both ends, 1 between."""
    ramp_px = min(ramp_px, length_px)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp_px) + 0.5) / max(ramp_px, 1))
    window = np.ones(length_px)
    window[:ramp_px] *= ramp
    window[length_px - ramp_px :] *= ramp[::-1]
    return window


def blend_weights(length: int, spans: list[tuple[int, int]], ramp_px: int) -> list[np.ndarray]:
    """One weight vector (float32) per span; at every position the weights of all spans add up to one."""
    windows = [raised_cosine(stop - start, ramp_px) for start, stop in spans]
    total = np.zeros(length)
    for (start, stop), window in zip(spans, windows, strict=True):
        total[start:stop] += window
    return [
        (window / total[start:stop]).astype(np.float32) for (start, stop), window in zip(spans, windows, strict=True)
    ]


def map_tiles(
    pixels_HWC: np.ndarray,
    fn: TileFunction,
    *,
    tile_px: int,
    overlap_px: int,
    multiple_px: int = 1,
    out: Callable[[int, np.ndarray], None],
) -> None:
    """Apply `fn` to every tile and hand the blended rows to `out`, top to bottom, each row exactly once.

    Args:
        pixels_HWC: uint8, uint16 or float32 source, C = 1 or 3; it is read tile by tile and never changed.
        fn: maps an hxwx3 float32 RGB tile in [0, 1] (its own copy), and where it lies, to an array of the same shape.
        tile_px: edge of a tile; 0 takes the whole picture at once.
        overlap_px: pixels that neighbouring tiles share.
        multiple_px: tiles start at multiples of this.
        out: called with the first row and an hxWx3 float32 block; the block is reused after the call returns.

    Raises UsageError for impossible tile sizes, ValueError if `fn` changes the shape.
    """
    height, width = pixels_HWC.shape[:2]
    rows = plan_tiles(height, width, tile_px, overlap_px, multiple_px)
    weights_y = blend_weights(height, [(row[0].y0, row[0].y1) for row in rows], overlap_px)
    weights_x = blend_weights(width, [(tile.x0, tile.x1) for tile in rows[0]], overlap_px)
    band = np.zeros((max(row[0].y1 - row[0].y0 for row in rows), width, 3), np.float32)
    for index, row in enumerate(rows):
        for tile, weight_x in zip(row, weights_x, strict=True):
            result = _run(fn, pixels_HWC, tile)
            result *= (weights_y[index][:, None] * weight_x)[:, :, None]
            band[: tile.y1 - tile.y0, tile.x0 : tile.x1] += result
        finished = (rows[index + 1][0].y0 if index + 1 < len(rows) else height) - row[0].y0
        out(row[0].y0, band[:finished])
        kept = band.shape[0] - finished
        band[:kept] = band[finished:]
        band[kept:] = 0.0


def _run(fn: TileFunction, pixels_HWC: np.ndarray, tile: Tile) -> np.ndarray:
    """The result of `fn` on one tile as a float32 array that may be written to."""
    source = to_float_tile(pixels_HWC[tile.y0 : tile.y1, tile.x0 : tile.x1])
    result = np.asarray(fn(source, tile))
    if result.shape != source.shape:
        raise ValueError(f"the tile function returned shape {result.shape} for a tile of shape {source.shape}")
    # A copy: the function may return its input, a cached array or a view of memory it still owns.
    return np.array(result, dtype=np.float32)


def map_picture(picture: Picture, fn: TileFunction, *, tile_px: int, overlap_px: int, multiple_px: int = 1) -> Picture:
    """`fn` over the whole picture: tiled, blended, quantised to the source depth band by band.

    Grey stays grey, alpha and metadata are kept. Colour under fully transparent pixels is replaced by the nearest
    visible colour while `fn` runs (so no dark fringe leaks in) and comes back unchanged. With fn = identity the pixels
    of a uint8 or uint16 picture are returned exactly. Raises InputError if `fn` yields NaN or infinity.
    """
    warn_if_clipped(picture)
    pixels, alpha = picture.pixels_HWC, picture.alpha_HW
    hidden: np.ndarray | None = None if alpha is None or alpha.all() else np.asarray(alpha == 0)
    source = pixels if hidden is None else extend_edges(pixels, hidden)
    restored = np.empty_like(pixels)

    def keep(y0: int, rows_HWC: np.ndarray) -> None:
        for start in range(0, rows_HWC.shape[0], _CHUNK_ROWS):
            chunk = rows_HWC[start : start + _CHUNK_ROWS]
            band = slice(y0 + start, y0 + start + chunk.shape[0])
            restored[band] = quantise(chunk, pixels.dtype, pixels.shape[2])
            if hidden is not None:
                mask_HW = hidden[band]
                restored[band][mask_HW] = pixels[band][mask_HW]

    map_tiles(source, fn, tile_px=tile_px, overlap_px=overlap_px, multiple_px=multiple_px, out=keep)
    return replace(picture, pixels_HWC=restored)


def extend_edges(pixels_HWC: np.ndarray, hidden_HW: np.ndarray) -> np.ndarray:
    """A copy whose hidden pixels take the nearest visible colour of their row; rows without one copy the nearest row.

    If nothing is visible the copy equals the source.
    """
    filled = pixels_HWC.copy()
    row_is_empty = np.asarray(hidden_HW.all(axis=1))
    if row_is_empty.all():
        return filled
    for start in range(0, hidden_HW.shape[0], _CHUNK_ROWS):
        band = slice(start, start + _CHUNK_ROWS)
        if hidden_HW[band].any():
            nearest = _nearest_visible(hidden_HW[band])
            filled[band] = np.take_along_axis(pixels_HWC[band], nearest[:, :, None], axis=1)
    nearest_row = _nearest_visible(row_is_empty[None, :])[0]
    for y in np.flatnonzero(row_is_empty):
        filled[y] = filled[nearest_row[y]]
    return filled


def _nearest_visible(hidden_HW: np.ndarray) -> np.ndarray:
    """For each position the column (int64) of the nearest visible one in its row; any column if there is none."""
    width = hidden_HW.shape[1]
    column = np.arange(width)
    left = np.maximum.accumulate(np.where(hidden_HW, -2 * width, column), axis=1)
    right = np.minimum.accumulate(np.where(hidden_HW, 3 * width, column)[:, ::-1], axis=1)[:, ::-1]
    return np.clip(np.where(column - left <= right - column, left, right), 0, width - 1)
