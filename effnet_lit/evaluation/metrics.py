"""How good a model is on images it has not seen, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from effnet_lit.model.modelfile import ImageClassifier


@torch.inference_mode()
def predict_probabilities(classifier: ImageClassifier, images: Iterable[np.ndarray]) -> Tensor:
    """Probabilities (N, classes), float32 on the CPU, of uint8 images (S, S, 3), a batch of which is in memory."""
    device, coming, found = classifier.mean.device, iter(images), []
    while batch := list(islice(coming, classifier.batch)):
        found.append(classifier(torch.from_numpy(np.stack(batch)).to(device)).cpu())
    return torch.cat(found) if found else torch.empty(0, len(classifier.header.class_names))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, JASA 1927); (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def measure(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95% interval, top-5, macro F1, loss, figures per class and the confusion matrix.

    Args:
        probabilities: (N, classes), rows sum to 1.
        labels: (N,) int64.
    """
    classes = len(class_names)
    right = int((probabilities.argmax(1) == labels).sum())
    options: dict[str, Any] = {"num_classes": classes}
    per_class = {
        "precision": multiclass_precision(probabilities, labels, average="none", **options),
        "recall": multiclass_recall(probabilities, labels, average="none", **options),
        "f1": multiclass_f1_score(probabilities, labels, average="none", **options),
    }
    counts = torch.bincount(labels, minlength=classes)
    picked = probabilities[torch.arange(len(labels)), labels].clamp_min(1e-12)
    return {
        "accuracy": right / len(labels),
        "accuracy_ci95": list(wilson_interval(right, len(labels))),
        "images": len(labels),
        "top5_accuracy": float(
            multiclass_accuracy(probabilities, labels, top_k=min(5, classes), average="micro", **options)
        ),
        "f1_macro": float(multiclass_f1_score(probabilities, labels, average="macro", **options)),
        "loss": float(-picked.log().mean()),
        "per_class": {
            name: {"images": int(counts[i])} | {key: float(values[i]) for key, values in per_class.items()}
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": multiclass_confusion_matrix(probabilities, labels, **options).tolist(),
    }


def baseline_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy on the test part of always answering the most frequent class of the training part."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())
