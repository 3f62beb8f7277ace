"""Which labels are probably wrong, by what a model says of images it was not trained on."""

from __future__ import annotations

import numpy as np


def likely_wrong_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Numbers of the images whose label is probably wrong, surest first; empty where there is no evidence.

    ``probabilities`` (N, classes) must be held-out predictions. An image is suspected where a class other than its own
    is as probable as usual for images of that class: confident joint of Northcutt et al. 2021, arXiv 1911.00068,
    section 3.1; ranked by normalised margin.
    """
    classes = probabilities.shape[1]
    there = np.bincount(labels, minlength=classes) > 0
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.full(classes, np.inf)  # the mean probability of a class over the images that carry its label
    usual[there] = [own[labels == label].mean() for label in np.flatnonzero(there)]
    sure = np.where(probabilities >= usual, probabilities, 0.0)
    likely = sure.argmax(1)
    suspected = (sure.max(1) > 0) & (likely != labels) & (probabilities.argmax(1) != labels)
    margin = probabilities.max(1) - own
    chosen = np.flatnonzero(suspected)
    return chosen[np.argsort(-margin[chosen], kind="stable")]
