"""A BatchNorm from what kernels summed: folded into scale and shift, and its gradients.

In evaluation mode it is frozen: it keeps its running statistics, and no gradient goes through them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor, nn

from effnet_lit.model.kernels.arithmetic import triton_arithmetic
from effnet_lit.model.kernels.launching import launch
from effnet_lit.model.kernels.norms_kernels import fold_kernel, norm_backward_kernel

BLOCK = {"BLOCK_P": 256, "BLOCK_C": 8}  # few channels a program, so that many share the work


def fold(moments: Tensor, norm: nn.BatchNorm2d, size: int) -> Tensor:
    """Rows scale, shift, mean and inverse deviation [4, C]; moves the running statistics as ``nn.BatchNorm2d`` does.

    Args:
        moments: [3, programs, C], see ``store_moments``.
        size: how many values each channel has.
    """
    _, programs, channels = moments.shape
    folded = moments.new_empty(4, channels)
    statistics: Any = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    launch(
        fold_kernel,
        triton.cdiv(channels, BLOCK["BLOCK_C"]),
        moments,
        norm.weight,
        norm.bias,
        *statistics,
        folded,
        programs,
        size,
        channels,
        MOMENTUM=norm.momentum,
        EPS=norm.eps,
        ACC=triton_arithmetic(moments.dtype),
        **BLOCK,
    )
    return folded


def fold_frozen(norm: nn.BatchNorm2d, dtype: torch.dtype) -> Tensor:
    """``fold`` by the running statistics, which stay as they are."""
    assert norm.running_mean is not None and norm.running_var is not None
    inverse = (norm.running_var + norm.eps).rsqrt()
    scale = norm.weight * inverse
    return torch.stack([scale, norm.bias - norm.running_mean * scale, norm.running_mean, inverse]).to(dtype)


def norm_backward(sums: Tensor, folded: Tensor, weight: Tensor, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dbias, correction) from the sums [2, programs, C] of dz and dz * (x - mean).

    The correction [2, C] is what the batch's mean and variance take from scale * dz: a constant, a slope in x - mean
    (arXiv 1502.03167, section 3); nothing where ``size`` is infinite, as it is of a frozen layer.
    """
    _, programs, channels = sums.shape
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    correction = folded.new_empty(2, channels)
    launch(
        norm_backward_kernel,
        triton.cdiv(channels, BLOCK["BLOCK_C"]),
        sums,
        folded,
        dweight,
        dbias,
        correction,
        programs,
        size,
        channels,
        ACC=triton_arithmetic(sums.dtype),
        **BLOCK,
    )
    return dweight, dbias, correction
