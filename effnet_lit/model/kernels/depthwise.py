"""Depthwise convolution of silu(x * scale + shift), with the moments of what comes out; all in channels_last.

One pass forward, and one backward for the gradients of the convolution and of the activation together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from effnet_lit.model.kernels.arithmetic import channel_block, triton_arithmetic
from effnet_lit.model.kernels.depthwise_kernels import backward_kernel, forward_kernel
from effnet_lit.model.kernels.launching import launch
from effnet_lit.model.kernels.pointwise import all_channels_last


class Share(NamedTuple):
    """How a layer is shared: each thread walks along ``rows`` rows of the output for one or two channels, ``values`` in
    all 128 of a program; ``programs`` at most about twice, since each writes sums that are to be added."""

    rows: int
    values: int
    programs: int


# By (kernel, stride): the fastest on an H200, of rows that suit maps of 4, 8, 16, ... as well as 7, 14, 28, ...
FORWARD = {
    (3, 1): Share(4, 128, 2048),
    (3, 2): Share(2, 256, 2048),
    (5, 1): Share(4, 128, 2048),
    (5, 2): Share(2, 128, 2048),
}
BACKWARD = {
    (3, 1): Share(4, 128, 2048),
    (3, 2): Share(2, 128, 8192),
    (5, 1): Share(2, 128, 2048),
    (5, 2): Share(2, 128, 2048),
}


class Tiling(NamedTuple):
    """A program takes ``turns`` blocks of groups of rows, of a block of channels."""

    groups: int  # in all images
    block: int  # of groups
    turns: int
    programs: int  # for each block of channels
    channels: int


def tiling(images: int, height: int, channels: int, share: Share) -> Tiling:
    """For so many images of ``height`` rows of the output."""
    channel = channel_block(channels)
    groups, block = images * triton.cdiv(height, share.rows), share.values // channel
    blocks, parts = triton.cdiv(groups, block), triton.cdiv(channels, channel)
    turns = max(1, blocks * parts // share.programs)
    return Tiling(groups, block, turns, triton.cdiv(blocks, turns), channel)


def walk(kernel: Any, tensors: tuple[Tensor, ...], x: Tensor, y: Tensor, size: int, stride: int, share: Share) -> None:
    """``tensors`` are what the kernel takes before ``groups``; y is of the output's shape."""
    images, channels, out_height, out_width = y.shape
    tiles = tiling(images, out_height, channels, share)
    assert all_channels_last(x, y)
    launch(
        kernel,
        tiles.programs * triton.cdiv(channels, tiles.channels),
        *tensors,
        tiles.groups,
        tiles.turns,
        tiles.programs,
        *x.shape[2:],
        out_height,
        out_width,
        channels,
        KERNEL=size,
        STRIDE=stride,
        ROWS=share.rows,
        BLOCK_G=tiles.block,
        BLOCK_C=tiles.channels,
        WHOLE=channels % tiles.channels == 0,
        ACC=triton_arithmetic(x.dtype),
    )


def norm_silu_depthwise(x: Tensor, folded: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Depthwise convolution, padding K // 2, of silu(x * scale + shift).

    Args:
        x: (N, C, H, W).
        folded: the BatchNorm of x, see ``fold``.
        weight: (C, 1, K, K), K of 3 or 5.

    Returns:
        y: (N, C, OUT_H, OUT_W).
        moments: of y, [3, programs, C], see ``store_moments``.
    """
    images, channels, height, width = x.shape
    size = weight.shape[-1]
    share = FORWARD[size, stride]
    shape = (images, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    moments = folded.new_empty(3, tiling(images, shape[2], channels, share).programs, channels)
    walk(forward_kernel, (x, *folded[:2], weight, y, moments), x, y, size, stride, share)
    return y, moments


def norm_silu_depthwise_backward(
    x: Tensor, dy: Tensor, folded: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``norm_silu_depthwise``, with the sums that the BatchNorm's own gradient needs.

    Returns:
        dz: (N, C, H, W), with regard to z = x * scale + shift.
        sums: [2, programs, C], of dz and of dz * (x - mean).
        dweight: (C, 1, K, K).
    """
    images, channels, out_height, _ = dy.shape
    size = weight.shape[-1]
    share = BACKWARD[size, stride]
    programs = tiling(images, out_height, channels, share).programs
    dz, sums = torch.empty_like(x), folded.new_empty(2, programs, channels)
    slopes = folded.new_empty(programs, channels, size * size)
    tensors = (x, dy, *folded[:3], weight, dz, sums, slopes)
    walk(backward_kernel, tensors, x, dy, size, stride, share)
    return dz, sums, slopes.sum(0).view_as(weight).to(weight.dtype)
