"""Depthwise convolution with a faster gradient of 5 x 5 kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from effnet_lit.model.cpu.step import in_step
from effnet_lit.model.padding import SamePaddingConv2d

aten = torch.ops.aten


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution of a kernel of 3 x 3 or 5 x 5, (N, C, H, W) -> (N, C, H', W'), in blocks that run as
    modules: the kernel's gradient comes from ``depthwise_backward`` where PyTorch takes long for it."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        takes_long = self.kernel_size[0] == 5 or input.shape[2] < 3
        if takes_long and in_step(input) and input.is_contiguous(memory_format=torch.channels_last):
            return Depthwise.apply(input, weight, bias, self)  # type: ignore[return-value]
        return super()._conv_forward(input, weight, bias)


class Depthwise(torch.autograd.Function):
    """Values and gradients of ``DepthwiseConv2d``, in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        ctx.conv = conv
        ctx.save_for_backward(x, kernel)
        return depthwise(x, kernel, conv, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, kernel = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return *depthwise_backward(gradient, x, kernel, ctx.conv), by_bias, None


def depthwise(x: Tensor, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None = None) -> Tensor:
    """As ``conv`` does it, in channels_last also where there is a single image."""
    if isinstance(conv, SamePaddingConv2d):
        x = functional.pad(x, conv.around(x))
    result = functional.conv2d(x, kernel, bias, conv.stride, conv.padding, 1, conv.groups)
    return result.contiguous(memory_format=torch.channels_last)


def depthwise_backward(gradient: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``kernel``.

    oneDNN's fast code for the kernel's gradient ends at three columns (5 x 5 takes 10 times as long as 3 x 3), so those
    of five come three at a time, from the input padded by two on either side. On maps with fewer rows than the kernel
    that code is slow too, so these get rows of zeros.
    """
    if isinstance(conv, SamePaddingConv2d):
        return same_padding_backward(gradient, x, kernel, conv)
    size, height, width = kernel.shape[-1], *x.shape[2:]
    tall = height if height >= size else size + 1
    tall_gradient = padded(gradient, (tall - 1) // conv.stride[0] + 1, gradient.shape[3], 0)

    def of_kernel(kernel: Tensor, columns: int, x: Tensor) -> Tensor:
        pads = conv.padding[0], columns
        return convolution_backward(tall_gradient, x, kernel, conv, pads, [False, True, False])[1]

    if conv.stride == (1, 1):  # the same sums, which oneDNN takes less time for as a convolution
        by_x = depthwise(gradient, kernel.flip(2, 3), conv)
    else:
        by_x, _, _ = convolution_backward(gradient, x, kernel, conv, conv.padding, [True, False, False])
    if size == 3:
        return by_x, of_kernel(kernel, 1, padded(x, tall, width, 0))
    left, right = (of_kernel(kernel[..., :3], 0, padded(x, tall, width + 2, at)) for at in (2, 0))
    return by_x, torch.cat([left, right[..., 1:]], -1)


def same_padding_backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, conv: SamePaddingConv2d
) -> tuple[Tensor, Tensor]:
    """``depthwise_backward`` of the input padded beforehand."""
    left, right, top, bottom = conv.around(x)
    x = functional.pad(x, (left, right, top, bottom))
    height, width = x.shape[2:]
    whole = kernel.shape[-1] == 3
    by_x, by_kernel, _ = convolution_backward(gradient, x, kernel, conv, (0, 0), [True, whole, False])
    if not whole:
        first, last = (
            convolution_backward(gradient, part, kernel[..., :3], conv, (0, 0), [False, True, False])[1]
            for part in (x[..., :-2], x[..., 2:])
        )
        by_kernel = torch.cat([first, last[..., 1:]], -1)
    return by_x[..., top : height - bottom, left : width - right], by_kernel


def convolution_backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d, padding: Sequence[int | str], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's gradients of ``x``, kernel and bias, those that are wanted."""
    return aten.convolution_backward(
        gradient, x, kernel, None, conv.stride, padding, [1, 1], False, [0, 0], conv.groups, wanted
    )


def padded(x: Tensor, height: int, width: int, at: int) -> Tensor:
    """(N, C, H, W) -> (N, C, height, width): zeros, and ``x`` at the top, from column ``at`` on.

    ``functional.pad`` would write everything twice.
    """
    n, c, h, w = x.shape
    if (height, width) == (h, w):
        return x
    result = torch.empty((n, c, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    result[..., :h, at : at + w] = x
    result[..., :h, :at], result[..., :h, at + w :], result[..., h:, :] = 0, 0, 0
    return result
