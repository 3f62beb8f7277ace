"""Measuring a model file on a folder of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from effnet_lit.config import UserError
from effnet_lit.data.cache import decode_or_reason, in_order
from effnet_lit.data.folder import Index
from effnet_lit.data.source import read_images
from effnet_lit.evaluation.metrics import measure, predict_probabilities
from effnet_lit.machine import cores
from effnet_lit.model.modelfile import ImageClassifier


def evaluate_folder(classifier: ImageClassifier, folder: Path) -> dict[str, Any]:
    """``measure`` on every readable image of a folder, or on its test part where it has parts, plus ``notes``.

    Raises:
        UserError: the folder cannot be read, or holds a class the model does not know.
    """
    index = read_images(folder, None, None)
    known = {name: label for label, name in enumerate(classifier.header.class_names)}
    unknown = [name for name in index.class_names if name not in known]
    if unknown:
        raise UserError(
            f"{folder} has a class '{unknown[0]}' that this model was not trained on; "
            f"its classes are: {', '.join(list(known)[:20])}."
        )
    chosen, notes = measured_part(index)
    images, labels = [], []
    for i, image in zip(
        chosen, decode_all(index, chosen, classifier.header.eval_size, classifier.header.resize), strict=True
    ):
        if isinstance(image, str):
            notes.append(f"left out: {index.paths[i]} ({image})")
        else:
            images.append(image)
            labels.append(known[index.class_names[index.labels[i]]])
    if not images:
        raise UserError(f"{folder} holds no image that can be read; run effnet predict on one of them to see why.")
    probabilities = predict_probabilities(classifier, lambda start, stop: np.stack(images[start:stop]), len(images))
    figures = measure(probabilities, torch.tensor(labels), classifier.header.class_names)
    if missing := len(known) - len(set(labels)):
        notes.append(f"Note: {missing} of {len(known)} classes have no image here, and count as 0 in the macro F1.")
    trained_on = classifier.header.data.get("images")
    if not any(index.splits) and trained_on == len(index.paths):
        notes.append(
            f"Note: the model was trained on a folder of exactly {trained_on:,} images too. If it is this one, most of "
            "them were training images and this figure is too good; result.json has the held-out one."
        )
    return figures | {"notes": notes}


def measured_part(index: Index) -> tuple[list[int], list[str]]:
    """Image numbers to measure: all, or test (else val) where the folder has parts; and a note that says so."""
    for part in ("test", "val"):
        chosen = [i for i, split in enumerate(index.splits) if split == part]
        if chosen:
            return chosen, [f"Measured on the {part} part of the folder."]
    return list(range(len(index.paths))), []


def decode_all(index: Index, chosen: list[int], size: int, resize: str) -> list[np.ndarray | str]:
    """Each image as uint8 (size, size, 3), or the reason why not."""
    return list(in_order(lambda i: decode_or_reason(index, i, size, resize), chosen, cores()))
