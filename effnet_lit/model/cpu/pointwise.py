"""1x1 convolution of one piece.

oneDNN's convolution was faster than a matrix product on an AMD EPYC, and a matrix product than its gradient of the
weight (docs/decisions/training_step.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from effnet_lit.model.cpu.pieces import rows

aten = torch.ops.aten


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> (N, E, H, W) by ``weight`` (E, C, 1, 1), in channels_last also where N is 1."""
    return of_lines(functional.conv2d(lines(x), weight, bias), x)


def pointwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``weight`` by one piece."""
    by_x, _, _ = aten.convolution_backward(
        lines(gradient), lines(x), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
    )
    return of_lines(by_x, x), (rows(gradient).t() @ rows(x)).view_as(weight)


def lines(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H, C, 1, W), a view: with one thread PyTorch gives fewer than 16 images to a slower code."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h, 1, w, c).permute(0, 3, 1, 2)


def of_lines(y: Tensor, like: Tensor) -> Tensor:
    """(N H, E, 1, W) -> (N, E, H, W) with ``like``'s N and H, a view."""
    n, _, h, w = like.shape
    return y.permute(0, 2, 3, 1).reshape(n, h, w, -1).permute(0, 3, 1, 2)
