"""Calibration against independent implementations and on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from effnet_lit.evaluation.calibration import (
    abstain_below,
    calibrate,
    calibration_error,
    calibration_interval,
    conformal_threshold,
    coverage,
    fit_temperature,
    reachable_wish,
    wanted_accuracy,
)


def drawn(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: temperature 1 is the truth."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(truth: float) -> None:
    logits, labels = drawn(20_000, 5)
    assert fit_temperature(logits * truth, labels) == pytest.approx(truth, rel=0.03)


def test_the_same_as_a_grid_search() -> None:
    logits, labels = drawn(500, 5)
    logits = logits * 3
    grid = np.exp(np.linspace(-2, 2, 4001))
    losses = [float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in grid]
    assert fit_temperature(logits, labels, spread=1e6) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


def test_faultless_answers_do_not_become_certain() -> None:
    logits, labels = torch.eye(10).repeat(5, 1) * 4, torch.arange(10).repeat(5)
    assert 0.2 < fit_temperature(logits, labels) < 1.0
    assert fit_temperature(torch.zeros(0, 10), torch.zeros(0, dtype=torch.long)) == 1.0


def test_error_as_torchmetrics_measures_it() -> None:
    logits, labels = drawn(3000, 7)
    probabilities = torch.softmax(logits * 1.7, 1)
    confidence, answer = probabilities.max(1)
    ours = calibration_error(confidence.numpy(), (answer == labels).numpy())
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    low, high = calibration_interval(confidence.numpy(), (answer == labels).numpy())
    assert low < ours < high < 2 * ours


def test_calibrated_answers_have_a_small_error() -> None:
    logits, labels = drawn(20_000, 5)
    confidence, answer = torch.softmax(logits, 1).max(1)
    assert calibration_error(confidence.numpy(), (answer == labels).numpy()) < 0.015
    assert calibration_error(np.full(100, 0.9), np.arange(100) < 60) == pytest.approx(0.3)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.99])
def test_sets_hold_the_true_class_as_often_as_they_say(level: float) -> None:
    logits, labels = drawn(4000, 6)
    probabilities, truth = torch.softmax(logits * 3, 1).numpy(), labels.numpy()  # much too sure, and still
    threshold = conformal_threshold(probabilities[:2000], truth[:2000], level)
    held = probabilities[2000:][np.arange(2000), truth[2000:]] >= threshold
    deviation = (level * (1 - level) / 2000 * 2) ** 0.5  # of the two halves together
    assert held.mean() == pytest.approx(level, abs=4 * deviation)


def test_too_few_images_for_a_level_give_all_classes() -> None:
    assert conformal_threshold(np.full((10, 2), 0.5), np.zeros(10, int), 0.99) == 0.0


def test_coverage_by_hand() -> None:
    found = coverage(np.array([0.9, 0.6, 0.9, 0.7]), np.array([True, False, False, True]))
    assert found.share.tolist() == [0.5, 0.75, 1.0]
    assert found.accuracy.tolist() == [0.5, pytest.approx(2 / 3), 0.5]
    assert found.threshold.tolist() == [0.9, 0.7, 0.6]


def test_a_threshold_meets_the_wish_on_new_images() -> None:
    logits, labels = drawn(20_000, 4)
    probabilities = torch.softmax(logits, 1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    threshold = abstain_below(confidence[:10_000], right[:10_000], 0.95)
    kept = confidence[10_000:] >= threshold
    assert right.mean() < 0.85
    assert right[10_000:][kept].mean() == pytest.approx(0.95, abs=0.015)
    assert 0.1 < kept.mean() < 0.5


def test_wishes_that_cannot_be_met() -> None:
    assert abstain_below(np.linspace(0.1, 0.9, 100), np.zeros(100, bool), 0.95) > 1
    assert wanted_accuracy(0.7) == 0.95
    assert wanted_accuracy(0.99) == pytest.approx(0.995)


def test_few_images_that_cannot_show_the_higher_wish_keep_the_usual_one() -> None:
    confidence, right = np.linspace(0.99, 0.7, 24), np.arange(24) != 2
    assert abstain_below(confidence, right, wanted_accuracy(23 / 24)) > 1
    assert reachable_wish(confidence, right) == (0.95, pytest.approx(0.7))


def test_what_a_model_file_stores() -> None:
    logits, labels = drawn(1000, 5)
    found = calibrate(torch.log_softmax(logits * 2, 1).float(), labels)
    assert found["temperature"] == pytest.approx(2, rel=0.15)
    assert found["set_0.8"] > found["set_0.9"] > found["set_0.99"] >= 0
    assert 0 < found["abstain_below"] < 1
    assert all(isinstance(value, float) for value in found.values())
