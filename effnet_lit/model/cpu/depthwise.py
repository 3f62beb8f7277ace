"""Depthwise convolution of one piece, and a faster gradient of 5 x 5 kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

aten = torch.ops.aten

NARROW = 6  # pixels


def depthwise(x: Tensor, kernel: Tensor, conv: nn.Conv2d) -> Tensor:
    """As ``conv`` does it, in channels_last also where a piece is a single image."""
    result = functional.conv2d(x, kernel, None, conv.stride, conv.padding, 1, conv.groups)
    return result.contiguous(memory_format=torch.channels_last)


def depthwise_backward(gradient: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``kernel`` by one piece.

    oneDNN's fast code for the kernel's gradient ends at three columns (5 x 5 takes 10 times as long as 3 x 3), so those
    of five come three at a time, from the input moved by two to either side. On maps narrower than ``NARROW`` that code
    is slow too.
    """

    def backward(x: Tensor, kernel: Tensor, padding: int, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        pads = [conv.padding[0], padding]
        return aten.convolution_backward(
            gradient, x, kernel, None, conv.stride, pads, [1, 1], False, [0, 0], conv.groups, wanted
        )

    if kernel.shape[-1] == 3 or x.shape[-1] < NARROW:
        by_x, by_kernel, _ = backward(x, kernel, kernel.shape[-1] // 2, [True, True, False])
        return by_x, by_kernel
    by_x, _, _ = backward(x, kernel, 2, [True, False, False])
    left, right = (
        backward(moved, kernel[..., :3], 0, [False, True, False])[1] for moved in (shifted(x, 2), shifted(x, 0))
    )
    return by_x, torch.cat([left, right[..., 1:]], -1)


def shifted(x: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W + 2): moved to the right by ``columns``, 0 or 2, zeros where nothing was.

    ``functional.pad`` would write everything twice.
    """
    n, c, h, w = x.shape
    result = torch.empty((n, c, h, w + 2), dtype=x.dtype, memory_format=torch.channels_last)
    result[..., columns : columns + w] = x
    result[..., slice(0, 2) if columns else slice(w, w + 2)] = 0
    return result
