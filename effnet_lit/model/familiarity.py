"""How much of what a network sees in an image its training images did not show."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Familiarity(nn.Module):
    """What reaches the last layer, less its mean in training: the share of its squared length that lies outside the
    directions in which training images differ most. The residual of arXiv 2203.10807 (section 4.1), made relative, so
    that faint images are judged like strong ones.

    Args:
        mean: (F,).
        directions: (R, F), orthonormal rows; 0.3 MB in the file of a B0.
    """

    NAMES: ClassVar = ("mean", "directions")
    mean: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,), from 0, all is as in training, to 1."""
        away = features - self.mean
        length = away.square().sum(1)
        return 1 - (away @ self.directions.T).square().sum(1) / length.clamp_min(1e-12)
