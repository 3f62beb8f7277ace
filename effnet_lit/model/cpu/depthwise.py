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

    oneDNN's fast code for the kernel's gradient ends at three columns (5 x 5 takes 10 times as long as 3 x 3), so five
    columns come from the input as it is (the middle three) and moved by one to either side. On maps narrower than
    ``NARROW`` that code is slow too.
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
    three = kernel[..., :3]
    left, middle, right = (
        backward(moved, three, 1, [False, True, False])[1] for moved in (shifted(x, 1), x, shifted(x, -1))
    )
    return by_x, torch.cat([left[..., :1], middle, right[..., 2:]], -1)


def shifted(x: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) moved by one column to the right (``columns`` = 1) or left (-1), zeros where nothing was.

    ``functional.pad`` would write everything twice.
    """
    result = torch.empty_like(x)
    if columns == 1:
        result[..., 1:], result[..., :1] = x[..., :-1], 0
    else:
        result[..., :-1], result[..., -1:] = x[..., 1:], 0
    return result
