"""Figures against independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_score, recall_score, top_k_accuracy_score

from effnet_lit.evaluation.metrics import baseline_accuracy, measure, wilson_interval


@pytest.mark.parametrize(("right", "trials"), [(0, 10), (10, 10), (97, 100), (1, 3), (350, 360)])
def test_wilson_interval_agrees_with_scipy(right: int, trials: int) -> None:
    interval = binomtest(right, trials).proportion_ci(method="wilson")
    assert wilson_interval(right, trials) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_measure_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (300,), generator=generator)
    logits = torch.randn(300, 7, generator=generator)
    logits[torch.arange(300), labels] += 1.5
    probabilities = logits.softmax(1)
    names = [f"class {i}" for i in range(7)]
    figures = measure(probabilities, labels, names)
    answers, truth, chances = probabilities.argmax(1).numpy(), labels.numpy(), probabilities.numpy()
    assert figures["accuracy"] == pytest.approx((answers == truth).mean())
    assert figures["images"] == 300
    assert figures["f1_macro"] == pytest.approx(f1_score(truth, answers, average="macro"), abs=1e-6)
    assert figures["top5_accuracy"] == pytest.approx(top_k_accuracy_score(truth, chances, k=5), abs=1e-6)
    assert figures["loss"] == pytest.approx(log_loss(truth, chances), abs=1e-5)
    assert figures["confusion_matrix"] == confusion_matrix(truth, answers).tolist()
    for key, function in (("precision", precision_score), ("recall", recall_score)):
        ours = [figures["per_class"][name][key] for name in names]
        assert ours == pytest.approx(function(truth, answers, average=None), abs=1e-6)


def test_measure_with_two_classes_and_an_absent_one() -> None:
    figures = measure(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 0]), ["a", "b"])
    assert figures["accuracy"] == 1.0
    assert figures["per_class"]["b"]["images"] == 0


def test_baseline_answers_the_most_frequent_training_class() -> None:
    assert baseline_accuracy(np.array([0, 1, 1]), np.array([0, 1, 1, 2])) == 0.5
