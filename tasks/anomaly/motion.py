"""What moves, and how fast: the streams that need no network.

Box-max frame difference is the baseline of the field's honest tables: it scores as well on UCSD Ped2 as some published
networks. The flow stream adds speed. Both look at boxes, for what is unusual is small: a mean over the frame drowns it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

BOX_PX, BOX_STRIDE_PX = 16, 8
_HIGHEST = 5  # boxes whose mean is the flow of a frame: one box of bad flow must not decide
_FASTEST_PX = 32.0  # a frame at the working size; what is beyond is a failure of the flow

Grid = NDArray[np.float32]
WORKING_PX = 288  # longer side at which everything is measured; UCSD Ped2 is 360


def working_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a video of that size is measured: longer side WORKING_PX, never enlarged."""
    scale = min(1.0, WORKING_PX / max(size_hw))
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def box_means(image_HW: NDArray[np.float32]) -> Grid:
    """Means of boxes of BOX_PX every BOX_STRIDE_PX: (H, W) -> (h, w); of a smaller picture one box."""
    means_HW = cv2.boxFilter(image_HW, -1, (BOX_PX, BOX_PX), borderType=cv2.BORDER_REFLECT_101)
    first = BOX_STRIDE_PX
    grid = means_HW[first : -first + 1 or None : BOX_STRIDE_PX, first : -first + 1 or None : BOX_STRIDE_PX]
    return np.ascontiguousarray(grid if grid.size else image_HW.mean(keepdims=True), np.float32)


def box_centres_px(grid_hw: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows (h,) and columns (w,) of the boxes' centres at the working size."""
    height, width = grid_hw
    return tuple(BOX_STRIDE_PX * (1 + np.arange(n, dtype=np.float64)) for n in (height, width))  # type: ignore[return-value]


def difference_grid(before_HW: NDArray[np.uint8], now_HW: NDArray[np.uint8]) -> Grid:
    """Box means of the absolute difference in grey levels, 0 to 255."""
    return box_means(cv2.absdiff(before_HW, now_HW).astype(np.float32))


def flow_grid(before_HW: NDArray[np.uint8], now_HW: NDArray[np.uint8]) -> Grid:
    """Box means of the length of Farneback's optical flow, in px a frame at the working size."""
    flow_HW2 = cv2.calcOpticalFlowFarneback(before_HW, now_HW, None, 0.5, 3, 11, 3, 5, 1.1, 0)  # type: ignore[call-overload]
    return box_means(np.minimum(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]), _FASTEST_PX))


def highest(grid: Grid) -> float:
    """The largest box."""
    return float(grid.max())


def mean_of_highest(grid: Grid, count: int = _HIGHEST) -> float:
    """Mean of the `count` largest boxes."""
    values = grid.ravel()
    count = min(count, values.size)
    return float(np.partition(values, values.size - count)[-count:].mean())
