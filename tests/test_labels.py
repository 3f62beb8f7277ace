"""Wrong labels that were planted are found, among predictions of a model that is right as often as is usual."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from effnet_lit.evaluation.labels import likely_wrong_labels


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)


def held_out(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes), each from a model that did not see the image."""
    model = LogisticRegression(C=0.3, max_iter=300)
    return cross_val_predict(model, pixels / 16, labels, cv=4, method="predict_proba")


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_planted_labels_are_found(digits: tuple[np.ndarray, np.ndarray], share: float) -> None:
    pixels, truth = digits
    random = np.random.default_rng(0)
    planted = random.choice(len(truth), int(share * len(truth)), replace=False)
    labels = truth.copy()
    labels[planted] = (labels[planted] + random.integers(1, 10, len(planted))) % 10
    found = likely_wrong_labels(held_out(pixels, labels), labels)
    hits = np.isin(found, planted)
    assert hits.sum() > 0.7 * len(planted)
    assert hits.mean() > 0.8
    assert hits[: len(planted) // 2].mean() > 0.95  # surest first


def test_a_sure_and_right_model_raises_no_alarm() -> None:
    labels = np.arange(100) % 4
    probabilities = np.full((100, 4), 0.02)
    probabilities[np.arange(100), labels] = 0.94
    assert len(likely_wrong_labels(probabilities, labels)) == 0


def test_a_class_that_was_not_held_out_suspects_nobody() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7], [0.9, 0.05, 0.05], [0.1, 0.85, 0.05]])
    assert len(likely_wrong_labels(probabilities, np.array([1, 0, 1]))) == 0
