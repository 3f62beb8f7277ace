"""Learning curves and the confusion matrix as PNG files."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from effnet_lit.evaluation.fonts import fonts_for

CURVES = (("train", "#9aa5b1", "training (augmented, smoothed labels)"), ("val", "#1f6feb", "validation"))

LONGEST = 24  # letters of a class's name


def plot_learning_curves(metrics_csv: Path, target: Path) -> None:
    """Loss and accuracy over epochs, training and validation, one row an epoch in metrics.csv."""
    with open(metrics_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour, label in CURVES:
            points = [(int(row["epoch"]), float(row[key])) for row in rows if row.get(key := f"{part}/{quantity}")]
            axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, marker=".", label=label)
        axes.set(xlabel="epoch", title=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.85, edgecolor="none")
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter("{x:.0%}")
    save(figure, target)


def plot_confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str], target: Path) -> None:
    """Counts of (true class, predicted class); colour is the share of the true class."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.45 * len(class_names))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes: Axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, format="{x:.0%}", shrink=0.8, label="share of the true class")
    ticks, names = range(len(class_names)), [short(name) for name in class_names]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ticks, names)
    axes.set(
        xlabel="predicted", ylabel="true", title=f"Held-out images: {np.trace(counts):,} of {counts.sum():,} right"
    )
    if len(class_names) <= 30:
        for true, predicted in np.argwhere(counts > 0):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", color=colour, fontsize=8)
    save(figure, target, "".join(names))


def plot_settings(
    names: Sequence[str], accuracies: Sequence[float], intervals: Sequence[tuple[float, float]], target: Path
) -> None:
    """Validation accuracy of each setting of a sweep with its 95% interval, the first on top."""
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(names)), layout="constrained")
    axes: Axes = figure.subplots()
    places = range(len(names), 0, -1)
    below = [value - low for value, (low, _) in zip(accuracies, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(accuracies, intervals, strict=True)]
    axes.errorbar(accuracies, places, xerr=[below, above], fmt="o", color="#1f6feb", ecolor="#9aa5b1", capsize=3)
    axes.set_yticks(places, names)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="right on the validation images, with 95% interval", ylim=(0.4, len(names) + 0.6))
    axes.grid(axis="x", alpha=0.25)
    save(figure, target, "".join(names))


def short(name: str) -> str:
    """A name that leaves room for the picture, and is no formula to matplotlib."""
    shown = name if len(name) <= LONGEST else name[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return shown.replace("$", r"\$")


def save(figure: Figure, target: Path, names: str = "") -> None:
    """Write the figure as PNG; letters in ``names`` that no font here has become boxes, without a warning for each."""
    fonts = fonts_for(names)
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(target, dpi=130)
