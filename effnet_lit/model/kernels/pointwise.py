"""Passes over (N, C, H, W) in channels_last that activate what they read: moments, squeeze, gate, and the gradients of
those.

Each is an operator of PyTorch, so torch.compile calls it as it is; they take and give what convolutions do, since the
compiler would copy what has to be seen in another shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import custom_op

from effnet_lit.model.kernels.moments import (
    FUSED_MULTIPLY_ADD,
    Moments,
    arithmetic,
    channel_block,
    merge,
    triton_arithmetic,
)
from effnet_lit.model.kernels.pointwise_kernels import (
    activate_kernel,
    gate_gradient_kernel,
    gate_kernel,
    gate_sums_kernel,
    moments_kernel,
    norm_gradient_kernel,
    pool_kernel,
)

WARPS = 4
BLOCK_VALUES = 512  # of a [BLOCK_P, BLOCK_C] tensor: 4 for each thread
PROGRAMS_WANTED = 4096  # several for each multiprocessor of a large GPU
LONGEST_RUN = 128  # blocks of pixels


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
    assert isinstance(x, Tensor)
    assert channels_last(*(a for a in arguments if isinstance(a, Tensor) and a.shape == x.shape))
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


def channels_last(*tensors: Tensor) -> bool:
    """Whether channels lie side by side in all of them."""
    return all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def by_image(x: Tensor) -> Cut:
    """For x (N, C, H, W)."""
    images, channels, height, width = x.shape
    return cut_of(images, height * width, channels)


def channel_moments(x: Tensor) -> Moments:
    """Of x (N, C, H, W) over all but the channels."""
    return merge(partial_moments(x), x.numel() // x.shape[1])


def all_pixels(x: Tensor) -> Cut:
    """For x (N, C, H, W), as if it were one image."""
    return cut_of(1, x.numel() // x.shape[1], x.shape[1])


@custom_op("effnet_lit::moments", mutates_args=())
def partial_moments(x: Tensor) -> Tensor:
    """[3, programs, C], see ``store_moments``."""
    partial, cut = partial_moments_like(x), all_pixels(x)
    launch(moments_kernel, (x, partial, cut.programs), cut)
    return partial


@partial_moments.register_fake
def partial_moments_like(x: Tensor) -> Tensor:
    """Without contents."""
    return torch.empty(3, all_pixels(x).programs, x.shape[1], dtype=arithmetic(x.dtype), device=x.device)


@custom_op("effnet_lit::norm_silu", mutates_args=())
def norm_silu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """silu(x * scale + shift) of x (N, C, H, W)."""
    activated = torch.empty_like(x)
    launch(activate_kernel, (x, scale, shift, activated), by_image(x))
    return activated


@norm_silu.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x)


def norm_silu_pool(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """y (N, C, H, W) -> the mean of silu(y * scale + shift) over an image [N, C], in float32 (float64 of float64)."""
    return partial_pool(y, scale, shift).sum(1) / (y.shape[2] * y.shape[3])


@custom_op("effnet_lit::norm_silu_pool", mutates_args=())
def partial_pool(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Sums [N, runs, C]."""
    sums = partial_pool_like(y, scale, shift)
    launch(pool_kernel, (y, scale, shift, sums), by_image(y))
    return sums


@partial_pool.register_fake
def partial_pool_like(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Without contents."""
    cut = by_image(y)
    return torch.empty(cut.images, cut.runs, cut.channels, dtype=arithmetic(y.dtype), device=y.device)


@custom_op("effnet_lit::norm_silu_gate", mutates_args=())
def norm_silu_gate(y: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
    """silu(y * scale + shift) * gate of y (N, C, H, W) and gate [N, C]."""
    e = torch.empty_like(y)
    launch(gate_kernel, (y, scale, shift, gate, e), by_image(y))
    return e


@norm_silu_gate.register_fake
def _(y: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(y)


class GateSums(NamedTuple):
    """Sums over an image [N, C], with a = silu(z), s = silu'(z): all that the gate's and the norm's gradients need,
    since dz = (de * gate + dpooled / pixels) * s is linear in values of an image."""

    gate: Tensor  # de * a
    outer: Tensor  # de * s
    inner: Tensor  # s
    outer_centred: Tensor  # de * s * (y - mean)
    inner_centred: Tensor  # s * (y - mean)


def gate_sums(y: Tensor, de: Tensor, scale: Tensor, shift: Tensor, mean: Tensor) -> GateSums:
    """One pass over y and de (N, C, H, W)."""
    return GateSums(*partial_gate_sums(y, de, scale, shift, mean).sum(2))


@custom_op("effnet_lit::gate_sums", mutates_args=())
def partial_gate_sums(y: Tensor, de: Tensor, scale: Tensor, shift: Tensor, mean: Tensor) -> Tensor:
    """[5, N, runs, C]."""
    cut, sums = by_image(y), partial_gate_sums_like(y, de, scale, shift, mean)
    launch(gate_sums_kernel, (y, de, scale, shift, mean, sums, cut.programs), cut)
    return sums


@partial_gate_sums.register_fake
def partial_gate_sums_like(y: Tensor, de: Tensor, scale: Tensor, shift: Tensor, mean: Tensor) -> Tensor:
    """Without contents."""
    cut = by_image(y)
    return torch.empty(5, cut.images, cut.runs, cut.channels, dtype=arithmetic(y.dtype), device=y.device)


@custom_op("effnet_lit::gate_gradient", mutates_args=())
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
    """Gradient with regard to y (N, C, H, W), through activation and BatchNorm.

    Args:
        dpooled: [N, C], the gradient of the image's mean over its number of pixels.
        correction: [2, C], see ``norm_gradient``.
    """
    dy = torch.empty_like(y)
    launch(gate_gradient_kernel, (y, de, scale, shift, mean, gate, dpooled, correction, dy), by_image(y))
    return dy


@gate_gradient.register_fake
def _(y: Tensor, *others: Tensor) -> Tensor:
    return torch.empty_like(y)


@custom_op("effnet_lit::norm_gradient", mutates_args=())
def norm_gradient(dz: Tensor, x: Tensor, scale: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    """scale * dz - correction[0] - correction[1] * (x - mean), the BatchNorm's gradient."""
    dx = torch.empty_like(x)
    launch(norm_gradient_kernel, (x, dz, scale, mean, correction, dx), by_image(x))
    return dx


@norm_gradient.register_fake
def _(dz: Tensor, x: Tensor, scale: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    return torch.empty_like(x)
