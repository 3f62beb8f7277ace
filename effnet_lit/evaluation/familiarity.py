"""Fitting what tells images that are unlike the training ones, and from where on they are called so."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from effnet_lit.model.familiarity import Familiarity

DIRECTIONS = 64  # docs/decisions/unlike.md
FALSE_ALARMS = 0.05  # share of images like the training ones that are called unlike all the same


def fit_familiarity(features: Tensor) -> Familiarity:
    """Mean and widest directions of training images, features (N, F) float32 of what reaches the last layer."""
    mean = features.double().mean(0)
    _, _, directions = torch.linalg.svd(features.double() - mean, full_matrices=False)
    return Familiarity(mean.float(), directions[:DIRECTIONS].float().contiguous())


def unlike_above(shares: Tensor) -> float:
    """What all but ``FALSE_ALARMS`` of new images like these (N,) stay below (split conformal prediction,
    arXiv 2107.07511, section 1); the largest where there are too few to tell."""
    rank = min(len(shares), math.ceil((len(shares) + 1) * (1 - FALSE_ALARMS)))
    return float(shares.sort().values[rank - 1])
