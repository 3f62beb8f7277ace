"""What lies between the raw outputs of convolutions as autograd functions that keep those alone and compute the rest
again in backward. Tensors are (N, C, H, W) in channels_last; a BatchNorm is given with its parameters, for autograd."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from effnet_lit.model.kernels.arithmetic import arithmetic
from effnet_lit.model.kernels.depthwise import norm_silu_depthwise, norm_silu_depthwise_backward
from effnet_lit.model.kernels.norms import fold, fold_frozen, norm_backward
from effnet_lit.model.kernels.pointwise import (
    gate_gradient,
    gate_sums,
    gated,
    moments,
    norm_add,
    norm_gradient,
    norm_sums,
    pool,
    pool_gradient,
    pool_sums,
)
from effnet_lit.model.kernels.squeeze import Gate, squeeze_gate, squeeze_gate_backward

Gradients = tuple[Tensor | None, ...]


def count(x: Tensor) -> int:
    """Values of each channel."""
    return x.numel() // x.shape[1]


def folded_by(norm: nn.BatchNorm2d, x: Tensor, of_x: Tensor | None = None) -> tuple[Tensor, float]:
    """``norm`` of x folded, by its moments ``of_x`` where they are known, and how many values its statistics are of:
    the running ones of a frozen layer as if of infinitely many, so that none of them moves these."""
    if not norm.training:
        return fold_frozen(norm, arithmetic(x.dtype)), math.inf
    return fold(moments(x) if of_x is None else of_x, norm, count(x)), count(x)


def lines(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last -> a view [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def channels_last(x: Tensor) -> Tensor:
    """Copies only what was not."""
    return x.contiguous(memory_format=torch.channels_last)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, on a GPU not rounded to their own type before it becomes ``dtype``."""
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda and dtype != a.dtype else torch.mm(a, b).to(dtype)


class Pointwise(torch.autograd.Function):
    """1x1 convolution, as products of matrices; the weight's gradient leaves its sum in full precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        low = weight.flatten(1).to(x.dtype)
        ctx.save_for_backward(x, low)
        ctx.like = weight.shape, weight.dtype
        images, _, height, width = x.shape
        return torch.mm(lines(x), low.t()).view(images, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        x, low = ctx.saved_tensors
        dy = lines(channels_last(grads[0]))
        dx = torch.empty_like(x)
        torch.mm(dy, low, out=lines(dx))
        shape, dtype = ctx.like
        return dx, product(dy.t(), lines(x), dtype).view(shape)


class NormSiluDepthwise(torch.autograd.Function):
    """Raw x -> raw depthwise convolution of silu(norm(x)), and its moments, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, norm: nn.BatchNorm2d, stride: int
    ) -> tuple[Tensor, Tensor]:
        folded, ctx.values = folded_by(norm, x)
        y, of_y = norm_silu_depthwise(x, folded, kernel, stride)
        ctx.save_for_backward(x, folded, weight, kernel)
        ctx.stride = stride
        ctx.mark_non_differentiable(of_y)
        return y, of_y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        x, folded, weight, kernel = ctx.saved_tensors
        dy = channels_last(grads[0])
        dz, sums, dkernel = norm_silu_depthwise_backward(x, dy, folded, kernel, ctx.stride)
        dweight, dbias, correction = norm_backward(sums, folded, weight, ctx.values)
        return norm_gradient(x, dz, folded, correction), dweight, dbias, dkernel, None, None


class NormSiluGate(torch.autograd.Function):
    """Raw y -> silu(norm(y)) * gate, the gate from squeeze-and-excitation: what the projection reads.

    ``squeeze``: weight and bias of reduce and expand.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, of_y: Tensor, norm: nn.BatchNorm2d, *squeeze: Tensor
    ) -> Tensor:
        folded, ctx.values = folded_by(norm, y, of_y)
        result = squeeze_gate(pool(y, folded), y.shape[2] * y.shape[3], squeeze)
        ctx.save_for_backward(y, folded, weight, *squeeze, *result)
        return gated(y, folded, result.gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        y, folded, weight, *others = ctx.saved_tensors
        squeeze, result, de = tuple(others[:4]), Gate(*others[4:]), channels_last(grads[0])
        back = squeeze_gate_backward(gate_sums(y, de, folded), result, y.shape[2] * y.shape[3], squeeze)
        dweight, dbias, correction = norm_backward(back.norm_sums, folded, weight, ctx.values)
        dy = gate_gradient(y, de, folded, result.gate, back.dpooled, correction)
        return dy, dweight, dbias, None, None, *back.parameters


class NormAdd(torch.autograd.Function):
    """norm(x) * keep + skip, of x and skip (N, C, H, W) and keep [N]; without ``skip``, norm(x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        skip: Tensor | None,
        keep: Tensor | None,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        folded, ctx.values = folded_by(norm, x)
        ctx.save_for_backward(x, folded, weight, keep)
        ctx.skips = skip is not None
        return norm_add(x, folded, keep, skip)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        x, folded, weight, keep = ctx.saved_tensors
        dz = channels_last(grads[0])
        dweight, dbias, correction = norm_backward(norm_sums(x, dz, folded, keep), folded, weight, ctx.values)
        dx = norm_gradient(x, dz, folded, correction, keep)
        return dx, dweight, dbias, dz if ctx.skips else None, None, None


class NormSiluPool(torch.autograd.Function):
    """Raw y (N, C, H, W) -> the mean over an image of silu(norm(y)) [N, C], in what the kernels compute in."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        folded, ctx.values = folded_by(norm, y)
        ctx.save_for_backward(y, folded, weight)
        return pool(y, folded) / (y.shape[2] * y.shape[3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        y, folded, weight = ctx.saved_tensors
        dpooled = grads[0] / (y.shape[2] * y.shape[3])
        dweight, dbias, correction = norm_backward(pool_sums(y, folded, dpooled), folded, weight, ctx.values)
        return pool_gradient(y, folded, dpooled, correction), dweight, dbias, None
