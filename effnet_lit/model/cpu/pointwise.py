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
    return functional.conv2d(x, weight, bias).contiguous(memory_format=torch.channels_last)


def pointwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``weight`` by one piece."""
    by_x, _, _ = aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
    )
    return by_x, (rows(gradient).t() @ rows(x)).view_as(weight)
