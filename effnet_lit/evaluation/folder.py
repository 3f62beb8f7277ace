"""Measuring a model file on a folder of classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from effnet_lit.config import UserError
from effnet_lit.data.cache import decode_or_reason, in_order
from effnet_lit.data.folder import Index
from effnet_lit.data.source import read_images
from effnet_lit.data.split_file import SPLIT, read_split
from effnet_lit.evaluation.metrics import measure, predict_probabilities
from effnet_lit.machine import cores
from effnet_lit.model.modelfile import Header, ImageClassifier


def evaluate_folder(classifier: ImageClassifier, folder: Path, run: Path | None = None) -> dict[str, Any]:
    """``measure`` on every readable image of a folder, or on its test part where it has parts, plus ``notes``.

    ``run`` is the folder of the model file; its split.csv, where there is one, tells which images were trained on.

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
    labels: list[int] = []

    def images() -> Iterator[np.ndarray]:
        console = Console(stderr=True)
        coming = zip(chosen, decoded(index, chosen, classifier), strict=True)
        bar = track(coming, "evaluating", len(chosen), console=console, transient=True, disable=not console.is_terminal)
        for i, image in bar:
            if isinstance(image, str):
                notes.append(f"left out: {index.paths[i]} ({image})")
            else:
                labels.append(known[index.class_names[index.labels[i]]])
                yield image

    probabilities = predict_probabilities(classifier, images())
    if not labels:
        raise UserError(f"{folder} holds no image that can be read; run effnet predict on one of them to see why.")
    figures = measure(probabilities, torch.tensor(labels), classifier.header.class_names)
    return figures | {"notes": notes + doubts(index, chosen, labels, classifier.header, run)}


def doubts(index: Index, chosen: list[int], labels: list[int], header: Header, run: Path | None) -> list[str]:
    """Why the figures may mean something else than they seem to."""
    notes, trained_on, training = [], header.data.get("images"), training_paths(run)
    seen = sum(index.paths[i] in training for i in chosen)
    if missing := len(header.class_names) - len(set(labels)):
        notes.append(
            f"Note: {missing} of {len(header.class_names)} classes have no image here, and count as 0 in the macro F1."
        )
    if seen:
        notes.append(
            f"Note: {seen:,} of these {len(chosen):,} images have paths of training images of this run (split.csv). If "
            "they are the same, this figure is too good; result.json has the held-out one."
        )
    elif not training and not any(index.splits) and trained_on == len(index.paths):
        notes.append(
            f"Note: the model was trained on a folder of exactly {trained_on:,} images too. If it is this one, most of "
            "them were training images and this figure is too good; result.json has the held-out one."
        )
    return notes


def training_paths(run: Path | None) -> set[str]:
    """As split.csv tells them; none where it is gone."""
    try:
        return {path for path, part in read_split(run / SPLIT).items() if part == "train"} if run else set()
    except UserError:
        return set()


def measured_part(index: Index) -> tuple[list[int], list[str]]:
    """Image numbers to measure: all, or test (else val) where the folder has parts; and a note that says so."""
    for part in ("test", "val"):
        chosen = [i for i, split in enumerate(index.splits) if split == part]
        if chosen:
            return chosen, [f"Measured on the {part} part of the folder."]
    return list(range(len(index.paths))), []


def decoded(index: Index, chosen: list[int], classifier: ImageClassifier) -> Iterator[np.ndarray | str]:
    """Each image as uint8 (S, S, 3), or the reason why not; a few ahead of who takes them."""
    header = classifier.header
    return in_order(lambda i: decode_or_reason(index, i, header.eval_size, header.resize), chosen, cores())
