"""What a finished model tells of its training images: kept in result.json for the doctor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from effnet_lit.data.prepare import PreparedData
from effnet_lit.evaluation.features import training_sample
from effnet_lit.evaluation.labels import likely_wrong_labels

SURE = 0.5  # least probability with which a label is contradicted
TEMPLATE_IMAGES = 64  # of a class, for its mean image
TEMPLATE_SIDE = 32  # pixels
NEARER = 0.7  # the mirrored mean of one class is so much nearer to the other's than the mean as it is
OFTEN = 0.1  # share of two classes' images that are taken for each other


def gather(
    data: PreparedData, sample: Tensor, test: Tensor, confusion: Sequence[Sequence[int]], mirrors: bool
) -> dict[str, Any]:
    """All of it.

    Args:
        sample: (N, classes) probabilities of ``training_sample(data)``.
        test: (N, classes) probabilities of the held-out images.
        confusion: counts, true class by answer.
        mirrors: whether training mirrors its images.
    """
    right = test.argmax(1).numpy() == data.labels[data.part("test")]
    train = data.labels[data.part("train")]
    return {
        "training_sample": learnt(sample.numpy(), data.labels[training_sample(data)]),
        "training_images": {name: int((train == i).sum()) for i, name in enumerate(data.class_names)},
        "copies_held_out": copies_held_out(data, right),
        "mirror_pairs": list(mirror_pairs(data, confusion)) if mirrors else [],
    }


def learnt(found: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy on training images seen as held-out ones are, and how many of their labels the model contradicts."""
    right = int((found.argmax(1) == labels).sum())
    suspected = likely_wrong_labels(found, labels)
    return {
        "images": len(labels),
        "right": right,
        "accuracy": right / len(labels),
        "contradicted": int((found[suspected].max(1) >= SURE).sum()),
    }


def copies_held_out(data: PreparedData, right: np.ndarray) -> dict[str, int]:
    """Held-out images that look like one of the training part, and how many of them were answered right.

    Args:
        right: (N,) of the held-out images.
    """
    part = {path: str(split) for path, split in zip(data.paths, data.splits, strict=True)}
    place = {data.paths[i]: n for n, i in enumerate(data.part("test"))}
    copies = set()
    for finding in data.audit["findings"]:
        if finding["kind"].startswith("near_"):
            for item in finding["items"]:
                if any(part.get(path) == "train" for path in item["paths"]):
                    copies |= {path for path in item["paths"] if path in place}
    return {"images": len(copies), "right": int(sum(right[place[path]] for path in copies))}


def mirror_pairs(data: PreparedData, confusion: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Any]]:
    """Classes that are often taken for each other, and of which one mirrored looks like the other."""
    templates: dict[int, np.ndarray] = {}
    for a, b in combinations(range(len(data.class_names)), 2):
        taken, images = confusion[a][b] + confusion[b][a], sum(confusion[a]) + sum(confusion[b])
        if min(confusion[a][b], confusion[b][a]) == 0 or taken < OFTEN * images:
            continue
        for label in (a, b):
            templates.setdefault(label, mean_image(data, label))
        mirrored = np.linalg.norm(templates[a][:, ::-1] - templates[b])
        if mirrored < NEARER * np.linalg.norm(templates[a] - templates[b]):
            yield {"classes": [data.class_names[a], data.class_names[b]], "taken": taken, "images": images}


def mean_image(data: PreparedData, label: int) -> np.ndarray:
    """(TEMPLATE_SIDE, TEMPLATE_SIDE) mean brightness of a class's training images."""
    rows = data.rows[np.flatnonzero((data.labels == label) & (data.splits == "train"))[:TEMPLATE_IMAGES]]
    mean = data.images[rows].mean(axis=(0, 3))
    edges = np.linspace(0, len(mean), TEMPLATE_SIDE + 1).astype(int)[:-1]
    return np.add.reduceat(np.add.reduceat(mean, edges, 0), edges, 1) / (len(mean) / TEMPLATE_SIDE) ** 2
