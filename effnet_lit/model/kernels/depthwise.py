"""Depthwise convolution of silu(x * scale + shift), with the statistics of what comes out; all in channels_last.

Forward is cuDNN's: nothing here was faster. Its gradients are slow there, and here one pass computes them together with
those of the activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

from effnet_lit.model.kernels.depthwise_kernels import backward_kernel
from effnet_lit.model.kernels.moments import FUSED_MULTIPLY_ADD, Moments, arithmetic, channel_block, triton_arithmetic
from effnet_lit.model.kernels.pointwise import channel_moments, channels_last, norm_silu

WARPS = 4
# (kernel, stride): of a [BLOCK_P, BLOCK_C] tensor; each tap's sum takes as many registers. The fastest on an H200.
VALUES = {(3, 1): 512, (3, 2): 1024, (5, 1): 256, (5, 2): 512}
PROGRAMS_WANTED = 1024  # few sums to write and to add


class Tiling(NamedTuple):
    """How a layer is cut: a program takes ``turns`` blocks of ``pixels`` neighbours of the output."""

    pixels: int
    turns: int
    programs: int  # for each block of channels
    channels: int


def tiling(pixels: int, channels: int, kernel: int, stride: int) -> Tiling:
    """For so many ``pixels`` of the output in all images."""
    block = channel_block(channels)
    tile = VALUES[kernel, stride] // block
    tiles, blocks = triton.cdiv(pixels, tile), triton.cdiv(channels, block)
    turns = max(1, tiles * blocks // PROGRAMS_WANTED)
    return Tiling(tile, turns, triton.cdiv(tiles, turns), block)


def taps_first(weight: Tensor) -> Tensor:
    """(C, 1, K, K) -> [K * K, C]."""
    return weight.flatten(1).t().contiguous()


def kernel_size(taps: Tensor) -> int:
    """K of taps [K * K, C]."""
    return {9: 3, 25: 5}[taps.shape[0]]


@custom_op("effnet_lit::norm_silu_depthwise", mutates_args=())
def convolve(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: int) -> Tensor:
    """x (N, C, H, W) -> (N, C, OUT_H, OUT_W); ``weight`` in x's type."""
    activated, padding, groups = norm_silu(x, scale, shift), weight.shape[-1] // 2, weight.shape[0]
    y = functional.conv2d(activated, weight, None, stride, padding, groups=groups)
    return y.contiguous(memory_format=torch.channels_last)


@convolve.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: int) -> Tensor:
    images, channels, height, width = x.shape
    shape = (images, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@custom_op("effnet_lit::norm_silu_depthwise_backward", mutates_args=())
def backward_sums(
    x: Tensor, dy: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, taps: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(dz (N, C, H, W), sums [2, programs, C], gradient of the taps [programs, K * K, C])."""
    outputs = backward_sums_like(x, dy, scale, shift, mean, taps, stride)
    assert channels_last(x, dy, outputs[0])
    images, channels, out_height, out_width = dy.shape
    pixels, kernel = images * out_height * out_width, kernel_size(taps)
    cut = tiling(pixels, channels, kernel, stride)
    device_code: Any = backward_kernel
    device_code[(cut.programs * triton.cdiv(channels, cut.channels),)](
        x,
        dy,
        scale,
        shift,
        mean,
        taps,
        *outputs,
        pixels,
        cut.turns,
        cut.programs,
        *x.shape[2:],
        out_height,
        out_width,
        channels,
        KERNEL=kernel,
        STRIDE=stride,
        BLOCK_P=cut.pixels,
        BLOCK_C=cut.channels,
        WHOLE=channels % cut.channels == 0,
        ACC=triton_arithmetic(x.dtype),
        num_warps=WARPS,
        **FUSED_MULTIPLY_ADD,
    )
    return outputs


@backward_sums.register_fake
def backward_sums_like(
    x: Tensor, dy: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, taps: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Without contents."""
    channels = dy.shape[1]
    programs = tiling(dy.numel() // channels, channels, kernel_size(taps), stride).programs
    sums = torch.empty(2, programs, channels, dtype=arithmetic(x.dtype), device=x.device)
    return torch.empty_like(x), sums, sums.new_empty(programs, *taps.shape)


def norm_silu_depthwise(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Moments]:
    """Depthwise convolution, padding K // 2, of silu(x * scale + shift), and the moments of its output.

    Args:
        x: (N, C, H, W).
        scale, shift: [C], the folded BatchNorm.
        weight: (C, 1, K, K), K of 3 or 5.
    """
    y = convolve(x, scale, shift, weight.to(x.dtype), stride)
    return y, channel_moments(y)


def norm_silu_depthwise_backward(
    x: Tensor, dy: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``norm_silu_depthwise``, with the sums that the BatchNorm's own gradient needs.

    Returns:
        dz: (N, C, H, W), with regard to z = x * scale + shift.
        sums: [2, C], of dz and of dz * (x - mean).
        dweight: (C, 1, K, K).
    """
    dz, sums, dtaps = backward_sums(x, dy, scale, shift, mean, taps_first(weight), stride)
    return dz, sums.sum(1), dtaps.sum(0).t().reshape(weight.shape).to(weight.dtype)
