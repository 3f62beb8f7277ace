"""When the functions of this folder stand in for the modules."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effnet_lit.model.cpu.depthwise import DepthwiseConv2d
from effnet_lit.model.cpu.step import in_step
from effnet_lit.model.relu6 import ReLU6

SMALLEST_BYTES = 8 * 2**20  # of a batch's activations at their widest; below, waiting costs more than the cache gives


def suits(module: nn.Module, x: Tensor) -> bool:
    """Whether a function here can stand in for ``module``: a training step on a CPU in full precision, symmetric
    padding, every BatchNorm with running statistics, and enough to do."""
    return (
        in_step(x)
        and module.training
        and widest(module) * x[:, 0].numel() * x.element_size() >= SMALLEST_BYTES
        and all(trains_plainly(part) for part in module.modules())
    )


def widest(module: nn.Module) -> int:
    """Most channels that a convolution of it gives."""
    return max((part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)), default=0)


def trains_plainly(part: nn.Module) -> bool:
    """For one layer: nothing about it that the functions here leave out."""
    if isinstance(part, _BatchNorm):
        plain = type(part) is nn.BatchNorm2d
        return plain and part.momentum is not None and part.running_mean is not None
    return not isinstance(part, (nn.Conv2d, ReLU6)) or type(part) in (nn.Conv2d, DepthwiseConv2d)
