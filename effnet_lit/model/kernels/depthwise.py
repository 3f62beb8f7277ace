"""Depthwise convolution of silu(x * scale + shift), x in [N, H, W, C], with the statistics of what comes out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from effnet_lit.model.kernels.depthwise_kernels import backward_kernel, forward_kernel
from effnet_lit.model.kernels.moments import (
    FUSED_MULTIPLY_ADD,
    PROGRAMS_WANTED,
    Moments,
    arithmetic,
    channel_block,
    merge,
    triton_arithmetic,
)

WARPS = 4
# (kernel, stride): (output columns, values of a [LANES, BLOCK_C] tensor), such that registers hold the window
SHAPES = {(3, 1): (4, 256), (3, 2): (4, 256), (5, 1): (4, 128), (5, 2): (2, 128)}
DEEPEST_STRIP, SHALLOWEST_STRIP = 16, 4  # rows
MOST_TURNS = 8  # fewer partial sums of the weights' gradient to write


class Tiling(NamedTuple):
    """How a layer is cut: a tile is ``rows`` x ``columns`` outputs of one image; a program has ``lanes`` tiles at once,
    ``turns`` times."""

    strips: int
    across: int
    rows: int
    turns: int
    columns: int
    lanes: int
    block: int
    tiles: int

    @property
    def programs(self) -> int:
        """For each block of channels."""
        return triton.cdiv(self.tiles, self.lanes * self.turns)


def tiling(images: int, channels: int, height: int, width: int, kernel: int, stride: int) -> Tiling:
    """For outputs of [images, height, width, channels]. Deep strips read less twice; short ones fill a large GPU."""
    columns, values = SHAPES[kernel, stride]
    across = triton.cdiv(width, columns)
    block = channel_block(channels)
    lanes = values // block
    strips = triton.cdiv(height, DEEPEST_STRIP)
    blocks = triton.cdiv(channels, block)
    while images * across * strips * blocks < lanes * PROGRAMS_WANTED and height > strips * SHALLOWEST_STRIP:
        strips *= 2
    rows = triton.cdiv(height, strips)
    strips = triton.cdiv(height, rows)
    tiles = images * strips * across
    turns = min(MOST_TURNS, max(1, tiles * blocks // (lanes * PROGRAMS_WANTED)))
    return Tiling(strips, across, rows, turns, columns, lanes, block, tiles)


def output_size(size: int, stride: int) -> int:
    """Of a convolution with padding kernel // 2, odd kernel."""
    return (size - 1) // stride + 1


def launch(kernel: Any, tensors: tuple[Tensor, ...], cut: Tiling, x: Tensor, weight: Tensor, stride: int) -> None:
    """Either kernel on x [N, H, W, C]; they differ in their tensors only."""
    _, height, width, channels = x.shape
    kernel[(cut.programs * triton.cdiv(channels, cut.block),)](
        *tensors,
        cut.tiles,
        cut.strips,
        cut.across,
        cut.rows,
        cut.turns,
        cut.programs,
        height,
        width,
        output_size(height, stride),
        output_size(width, stride),
        channels,
        KERNEL=weight.shape[-1],
        STRIDE=stride,
        COLUMNS=cut.columns,
        LANES=cut.lanes,
        BLOCK_C=cut.block,
        ACC=triton_arithmetic(x.dtype),
        num_warps=WARPS,
        **FUSED_MULTIPLY_ADD,
    )


def taps_first(weight: Tensor) -> Tensor:
    """(C, 1, K, K) -> [K * K, C]."""
    return weight.flatten(1).t().contiguous()


def norm_silu_depthwise(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Moments]:
    """Depthwise convolution, padding K // 2, of silu(x * scale + shift), and the moments of its output.

    Args:
        x: [N, H, W, C], contiguous.
        scale, shift: [C], the folded BatchNorm.
        weight: (C, 1, K, K), K of 3 or 5.
    """
    images, height, width, channels = x.shape
    assert x.is_contiguous() and weight.shape[-1] in (3, 5) and stride in (1, 2)
    out_height, out_width = output_size(height, stride), output_size(width, stride)
    cut = tiling(images, channels, out_height, out_width, weight.shape[-1], stride)
    y = x.new_empty(images, out_height, out_width, channels)
    partial = torch.empty(3, cut.programs, channels, dtype=arithmetic(x.dtype), device=x.device)
    launch(forward_kernel, (x, scale, shift, taps_first(weight), y, partial), cut, x, weight, stride)
    return y, merge(partial, images * out_height * out_width)


def norm_silu_depthwise_backward(
    x: Tensor, dy: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``norm_silu_depthwise``, with the sums that the BatchNorm's own gradient needs.

    Returns:
        dz: [N, H, W, C], with regard to z = x * scale + shift.
        sums: [2, C], of dz and of dz * (x - mean).
        dweight: (C, 1, K, K).
    """
    images, out_height, out_width, channels = dy.shape
    assert x.is_contiguous() and dy.is_contiguous()
    cut = tiling(images, channels, out_height, out_width, weight.shape[-1], stride)
    dz = torch.empty_like(x)
    sums = torch.empty(2, cut.programs, channels, dtype=arithmetic(x.dtype), device=x.device)
    dweight = sums.new_empty(cut.programs, weight[0].numel(), channels)
    launch(backward_kernel, (x, dy, scale, shift, mean, taps_first(weight), dz, sums, dweight), cut, x, weight, stride)
    return dz, sums.sum(1), dweight.sum(0).t().reshape(weight.shape).to(weight.dtype)
