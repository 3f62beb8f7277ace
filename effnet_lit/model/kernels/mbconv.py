"""A network's training forward by the kernels, in channels_last."""

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
    """Whether the kernels compute this block in training: plain BatchNorms, symmetric padding, more than one pixel."""
    convolution = block.depthwise.conv
    expansion: Any = block.expand
    return (
        block.training
        and plain(block.depthwise.norm)
        and plain(block.project.norm)
        and (not isinstance(expansion, nn.Sequential) or plain(expansion.norm))
        and type(convolution) is DepthwiseConv2d
        and (x.shape[0] > 1 or max(x.shape[2:]) > convolution.stride[0])
    )


def covers_stem(stem: ConvNorm, first: MBConv, images: Tensor) -> bool:
    """Whether the kernels compute the stem's BatchNorm and SiLU on the way into the first block's convolution."""
    return (
        stem.training
        and type(stem.conv) is nn.Conv2d
        and plain(stem.norm)
        and isinstance(first.expand, nn.Identity)
        and len(images) > 1
        and covers(first, images)
    )


def covers_head(head: ConvNorm, images: Tensor) -> bool:
    """Whether the kernels compute the head, with the mean over an image."""
    return head.training and plain(head.norm) and len(images) > 1


def plain(norm: Any) -> bool:
    """With statistics of its own, not synchronised between processes; in training, or frozen in evaluation."""
    usual = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.affine
    return usual and norm.momentum is not None


def mbconv_with_kernels(block: MBConv, x: Tensor, stem: ConvNorm | None = None) -> Tensor:
    """``block(x)``, (N, C, H, W) in channels_last, of a block that the kernels cover; or ``block(stem(x))``.

    Backward keeps the block's input, the raw outputs of its convolutions and the projection's input, and recomputes the
    rest. Running statistics are updated, or frozen, as by ``nn.BatchNorm2d``.
    """
    assert covers(block, x)
    from effnet_lit.model.kernels.fused import NormAdd, NormSiluDepthwise, NormSiluGate, Pointwise, channels_last
    from effnet_lit.model.kernels.pointwise import moments

    x = channels_last(in_autocast(x))
    norm, convolution = block.depthwise.norm, block.depthwise.conv
    before: Any = block.expand if isinstance(block.expand, nn.Sequential) else stem
    if before is not None:
        raw = Pointwise.apply(x, before.conv.weight) if stem is None else channels_last(before.conv(x))
        parameters = before.norm.weight, before.norm.bias, convolution.weight
        y, of_y = NormSiluDepthwise.apply(raw, *parameters, before.norm, convolution.stride[0])
    else:
        y = channels_last(convolution(x))
        of_y = moments(y.detach())
    reduce, expand = block.squeeze_excite.reduce, block.squeeze_excite.expand
    squeeze = reduce.weight, reduce.bias, expand.weight, expand.bias
    e = NormSiluGate.apply(y, norm.weight, norm.bias, of_y, norm, *squeeze)
    last = block.project.norm
    raw = Pointwise.apply(e, block.project.conv.weight)
    skip, keep = (x, kept(block, x)) if block.has_skip else (None, None)
    return NormAdd.apply(raw, last.weight, last.bias, skip, keep, last)


def head_with_kernels(head: ConvNorm, x: Tensor) -> Tensor:
    """The mean over an image of ``head(x)``, [N, C]."""
    from effnet_lit.model.kernels.fused import NormSiluPool, Pointwise, channels_last

    raw = Pointwise.apply(channels_last(in_autocast(x)), head.conv.weight)
    return NormSiluPool.apply(raw, head.norm.weight, head.norm.bias, head.norm).to(raw.dtype)


def in_autocast(x: Tensor) -> Tensor:
    """In the type that convolutions compute in."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def kept(block: MBConv, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies each image by [N], as ``StochasticDepth`` in mode "row"; None where by 1."""
    survives = 1.0 - block.drop_path.p
    if survives == 1.0:
        return None
    return torch.empty(len(x), device=x.device).bernoulli_(survives).div_(survives)
