"""1x1 convolution of one piece.

On an AMD EPYC oneDNN's convolution was faster than a matrix product, and these two than its own gradients of input and
weight (docs/decisions/training_step.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from effnet_lit.model.cpu.pieces import rows


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> (N, E, H, W) by ``weight`` (E, C, 1, 1), in channels_last also where N is 1."""
    return of_lines(functional.conv2d(lines(x), weight, bias), x)


def pointwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``weight`` by one piece."""
    by_x = pointwise(gradient, weight.transpose(0, 1))
    return by_x, (rows(gradient).t() @ rows(x)).view_as(weight)


def weight_and_bias_gradients(gradient: Tensor, x: Tensor) -> Tensor:
    """(C + 1, E) by one piece: the weight's, transposed, and in the last row the bias'. One product for both, and with
    the few channels of ``x`` first it is faster."""
    pixels = rows(x)
    return torch.cat([pixels, pixels.new_ones(len(pixels), 1)], 1).t() @ rows(gradient)


def lines(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H, C, 1, W), a view: with one thread PyTorch gives fewer than 16 images to a slower code."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h, 1, w, c).permute(0, 3, 1, 2)


def of_lines(y: Tensor, like: Tensor) -> Tensor:
    """(N H, E, 1, W) -> (N, E, H, W) with ``like``'s N and H, a view."""
    n, _, h, w = like.shape
    return y.permute(0, 2, 3, 1).reshape(n, h, w, -1).permute(0, 3, 1, 2)
