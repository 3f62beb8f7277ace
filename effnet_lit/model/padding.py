"""TensorFlow's padding of convolutions."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional


class SamePaddingConv2d(nn.Conv2d):
    """Convolution of padding 0 whose input is padded: at stride 2 the odd pixel goes to the right and the bottom."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(functional.pad(input, self.around(input)), weight, bias)

    def around(self, input: Tensor) -> tuple[int, int, int, int]:
        """Pixels to add at the left, right, top and bottom of (N, C, H, W)."""
        (bottom, top), (right, left) = (
            same_padding(size, kernel, stride)
            for size, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return left, right, top, bottom


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(after, before) so that ceil(size / stride) pixels come out."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total - total // 2, total // 2
