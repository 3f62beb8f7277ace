"""A last layer fitted on what the unchanged network sees: seconds, an early honest figure, and a start that does not
tear the loaded weights apart (arXiv 2202.10054)."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from effnet_lit.data.prepare import PreparedData
from effnet_lit.evaluation.features import answers_and_features
from effnet_lit.evaluation.metrics import wilson_interval
from effnet_lit.model.modelfile import ImageClassifier
from effnet_lit.model.zoo import last_layer

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # on the weights of scaled features
HELD_OUT = 5  # every fifth image chooses among them
ITERATIONS = 100


class Preview(NamedTuple):
    """What the head alone gets right on the validation part."""

    accuracy: float
    interval: tuple[float, float]
    images: int
    seconds: float

    def sentence(self) -> str:
        """For the screen."""
        low, high = self.interval
        return (
            f"{self.accuracy:.1%} right on {self.images:,} validation images (95% interval {low:.1%} to {high:.1%}) "
            f"with the last layer alone, after {self.seconds:.0f} s"
        )


def fit_head(classifier: ImageClassifier, data: PreparedData) -> Preview:
    """Fit the last layer on the training images as evaluation sees them, and measure on the validation images."""
    started = time.perf_counter()
    layer = last_layer(classifier.network)
    train = data.part("train")
    labels = torch.from_numpy(data.labels[train])
    _, seen = answers_and_features(classifier, data, train)
    weight, bias = fit_linear(seen, labels, layer.out_features)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    val = data.part("val")
    found, _ = answers_and_features(classifier, data, val)
    right = int((found.argmax(1) == torch.from_numpy(data.labels[val])).sum())
    interval = wilson_interval(right, len(val))
    return Preview(right / max(1, len(val)), interval, len(val), time.perf_counter() - started)


def fit_linear(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: weight (classes, C) and bias (classes) for features (N, C).

    The decay is chosen on every fifth image, then all are fitted. Features are divided by the root of their standard
    deviation (Pareto scaling, van den Berg et al. 2006): by all of it, a feature that hardly any image shows would get
    a weight hundreds of times the others'.
    """
    mean, deviation = x.mean(0), x.std(0)
    scale = (deviation * deviation.square().mean().sqrt()).sqrt().clamp_min(1e-6)
    z = ((x - mean) / scale).double()
    held_out = torch.arange(len(z)) % HELD_OUT == 0
    losses = []
    for decay in DECAYS:
        weight, bias = descend(z[~held_out], labels[~held_out], classes, decay)
        losses.append(float(functional.cross_entropy(z[held_out] @ weight.t() + bias, labels[held_out])))
    weight, bias = descend(z, labels, classes, DECAYS[int(np.argmin(losses))])
    weight = weight / scale
    return weight.float(), (bias - weight @ mean.double()).float()


def descend(z: Tensor, labels: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """L-BFGS on cross-entropy plus ``decay`` times the squared weights."""
    weight = torch.zeros(classes, z.shape[1], dtype=z.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=z.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(z @ weight.t() + bias, labels) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
