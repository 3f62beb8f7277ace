"""The order in which classes are told, everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def likeliest(probabilities: np.ndarray, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Names and probabilities of the likeliest classes, best first; ties in the model's order."""
    best = np.argsort(-probabilities, kind="stable")[:count]
    return [(class_names[int(i)], float(probabilities[i])) for i in best]
