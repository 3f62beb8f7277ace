"""A batch in pieces of a few images, small enough to stay in the cache from one layer to the next.

Moving activations between memory and cores takes longer than the arithmetic on them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from effnet_lit.model.cpu.threads import at_once, threads

PIECE_BYTES = 8 * 2**20  # of expanded activations; smaller pieces cost more calls, larger ones leave the cache


def split(x: Tensor, channels: int) -> Sequence[Tensor]:
    """Views of as many images each, so that a piece with so many channels has at most about ``PIECE_BYTES`` and every
    thread gets as many pieces as another."""
    image = channels * x.shape[2] * x.shape[3] * x.element_size()
    turns = math.ceil(len(x) / max(1, PIECE_BYTES // image) / threads())
    return x.split(max(1, len(x) // (turns * at_once())))


def rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C), a view in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_images(pixels: Tensor, like: Tensor) -> Tensor:
    """(N H W, C) -> (N, C, H, W) with ``like``'s N, H and W, a view in channels_last."""
    return pixels.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


def total(terms: Sequence[Tensor]) -> Tensor:
    """Sum of tensors."""
    return functools.reduce(torch.add, terms)


def totals(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Of each gradient the sum over pieces."""
    return [total(terms) for terms in zip(*gradients, strict=True)]


def parts(pieces: Sequence[Tensor]) -> list[slice]:
    """Where in the batch each piece's images are."""
    ends = list(itertools.accumulate(len(piece) for piece in pieces))
    return [slice(end - len(piece), end) for end, piece in zip(ends, pieces, strict=True)]


def new_images(count: int, like: Tensor) -> Tensor:
    """Uninitialised (count, C, H, W) in channels_last, of ``like``'s channels and size."""
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, memory_format=torch.channels_last)
