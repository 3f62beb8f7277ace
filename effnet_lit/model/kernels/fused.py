"""BatchNorm, SiLU and their neighbours in MBConv as two autograd functions that keep raw convolution outputs only.

What lies between two raw outputs is computed on the way into the next kernel, and again in backward. Tensors are
[N, H, W, C] and contiguous.
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
    norm_gradient_,
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
            x, grads[0].contiguous(), norm.scale, norm.shift, norm.mean, kernel, ctx.stride
        )
        dweight, dbias, correction = norm_backward(norm, total, centred, x.numel() // x.shape[-1])
        dx = norm_gradient_(dz, x, norm.scale, norm.mean, correction)
        return dx, dweight.to(ctx.dtype), dbias.to(ctx.dtype), None, None, dkernel, None


def squeeze_gate(pooled: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor) -> Tensor:
    """[N, C] -> [N, C]; the 1x1 convolutions' weights are (out, in, 1, 1)."""
    parts = (reduce.flatten(1), reduce_bias, expand.flatten(1), expand_bias)
    first, first_bias, second, second_bias = (part.to(pooled.dtype) for part in parts)
    with torch.autocast(pooled.device.type, enabled=False):  # few values: in full precision
        hidden = functional.silu(functional.linear(pooled, first, first_bias))
        return torch.sigmoid(functional.linear(hidden, second, second_bias))


class NormSiluGateProject(torch.autograd.Function):
    """Raw y -> raw 1x1 projection of silu(norm(y)) * gate, the gate from squeeze-and-excitation."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        moments: Moments,
        eps: float,
        projection: Tensor,
        *squeeze: Tensor,
    ) -> Tensor:
        norm = fold(weight, bias, moments.mean, moments.variance, eps)
        pooled = norm_silu_pool(y, norm.scale, norm.shift)
        gate = squeeze_gate(pooled, *squeeze)
        e = norm_silu_gate(y, norm.scale, norm.shift, gate)
        result = functional.linear(e, projection.flatten(1).to(e.dtype))
        ctx.save_for_backward(y, projection, pooled, gate, *norm, *squeeze)
        ctx.dtype = weight.dtype
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, projection, pooled, gate, scale, shift, mean, inverse, *squeeze = ctx.saved_tensors
        norm = Norm(scale, shift, mean, inverse)
        upstream = grads[0].flatten(0, 2)  # (N H W, out)
        e = norm_silu_gate(y, scale, shift, gate)
        dprojection = upstream.t() @ e.flatten(0, 2)
        del e
        de = (upstream @ projection.flatten(1).to(y.dtype)).view_as(y)
        sums = gate_sums(y, de, scale, shift, mean)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (pooled, *squeeze)]
            dpooled, *dsqueeze = torch.autograd.grad(squeeze_gate(*leaves), leaves, sums.gate)
        dpooled = dpooled / (y.shape[1] * y.shape[2])
        total = (gate * sums.outer + dpooled * sums.inner).sum(0)
        centred = (gate * sums.outer_centred + dpooled * sums.inner_centred).sum(0)
        dweight, dbias, correction = norm_backward(norm, total, centred, y.numel() // y.shape[-1])
        dy = gate_gradient(y, de, scale, shift, mean, gate, dpooled, correction)
        dprojection = dprojection.view_as(projection).to(projection.dtype)
        return dy, dweight.to(ctx.dtype), dbias.to(ctx.dtype), None, None, dprojection, *dsqueeze
