"""ReLU6 (arXiv 1704.04861) in less memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class ReLU6(nn.Module):
    """nn.ReLU6, which in training keeps its output for backward, as a convolution behind it does too, not its input."""

    def forward(self, x: Tensor) -> Tensor:
        return ClampedTo6.apply(x) if self.training else functional.relu6(x)  # type: ignore[return-value]


class ClampedTo6(torch.autograd.Function):
    """Values and gradient of ``ReLU6``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = functional.relu6(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0, 6)
