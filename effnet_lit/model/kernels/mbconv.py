"""MBConv's training forward by the kernels, for networks in channels_last."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from effnet_lit.model.cpu.depthwise import DepthwiseConv2d

if TYPE_CHECKING:
    from effnet_lit.model.efficientnet import ConvNorm, MBConv


def available() -> bool:
    """Triton is installed and has a GPU to compile for, or interprets (TRITON_INTERPRET=1)."""
    if importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def covers(block: MBConv, x: Tensor) -> bool:
    """Whether the kernels compute this block: plain BatchNorms in training, symmetric padding, more than one pixel."""
    convolution = block.depthwise.conv
    expansion: Any = block.expand
    return (
        plain_in_training(block.depthwise.norm)
        and (not isinstance(expansion, nn.Sequential) or plain_in_training(expansion.norm))
        and type(convolution) is DepthwiseConv2d
        and (x.shape[0] > 1 or max(x.shape[2:]) > convolution.stride[0])
    )


def covers_stem(stem: ConvNorm, first: MBConv, images: Tensor) -> bool:
    """Whether the kernels compute the stem's BatchNorm and SiLU on the way into the first block's convolution."""
    return (
        type(stem.conv) is nn.Conv2d
        and plain_in_training(stem.norm)
        and isinstance(first.expand, nn.Identity)
        and len(images) > 1
        and covers(first, images)
    )


def plain_in_training(norm: Any) -> bool:
    """Neither frozen nor synchronised between processes."""
    return type(norm) is nn.BatchNorm2d and norm.training and norm.track_running_stats and norm.momentum is not None


def mbconv_with_kernels(block: MBConv, x: Tensor, stem: ConvNorm | None = None) -> Tensor:
    """``block(x)``, (N, C, H, W) in channels_last, of a block that the kernels cover; or ``block(stem(x))``.

    Backward keeps the block's input, the raw outputs of its convolutions and the projection's input, and recomputes the
    rest. Running statistics are updated as by ``nn.BatchNorm2d``.
    """
    assert covers(block, x)
    from effnet_lit.model.kernels.fused import NormSiluDepthwise, NormSiluGate
    from effnet_lit.model.kernels.moments import Moments
    from effnet_lit.model.kernels.pointwise import channel_moments

    norm, convolution = block.depthwise.norm, block.depthwise.conv
    before: Any = block.expand if isinstance(block.expand, nn.Sequential) else stem
    if before is not None:
        raw, first = channels_last(before.conv(x)), before.norm
        moments = channel_moments(raw.detach())
        update_running(first, *moments)
        arguments = (first.weight, first.bias, moments, first.eps, convolution.weight, convolution.stride[0])
        y, mean, variance = NormSiluDepthwise.apply(raw, *arguments)
        moments = Moments(mean, variance, y.numel() // y.shape[1])
    else:
        y = channels_last(convolution(x))
        moments = channel_moments(y.detach())
    update_running(norm, *moments)
    reduce, expand = block.squeeze_excite.reduce, block.squeeze_excite.expand
    squeeze = (reduce.weight, reduce.bias, expand.weight, expand.bias)
    y = block.project(NormSiluGate.apply(y, norm.weight, norm.bias, moments, norm.eps, *squeeze))
    return x + block.drop_path(y) if block.has_skip else y


def channels_last(x: Tensor) -> Tensor:
    """Copies only what was not."""
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running mean and unbiased variance, as ``nn.BatchNorm2d`` does."""
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    assert norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
