"""BatchNorm, SiLU and their neighbours in MBConv as two autograd functions that keep raw outputs of convolutions only.

What lies between two of them is computed on the way into the next kernel, and again in backward. Tensors are
(N, C, H, W) in channels_last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from effnet_lit.model.kernels.depthwise import norm_silu_depthwise, norm_silu_depthwise_backward
from effnet_lit.model.kernels.moments import Moments
from effnet_lit.model.kernels.pointwise import (
    gate_gradient,
    gate_sums,
    norm_gradient,
    norm_silu_gate,
    norm_silu_pool,
)


class Norm(NamedTuple):
    """A BatchNorm in training, folded: x * scale + shift; all [C]."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse_deviation: Tensor


def fold(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Norm:
    """In the statistics' type."""
    inverse = torch.rsqrt(variance + eps)
    scale = weight.to(inverse.dtype) * inverse
    return Norm(scale, bias.to(inverse.dtype) - mean * scale, mean, inverse)


def norm_backward(norm: Norm, dz: Tensor, dz_centred: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dbias, correction) of a BatchNorm from the sums of dz and dz * (x - mean): arXiv 1502.03167, section 3.

    The correction [2, C] is what the batch's mean and variance take from scale * dz: a constant, a slope in x - mean.
    """
    slope = norm.scale * norm.inverse_deviation.square() * dz_centred / count
    return dz_centred * norm.inverse_deviation, dz, torch.stack((norm.scale * dz / count, slope))


class NormSiluDepthwise(torch.autograd.Function):
    """Raw x -> raw depthwise convolution of silu(norm(x)), and its moments, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, moments: Moments, eps: float, kernel: Tensor, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        norm = fold(weight, bias, moments.mean, moments.variance, eps)
        y, (mean, variance, _) = norm_silu_depthwise(x, norm.scale, norm.shift, kernel, stride)
        ctx.save_for_backward(x, kernel, *norm)
        ctx.stride, ctx.dtype = stride, weight.dtype
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, *parts = ctx.saved_tensors
        norm = Norm(*parts)
        dz, (total, centred), dkernel = norm_silu_depthwise_backward(
            x,
            grads[0].contiguous(memory_format=torch.channels_last),
            norm.scale,
            norm.shift,
            norm.mean,
            kernel,
            ctx.stride,
        )
        dweight, dbias, correction = norm_backward(norm, total, centred, x.numel() // x.shape[1])
        dx = norm_gradient(dz, x, norm.scale, norm.mean, correction)
        return dx, dweight.to(ctx.dtype), dbias.to(ctx.dtype), None, None, dkernel, None


def squeeze_gate(
    pooled: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """pooled [N, C] -> (squeezed [N, S] before SiLU, gate [N, C]); 1x1 convolutions' weights are (out, in, 1, 1)."""
    parts = (reduce.flatten(1), reduce_bias, expand.flatten(1), expand_bias)
    first, first_bias, second, second_bias = (part.to(pooled.dtype) for part in parts)
    with torch.autocast(pooled.device.type, enabled=False):  # few values: in full precision
        squeezed = functional.linear(pooled, first, first_bias)
        return squeezed, torch.sigmoid(functional.linear(functional.silu(squeezed), second, second_bias))


def squeeze_gate_backward(
    dgate: Tensor, pooled: Tensor, squeezed: Tensor, gate: Tensor, reduce: Tensor, expand: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(dpooled, gradients of the four parameters)."""
    sigmoid = torch.sigmoid(squeezed)
    slope = sigmoid * (1 + squeezed * (1 - sigmoid))  # of SiLU
    with torch.autocast(pooled.device.type, enabled=False):
        dexpanded = dgate * gate * (1 - gate)
        dsqueezed = (dexpanded @ expand.flatten(1).to(gate.dtype)) * slope
        dexpand = dexpanded.t() @ (squeezed * sigmoid)
        dreduce = dsqueezed.t() @ pooled
        dpooled = dsqueezed @ reduce.flatten(1).to(gate.dtype)
    grads = (dreduce.view_as(reduce), dsqueezed.sum(0), dexpand.view_as(expand), dexpanded.sum(0))
    return dpooled, grads


class NormSiluGate(torch.autograd.Function):
    """Raw y -> silu(norm(y)) * gate, the gate from squeeze-and-excitation: what the projection reads."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, moments: Moments, eps: float, *squeeze: Tensor
    ) -> Tensor:
        norm = fold(weight, bias, moments.mean, moments.variance, eps)
        pooled = norm_silu_pool(y, norm.scale, norm.shift)
        squeezed, gate = squeeze_gate(pooled, *squeeze)
        ctx.save_for_backward(y, pooled, squeezed, gate, *norm, squeeze[0], squeeze[2])
        ctx.dtype = weight.dtype
        return norm_silu_gate(y, norm.scale, norm.shift, gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, pooled, squeezed, gate, scale, shift, mean, inverse, reduce, expand = ctx.saved_tensors
        norm, de = Norm(scale, shift, mean, inverse), grads[0].contiguous(memory_format=torch.channels_last)
        sums = gate_sums(y, de, scale, shift, mean)
        dpooled, dsqueeze = squeeze_gate_backward(sums.gate, pooled, squeezed, gate, reduce, expand)
        dpooled = dpooled / (y.shape[2] * y.shape[3])
        total = (gate * sums.outer + dpooled * sums.inner).sum(0)
        centred = (gate * sums.outer_centred + dpooled * sums.inner_centred).sum(0)
        dweight, dbias, correction = norm_backward(norm, total, centred, y.numel() // y.shape[1])
        dy = gate_gradient(y, de, scale, shift, mean, gate, dpooled, correction)
        dsqueeze = (grad.to(ctx.dtype) for grad in dsqueeze)
        return dy, dweight.to(ctx.dtype), dbias.to(ctx.dtype), None, None, *dsqueeze
