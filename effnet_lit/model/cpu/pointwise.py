"""1x1 convolution of one piece.

By oneDNN's convolutions, the gradients too: matrix products are MKL's, which leaves half of a core's width unused on
processors other than Intel's (docs/decisions/training_step.md).
"""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

FEWEST_LINES = 16  # with one thread PyTorch gives fewer images to MKL


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> (N, E, H, W) by ``weight`` (E, C, 1, 1), in channels_last also where N is 1."""
    return of_lines(functional.conv2d(lines(x), weight, bias), x)


def pointwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x``, as a convolution, for which oneDNN takes less time, and of ``weight`` by one piece."""
    return pointwise(gradient, weight.transpose(0, 1)), weight_gradient(gradient, x)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Of the weight, (E, C, 1, 1), by one piece."""
    return conv2d_weight(lines(x), (gradient.shape[1], x.shape[1], 1, 1), lines(gradient))


def lines(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (L, C, 1, N H W / L) in channels_last, a view of what is: at least 16 images, and few more, where
    N H allows."""
    n, c, h, w = x.shape
    count = line_count(n * h)
    return x.permute(0, 2, 3, 1).reshape(count, 1, n * h * w // count, c).permute(0, 3, 1, 2)


@functools.cache
def line_count(rows: int) -> int:
    """Lines of as many rows each."""
    return next((count for count in range(FEWEST_LINES, rows) if rows % count == 0), rows)


def of_lines(y: Tensor, like: Tensor) -> Tensor:
    """(L, E, 1, N H W / L) -> (N, E, H, W) with ``like``'s N, H and W, a view."""
    n, _, h, w = like.shape
    return y.permute(0, 2, 3, 1).reshape(n, h, w, -1).permute(0, 3, 1, 2)
