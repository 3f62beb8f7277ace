"""When the functions of this folder stand in for the modules."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effnet_lit.model.cpu.depthwise import DepthwiseConv2d
from effnet_lit.model.cpu.step import in_step, plainly_on_cpu
from effnet_lit.model.cpu.threads import threads
from effnet_lit.model.padding import SamePaddingConv2d
from effnet_lit.model.relu6 import ReLU6

SMALLEST_BYTES = 8 * 2**20  # of a batch's activations at their widest; below, waiting costs more than the cache gives


def suits(module: nn.Module, x: Tensor) -> bool:
    """Whether a function here can stand in for ``module`` whose BatchNorms follow the batches: a training step on a CPU
    in full precision, symmetric padding, SiLU, running statistics, and enough to do."""
    return in_step(x) and module.training and enough_to_do(module, x) and all(map(trains_plainly, module.modules()))


def suits_frozen(module: nn.Module, x: Tensor) -> bool:
    """The same where all its BatchNorms are frozen: with TensorFlow's padding and ReLU6, too, and in evaluation."""
    in_use = (in_step(x) and module.training) or in_evaluation(module, x)
    return in_use and enough_to_do(module, x) and all(map(frozen_plainly, module.modules()))


def in_evaluation(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` is evaluated without gradients, on at least an image for every thread. By the main thread:
    threads that others start meanwhile would keep to one core."""
    if not plainly_on_cpu(x) or module.training or torch.is_grad_enabled():
        return False  # first: compilers cannot follow what comes below
    return threading.current_thread() is threading.main_thread() and len(x) >= threads()


def enough_to_do(module: nn.Module, x: Tensor) -> bool:
    """For pieces."""
    return widest(module) * x[:, 0].numel() * x.element_size() >= SMALLEST_BYTES


def widest(module: nn.Module) -> int:
    """Most channels that a convolution of it gives."""
    return max((part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)), default=0)


def trains_plainly(part: nn.Module) -> bool:
    """For one layer: nothing about it that the functions here leave out."""
    if isinstance(part, _BatchNorm):
        plain = type(part) is nn.BatchNorm2d and part.training
        return plain and part.momentum is not None and part.running_mean is not None
    return not isinstance(part, (nn.Conv2d, ReLU6)) or type(part) in (nn.Conv2d, DepthwiseConv2d)


def frozen_plainly(part: nn.Module) -> bool:
    """The same where BatchNorm is frozen."""
    if isinstance(part, _BatchNorm):
        return not part.training and part.running_mean is not None
    return not isinstance(part, nn.Conv2d) or type(part) in (nn.Conv2d, DepthwiseConv2d, SamePaddingConv2d)
