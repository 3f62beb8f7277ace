"""What a model answers, and what reaches its last layer, for images of a run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from effnet_lit.data.prepare import PreparedData
from effnet_lit.model.modelfile import ImageClassifier

SAMPLE = 1000  # training images that are looked at again


@torch.inference_mode()
def answers_and_features(classifier: ImageClassifier, data: PreparedData, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
    """Probabilities (N, classes) and features (N, F) of images by their numbers, float32 on the CPU, from the cached
    images."""
    device = next(classifier.parameters()).device
    rows = data.rows[numbers]
    found = []
    for start in range(0, len(rows), classifier.batch):
        images = torch.from_numpy(np.ascontiguousarray(data.images[rows[start : start + classifier.batch]]))
        found.append(tuple(part.cpu() for part in classifier.with_features(images.to(device))))
    probabilities, features = zip(*found, strict=True)
    return torch.cat(probabilities), torch.cat(features)


def training_sample(data: PreparedData) -> np.ndarray:
    """Numbers of training images, evenly spaced."""
    part = data.part("train")
    return part[np.unique(np.linspace(0, len(part) - 1, min(SAMPLE, len(part))).astype(int))]
