"""Squeeze-and-excitation from sums over images to the gate, and back: one launch, and two."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from effnet_lit.model.kernels.arithmetic import triton_arithmetic
from effnet_lit.model.kernels.launching import launch
from effnet_lit.model.kernels.squeeze_kernels import parameters_kernel, squeeze_backward_kernel, squeeze_kernel

BLOCK_VALUES = 8192  # of a matrix that a program holds at once
WARPS = 8
BLOCK = 16  # images at once and channels, where products over images are summed


class Gate(NamedTuple):
    """What forward computed for N images, C channels and S squeezed ones."""

    pooled: Tensor  # [N, C]
    squeezed: Tensor  # [N, S], before SiLU
    activated: Tensor  # [N, S]
    gate: Tensor  # [N, C]


def blocks(x: Tensor, squeezed: int) -> dict[str, Any]:
    """Of both kernels."""
    block = max(16, triton.next_power_of_2(squeezed))  # products of matrices take 16 and more
    channels = min(128, BLOCK_VALUES // block)
    return {"BLOCK_C": channels, "BLOCK_S": block, "ACC": triton_arithmetic(x.dtype), "warps": WARPS}


def squeeze_gate(sums: Tensor, pixels: int, squeeze: tuple[Tensor, ...]) -> Gate:
    """From sums [N, C] over ``pixels``; ``squeeze``: weight and bias of reduce and expand, (out, in, 1, 1)."""
    images, channels = sums.shape
    squeezed = squeeze[0].shape[0]
    pooled, gate = sums.new_empty(2, images, channels)
    before, after = sums.new_empty(2, images, squeezed)
    result = Gate(pooled, before, after, gate)
    launch(squeeze_kernel, images, sums, *squeeze, *result, pixels, channels, squeezed, **blocks(sums, squeezed))
    return result


class GateGradients(NamedTuple):
    """What backward gives."""

    dpooled: Tensor  # [N, C], of an image's mean over its number of pixels
    norm_sums: Tensor  # [2, N, C], of dz and dz * (y - mean) for the BatchNorm before
    parameters: tuple[Tensor, ...]  # of weight and bias of reduce and expand


def squeeze_gate_backward(sums: Tensor, result: Gate, pixels: int, squeeze: tuple[Tensor, ...]) -> GateGradients:
    """``sums`` [5, N, C] are those of ``gate_sums``; ``squeeze`` as in ``squeeze_gate``."""
    _, images, channels = sums.shape
    reduce, _, expand, _ = squeeze
    squeezed = reduce.shape[0]
    dlogit, dpooled = sums.new_empty(2, images, channels)
    dsqueezed, norm_sums = sums.new_empty(images, squeezed), sums.new_empty(2, images, channels)
    options = blocks(sums, squeezed)
    launch(
        squeeze_backward_kernel,
        images,
        sums,
        reduce,
        expand,
        result.squeezed,
        result.gate,
        dlogit,
        dsqueezed,
        dpooled,
        norm_sums,
        images,
        pixels,
        channels,
        squeezed,
        **options,
    )
    parameters = tuple(torch.empty_like(parameter) for parameter in squeeze)
    launch(
        parameters_kernel,
        triton.cdiv(channels, BLOCK),
        dlogit,
        dsqueezed,
        result.pooled,
        result.activated,
        *parameters,
        images,
        channels,
        squeezed,
        **options | {"BLOCK_N": BLOCK, "BLOCK_C": BLOCK},
    )
    return GateGradients(dpooled, norm_sums, parameters)
