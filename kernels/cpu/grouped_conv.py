"""`grouped_conv` on the CPU: windows and channels become the groups of one convolution."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moevision.kernels import reference


def grouped_conv(x_NCHW: Tensor, w_ECPQ: Tensor, b_EC: Tensor, index_N: Tensor) -> Tensor:
    """See `reference.grouped_conv`."""
    if x_NCHW.shape[0] * x_NCHW.shape[1] == 0:
        return reference.grouped_conv(x_NCHW, w_ECPQ, b_EC, index_N)
    empty_N = reference.is_empty(index_N, w_ECPQ.shape[0])
    index_N = index_N.masked_fill(empty_N, 0)
    x_1GHW, w_G1PQ = _as_groups(x_NCHW, w_ECPQ.index_select(0, index_N))
    y_1GYX = F.conv2d(x_1GHW, w_G1PQ, b_EC.index_select(0, index_N).view(-1), groups=x_1GHW.shape[1])
    y_NCYX = y_1GYX.view(*x_NCHW.shape[:2], *y_1GYX.shape[2:])
    return y_NCYX.masked_fill_(empty_N.view(-1, 1, 1, 1), 0)


def grouped_conv_backward(
    dy_NCYX: Tensor, x_NCHW: Tensor, w_ECPQ: Tensor, index_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w and b; windows of one expert are added up by a product with one-hot rows, in float32."""
    num_experts, channels = w_ECPQ.shape[:2]
    empty_N = reference.is_empty(index_N, num_experts)
    empty_N111 = empty_N.view(-1, 1, 1, 1)
    if x_NCHW.shape[0] * channels == 0:
        return torch.zeros_like(x_NCHW), torch.zeros_like(w_ECPQ), w_ECPQ.new_zeros(num_experts, channels)
    index_N = index_N.masked_fill(empty_N, 0)
    dy_NCYX = dy_NCYX.masked_fill(empty_N111, 0)
    x_1GHW, w_G1PQ = _as_groups(x_NCHW.masked_fill(empty_N111, 0), w_ECPQ.index_select(0, index_N))
    dx_1GHW, dw_G1PQ, _ = torch.ops.aten.convolution_backward(
        dy_NCYX.reshape(1, -1, *dy_NCYX.shape[2:]), x_1GHW, w_G1PQ, None, [1, 1], [0, 0], [1, 1], False, [0, 0],
        x_1GHW.shape[1], [True, True, False],
    )  # fmt: skip
    wide = torch.float64 if x_NCHW.dtype == torch.float64 else torch.float32
    one_hot_EN = F.one_hot(index_N, num_experts).to(wide).T
    dw_ECPQ = (one_hot_EN @ dw_G1PQ.view(x_NCHW.shape[0], -1).to(wide)).view(w_ECPQ.shape)
    db_EC = one_hot_EN @ dy_NCYX.sum((2, 3), dtype=wide)
    return dx_1GHW.view(x_NCHW.shape), dw_ECPQ.to(w_ECPQ.dtype), db_EC.to(w_ECPQ.dtype)


def _as_groups(x_NCHW: Tensor, w_NCPQ: Tensor) -> tuple[Tensor, Tensor]:
    height, width = x_NCHW.shape[2:]
    return x_NCHW.reshape(1, -1, height, width), w_NCPQ.reshape(-1, 1, *w_NCPQ.shape[2:])
