"""What kernels of all kinds share: the type they compute in, sigmoid and SiLU's slope, loading rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)); by a square root, which takes a third of a division's instructions."""
    root = tl.rsqrt(1.0 + tl.exp2(z * -LOG2_E))
    return root * root


@triton.jit
def silu_slope(z):
    s = sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@triton.jit
def load_rows(matrix, first, rows, column, COLUMNS, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """BLOCK rows from ``first`` on of matrix [rows, COLUMNS], 0 after the last."""
    row = first + tl.arange(0, BLOCK)[:, None]
    inside = (row < rows) & (column < COLUMNS)[None, :]
    return tl.load(matrix + row * COLUMNS + column[None, :], mask=inside, other=0.0).to(ACC)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in: float64 of float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def triton_arithmetic(dtype: torch.dtype) -> tl.dtype:
    """``arithmetic`` in Triton's words."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def channel_block(channels: int) -> int:
    """Channels a program handles; after an expansion B0 to B7 have multiples of 16, so none is left over."""
    return 32 if channels % 32 == 0 else 16
