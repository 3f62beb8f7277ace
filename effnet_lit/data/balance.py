"""Weights for uneven classes."""

from __future__ import annotations

import numpy as np

BETA = 0.999


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 (classes,): the inverse of each class's effective number of images, 1 on average over the images.

    A class of n images counts as (1 - BETA^n) / (1 - BETA): images of a large class resemble each other, so weights
    grow less than sizes shrink. Cui et al. 2019, arXiv 1901.05555, equation 3.
    """
    images = np.bincount(labels, minlength=classes)
    weights = np.zeros(classes)
    there = images > 0
    weights[there] = (1 - BETA) / (1 - BETA ** images[there])
    return weights / weights[labels].mean()
