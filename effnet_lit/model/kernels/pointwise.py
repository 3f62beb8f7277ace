"""Passes over (N, C, H, W) in channels_last: moments, and what activates what it reads, and the gradients of that.

``folded`` is a BatchNorm, see ``fold``; ``keep`` is what stochastic depth multiplies an image by.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from effnet_lit.model.kernels.activation_kernels import (
    gate_gradient_kernel,
    gate_kernel,
    gate_sums_kernel,
    pool_kernel,
    pool_sums_kernel,
)
from effnet_lit.model.kernels.arithmetic import arithmetic, channel_block, triton_arithmetic
from effnet_lit.model.kernels.launching import launch
from effnet_lit.model.kernels.pointwise_kernels import (
    add_kernel,
    moments_kernel,
    norm_gradient_kernel,
    norm_sums_kernel,
)

BLOCK_VALUES = 512  # of a [BLOCK_P, BLOCK_C] tensor: 4 for each thread
PROGRAMS_WANTED = 2048  # several for each multiprocessor of a large GPU
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


def pass_over(kernel: Any, arguments: tuple[Tensor | int, ...], cut: Cut, **options: bool) -> None:
    """``arguments`` are what the kernel takes before ``pixels``; the first tells the type to compute in."""
    x = arguments[0]
    assert isinstance(x, Tensor)
    assert all_channels_last(*(a for a in arguments if isinstance(a, Tensor) and a.shape == x.shape))
    launch(
        kernel,
        cut.programs * triton.cdiv(cut.channels, cut.block),
        *arguments,
        cut.pixels,
        cut.runs,
        cut.steps,
        cut.channels,
        BLOCK_P=BLOCK_VALUES // cut.block,
        BLOCK_C=cut.block,
        ACC=triton_arithmetic(x.dtype),
        **options,
    )


def all_channels_last(*tensors: Tensor) -> bool:
    """Whether channels lie side by side in all of them."""
    return all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def by_image(x: Tensor) -> Cut:
    """For x (N, C, H, W)."""
    images, channels, height, width = x.shape
    return cut_of(images, height * width, channels)


def all_pixels(x: Tensor) -> Cut:
    """For x (N, C, H, W), as if it were one image."""
    return cut_of(1, x.numel() // x.shape[1], x.shape[1])


def sums_like(x: Tensor, *shape: int) -> Tensor:
    """Without contents, in the type that kernels compute x in."""
    return torch.empty(shape, dtype=arithmetic(x.dtype), device=x.device)


def moments(x: Tensor) -> Tensor:
    """Of x (N, C, H, W): [3, programs, C], see ``store_moments``."""
    cut = all_pixels(x)
    result = sums_like(x, 3, cut.programs, cut.channels)
    pass_over(moments_kernel, (x, result, cut.programs), cut)
    return result


def of_images(sums: Tensor, cut: Cut) -> Tensor:
    """What the runs of an image wrote [..., N, runs, C] -> [..., N, C]."""
    return sums.squeeze(-2) if cut.runs == 1 else sums.sum(-2)


def pool(y: Tensor, folded: Tensor) -> Tensor:
    """Sums of silu(y * scale + shift) over an image's pixels [N, C]."""
    cut = by_image(y)
    sums = sums_like(y, cut.images, cut.runs, cut.channels)
    pass_over(pool_kernel, (y, *folded[:2], sums), cut)
    return of_images(sums, cut)


def gated(y: Tensor, folded: Tensor, gate: Tensor) -> Tensor:
    """silu(y * scale + shift) * gate of y (N, C, H, W) and gate [N, C]."""
    e = torch.empty_like(y)
    pass_over(gate_kernel, (y, *folded[:2], gate, e), by_image(y))
    return e


def gate_sums(y: Tensor, de: Tensor, folded: Tensor) -> Tensor:
    """[5, N, C], sums over an image, with a = silu(z) and s = silu'(z): of de * a for the gate; of de * s, s,
    de * s * (y - mean) and s * (y - mean) for the BatchNorm, since dz = (de * gate + dpooled) * s is linear in values
    of an image."""
    cut = by_image(y)
    sums = sums_like(y, 5, cut.images, cut.runs, cut.channels)
    pass_over(gate_sums_kernel, (y, de, *folded[:3], sums, cut.programs), cut)
    return of_images(sums, cut)


def gate_gradient(y: Tensor, de: Tensor, folded: Tensor, gate: Tensor, dpooled: Tensor, correction: Tensor) -> Tensor:
    """Gradient with regard to y (N, C, H, W), through activation and BatchNorm.

    Args:
        dpooled: [N, C], the gradient of the image's mean over its number of pixels.
        correction: [2, C], see ``norm_backward``.
    """
    dy = torch.empty_like(y)
    pass_over(gate_gradient_kernel, (y, de, *folded[:3], gate, dpooled, correction, dy), by_image(y), GATED=True)
    return dy


def pool_sums(y: Tensor, folded: Tensor, dpooled: Tensor) -> Tensor:
    """[2, programs, C] of dz = dpooled * silu'(z), [N, C] to every pixel, and of dz * (y - mean)."""
    cut = by_image(y)
    sums = sums_like(y, 2, cut.programs, cut.channels)
    pass_over(pool_sums_kernel, (y, *folded[:3], dpooled, sums, cut.programs), cut)
    return sums


def pool_gradient(y: Tensor, folded: Tensor, dpooled: Tensor, correction: Tensor) -> Tensor:
    """As ``gate_gradient``, where only the mean over an image has a gradient."""
    dy = torch.empty_like(y)
    tensors = (y, y, *folded[:3], dpooled, dpooled, correction, dy)  # y and dpooled twice: not read as de and gate
    pass_over(gate_gradient_kernel, tensors, by_image(y), GATED=False)
    return dy


def norm_add(x: Tensor, folded: Tensor, keep: Tensor | None, skip: Tensor | None) -> Tensor:
    """(x * scale + shift) * keep + skip of x and skip (N, C, H, W) and keep [N]."""
    out = torch.empty_like(x)
    tensors = (x, x if skip is None else skip, *folded[:2], x if keep is None else keep, out)
    pass_over(add_kernel, tensors, by_image(x), SKIP=skip is not None, KEEP=keep is not None)
    return out


def norm_sums(x: Tensor, dz: Tensor, folded: Tensor, keep: Tensor | None) -> Tensor:
    """[2, programs, C] of dz * keep and of dz * keep * (x - mean)."""
    cut = by_image(x)
    sums = sums_like(x, 2, cut.programs, cut.channels)
    tensors = (x, dz, folded[2], x if keep is None else keep, sums, cut.programs)
    pass_over(norm_sums_kernel, tensors, cut, KEEP=keep is not None)
    return sums


def norm_gradient(x: Tensor, dz: Tensor, folded: Tensor, correction: Tensor, keep: Tensor | None = None) -> Tensor:
    """scale * keep * dz - correction[0] - correction[1] * (x - mean), the BatchNorm's gradient."""
    dx = torch.empty_like(x)
    tensors = (x, dz, folded[0], folded[2], correction, x if keep is None else keep, dx)
    pass_over(norm_gradient_kernel, tensors, by_image(x), KEEP=keep is not None)
    return dx
