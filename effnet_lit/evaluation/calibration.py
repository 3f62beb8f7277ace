"""Probabilities that mean what they say, and when to answer "not sure". Fitted on the validation part alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
RESAMPLES = 1000
SPREAD = 0.5  # of ln(temperature) expected beforehand, so that few or faultless images do not push it to an extreme
FEWEST = 20  # answers that a threshold must leave
USUAL_WISH = 0.95
CONFORMAL = (0.8, 0.9, 0.95, 0.99)


def fit_temperature(logits: Tensor, labels: Tensor, spread: float = SPREAD) -> float:
    """What logits must be divided by so that their softmax is as likely as possible on these labels (arXiv 1706.04599),
    with a normal prior of deviation ``spread`` on its logarithm.

    Args:
        logits: (N, classes); logarithms of probabilities do as well.
        labels: (N,) int64.
    """
    if len(labels) == 0:
        return 1.0
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = functional.cross_entropy(logits / log_temperature.exp(), labels, reduction="sum")
        value = (fit + log_temperature.square() / (2 * spread**2)) / len(labels)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return float(log_temperature.detach().exp())


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: over bins of equal width, the mean gap between confidence and share right, each
    weighted by its images (arXiv 1706.04599).

    Args:
        confidence: (N,) probability of the answer.
        right: (N,) whether it was right.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, confidence - right, bins)
    return float(np.abs(gaps).sum() / max(1, len(right)))


def calibration_interval(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[float, float]:
    """95% interval of ``calibration_error`` by drawing the images anew; it is above zero by its nature."""
    if len(right) == 0:
        return 0.0, 1.0
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(len(right), size=len(right))
        found.append(calibration_error(confidence[chosen], right[chosen], bins))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


class Coverage(NamedTuple):
    """Answers sorted by confidence, the surest first: share answered, share right among them, least confidence."""

    share: np.ndarray
    accuracy: np.ndarray
    threshold: np.ndarray


def coverage(confidence: np.ndarray, right: np.ndarray) -> Coverage:
    """Accuracy if only the surest are answered. Equal confidences are answered together."""
    order = np.argsort(-confidence, kind="stable")
    sure, correct = confidence[order], np.cumsum(right[order])
    count = np.arange(1, len(order) + 1)
    last = np.append(sure[1:] != sure[:-1], True) if len(order) else np.zeros(0, bool)
    return Coverage((count / max(1, len(order)))[last], (correct / count)[last], sure[last])


def wanted_accuracy(accuracy: float) -> float:
    """What answers should reach where no wish is given: 95%, or half the mistakes where there are fewer."""
    return max(USUAL_WISH, 1 - (1 - accuracy) / 2)


def abstain_below(confidence: np.ndarray, right: np.ndarray, wanted: float) -> float:
    """The least confidence from which on answers are ``wanted`` right; 1.01, which answers nothing, where none is."""
    found = coverage(confidence, right)
    enough = (found.accuracy >= wanted) & (found.share * len(right) >= min(FEWEST, len(right)))
    return float(found.threshold[enough].min()) if enough.any() else 1.01


def reachable_wish(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """What answers should reach, and from which confidence on they do: half the mistakes where so few images can show
    that, else the usual wish."""
    wanted = wanted_accuracy(float(right.mean()))
    threshold = abstain_below(confidence, right, wanted)
    return (wanted, threshold) if threshold <= 1 else (USUAL_WISH, abstain_below(confidence, right, USUAL_WISH))


def conformal_threshold(probabilities: np.ndarray, labels: np.ndarray, level: float) -> float:
    """The set of classes with at least this probability holds the true one with chance ``level`` or more, for new
    images like these (split conformal prediction, arXiv 2107.07511, section 1)."""
    scores = np.sort(1 - probabilities[np.arange(len(labels)), labels])
    rank = math.ceil((len(labels) + 1) * level)
    return float(1 - scores[rank - 1]) if rank <= len(scores) else 0.0


def calibrate(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """What a model file stores: temperature, the thresholds for "not sure" and for sets of classes.

    Args:
        log_probabilities: (N, classes) of the validation part, not calibrated.
        labels: (N,) int64.
    """
    temperature = fit_temperature(log_probabilities, labels)
    probabilities = torch.softmax(log_probabilities / temperature, dim=1).numpy()
    truth = labels.numpy()
    right = probabilities.argmax(1) == truth
    found = {"temperature": temperature, "wanted_accuracy": USUAL_WISH, "abstain_below": 0.0}
    if len(right):
        found["wanted_accuracy"], found["abstain_below"] = reachable_wish(probabilities.max(1), right)
    return found | {f"set_{level:g}": conformal_threshold(probabilities, truth, level) for level in CONFORMAL}
