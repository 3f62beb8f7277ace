"""Convolution, BatchNorm and SiLU as one function: the stem and the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from effnet_lit.model.cpu.batchnorm import (
    Moments,
    Statistics,
    moments_of,
    norm_gradients,
    normalise,
    statistics_of,
    through_norm,
)
from effnet_lit.model.cpu.pieces import new_images, parts, split, total
from effnet_lit.model.cpu.threads import each, undivided

if TYPE_CHECKING:
    from effnet_lit.model.efficientnet import ConvNorm

aten = torch.ops.aten


def fused_conv_norm(layer: ConvNorm, x: Tensor) -> Tensor:
    """``layer(x)`` of convolution, BatchNorm and SiLU, (N, C, H, W) -> (N, C', H', W')."""
    x = x.contiguous(memory_format=torch.channels_last)
    return FusedConvNorm.apply(layer, x, *layer.tensors())  # type: ignore[return-value]


class FusedConvNorm(torch.autograd.Function):
    """Convolution, BatchNorm, SiLU. Kept for backward: the input and the convolution's raw output."""

    @staticmethod
    @undivided
    def forward(ctx: Any, layer: ConvNorm, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        stride = layer.conv.stride[0] * layer.conv.stride[1]

        def to_raw(piece: Tensor) -> tuple[Tensor, Moments]:
            y = functional.conv2d(piece, weight, None, layer.conv.stride, layer.conv.padding)
            y = y.contiguous(memory_format=torch.channels_last)
            return y, moments_of(y)

        def to_result(part: slice, piece: Tensor) -> None:
            aten.silu_(normalise(piece, statistics, scale, shift, out=result[part]))

        raw, moments = zip(*each(to_raw, split(x, len(weight) // stride)), strict=True)
        statistics = statistics_of(moments, layer.norm)
        result = new_images(len(x), raw[0])
        each(to_result, parts(raw), raw)
        ctx.layer, ctx.pixels = layer, statistics.pixels
        ctx.save_for_backward(x, weight, scale, shift, *statistics[:2], *raw)
        return result

    @staticmethod
    @once_differentiable
    @undivided
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, scale, shift, mean, inverse, *raw = ctx.saved_tensors
        statistics = Statistics(mean, inverse, ctx.pixels)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        conv, wanted = ctx.layer.conv, [ctx.needs_input_grad[1], True, False]
        by_x = torch.empty_like(x) if wanted[0] else None

        def through_activation(part: slice, piece: Tensor) -> tuple[Tensor, Tensor]:
            dz = aten.silu_backward(gradient[part], normalise(piece, statistics, scale, shift))
            return dz, norm_gradients(dz, piece, statistics, scale)

        def through_convolution(part: slice, piece: Tensor, dz: Tensor) -> Tensor:
            by_input, by_weight, _ = aten.convolution_backward(
                to_raw(dz, piece), x[part], weight, None, conv.stride, conv.padding, [1, 1], False, [0, 0], 1, wanted
            )
            if by_x is not None:
                by_x[part] = by_input
            return by_weight

        by_z, gradients = zip(*each(through_activation, parts(raw), raw), strict=True)
        by_norm = total(gradients)
        to_raw = through_norm(statistics, scale, by_norm)
        by_weight = total(each(through_convolution, parts(raw), raw, by_z))
        return None, by_x, by_weight, *by_norm
