"""Passes over [N, H, W, C] that activate what they read: moments, squeeze, gate, and the gradients of those."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from effnet_lit.model.kernels.moments import (
    FUSED_MULTIPLY_ADD,
    PROGRAMS_WANTED,
    Moments,
    arithmetic,
    channel_block,
    merge,
    triton_arithmetic,
)
from effnet_lit.model.kernels.pointwise_kernels import (
    gate_gradient_kernel,
    gate_kernel,
    gate_sums_kernel,
    moments_kernel,
    norm_gradient_kernel,
    pool_kernel,
)

BLOCK_VALUES = 2048  # of a [BLOCK_P, BLOCK_C] tensor: 16 for each thread
WARPS = 4
LONGEST_RUN = 16  # blocks of pixels


class Cut(NamedTuple):
    """Each image's pixels in ``runs`` runs of ``steps`` blocks."""

    images: int
    pixels: int
    channels: int
    runs: int
    steps: int
    block: int

    @property
    def programs(self) -> int:
        """For each block of channels."""
        return self.images * self.runs


def cut_of(images: int, pixels: int, channels: int) -> Cut:
    """Runs short enough to fill a large GPU, not longer than LONGEST_RUN."""
    block = channel_block(channels)
    blocks = triton.cdiv(pixels, BLOCK_VALUES // block)
    wanted = triton.cdiv(PROGRAMS_WANTED, images * triton.cdiv(channels, block))
    steps = triton.cdiv(blocks, min(blocks, max(wanted, triton.cdiv(blocks, LONGEST_RUN))))
    return Cut(images, pixels, channels, triton.cdiv(blocks, steps), steps, block)


def launch(kernel: Any, arguments: tuple[Tensor | int, ...], cut: Cut) -> None:
    """``arguments`` are what the kernel takes before ``pixels``; the first tells the type to compute in."""
    x = arguments[0]
    assert isinstance(x, Tensor) and all(not isinstance(a, Tensor) or a.is_contiguous() for a in arguments)
    kernel[(cut.programs * triton.cdiv(cut.channels, cut.block),)](
        *arguments,
        cut.pixels,
        cut.runs,
        cut.steps,
        cut.channels,
        BLOCK_P=BLOCK_VALUES // cut.block,
        BLOCK_C=cut.block,
        ACC=triton_arithmetic(x.dtype),
        num_warps=WARPS,
        **FUSED_MULTIPLY_ADD,
    )


def by_image(x: Tensor) -> Cut:
    """For x [N, H, W, C]."""
    images, height, width, channels = x.shape
    return cut_of(images, height * width, channels)


def channel_moments(x: Tensor) -> Moments:
    """Of x [N, H, W, C] over all but the channels."""
    channels = x.shape[-1]
    count = x.numel() // channels
    cut = cut_of(1, count, channels)
    partial = torch.empty(3, cut.programs, channels, dtype=arithmetic(x.dtype), device=x.device)
    launch(moments_kernel, (x, partial, cut.programs), cut)
    return merge(partial, count)


def norm_silu_pool(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """y [N, H, W, C] -> the mean of silu(y * scale + shift) over an image [N, C], in float32 (float64 of float64)."""
    cut = by_image(y)
    sums = torch.empty(cut.images, cut.runs, cut.channels, dtype=arithmetic(y.dtype), device=y.device)
    launch(pool_kernel, (y, scale, shift, sums), cut)
    return sums.sum(1) / cut.pixels


def norm_silu_gate(y: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
    """silu(y * scale + shift) * gate of y [N, H, W, C] and gate [N, C]."""
    e = torch.empty_like(y)
    launch(gate_kernel, (y, scale, shift, gate, e), by_image(y))
    return e


class GateSums(NamedTuple):
    """Sums over an image [N, C], with a = silu(z), s = silu'(z): all that the gate's and the norm's gradients need,
    since dz = (de * gate + dpooled / pixels) * s is linear in values of an image."""

    gate: Tensor  # de * a
    outer: Tensor  # de * s
    inner: Tensor  # s
    outer_centred: Tensor  # de * s * (y - mean)
    inner_centred: Tensor  # s * (y - mean)


def gate_sums(y: Tensor, de: Tensor, scale: Tensor, shift: Tensor, mean: Tensor) -> GateSums:
    """One pass over y and de [N, H, W, C]."""
    cut = by_image(y)
    sums = torch.empty(5, cut.images, cut.runs, cut.channels, dtype=arithmetic(y.dtype), device=y.device)
    launch(gate_sums_kernel, (y, de, scale, shift, mean, sums, cut.programs), cut)
    return GateSums(*sums.sum(2))


def gate_gradient(
    y: Tensor,
    de: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    gate: Tensor,
    dpooled: Tensor,
    correction: Tensor,
) -> Tensor:
    """Gradient with regard to y [N, H, W, C], through activation and BatchNorm.

    Args:
        dpooled: [N, C], the gradient of the image's mean over its number of pixels.
        correction: [2, C], see ``norm_gradient_``.
    """
    dy = torch.empty_like(y)
    launch(gate_gradient_kernel, (y, de, scale, shift, mean, gate, dpooled, correction, dy), by_image(y))
    return dy


def norm_gradient_(dz: Tensor, x: Tensor, scale: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    """scale * dz - correction[0] - correction[1] * (x - mean), the BatchNorm's gradient, in place on dz."""
    launch(norm_gradient_kernel, (x, dz, scale, mean, correction), by_image(x))
    return dz
