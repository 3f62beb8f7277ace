"""Whether one run is better than another: a paired test on the images that both held out."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

from effnet_lit.evaluation.report import Answer

ALPHA = 0.05


class Comparison(NamedTuple):
    """Of the images held out by both: how many, right in each, right in one alone, and the chance of a difference as
    large if the two were equally good (McNemar's exact test)."""

    images: int
    right: tuple[int, int]
    alone: tuple[int, int]
    p: float

    def sentence(self, names: tuple[str, str]) -> str:
        """For the screen."""
        if not self.images:
            return f"{names[0]} and {names[1]} held out no image in common, so they cannot be compared."
        first, second = (f"{count / self.images:.1%}" for count in self.right)
        about = f"{names[0]} {first}, {names[1]} {second} on {self.images:,} images that both held out"
        better = names[0] if self.right[0] > self.right[1] else names[1]
        if self.p < ALPHA:
            return f"{about}: {better} is better (p = {self.p:.2g})."
        return f"{about}: no difference beyond chance (p = {self.p:.2g})."


def compare(first: Sequence[Answer], second: Sequence[Answer]) -> Comparison:
    """Paths and classes that agree are the same image."""
    others = {(one.path, one.label): one for one in second}
    pairs = [(one, others[key]) for one in first if (key := (one.path, one.label)) in others]
    right = [(a.answer == a.label, b.answer == b.label) for a, b in pairs]
    alone = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
    return Comparison(len(pairs), (sum(a for a, _ in right), sum(b for _, b in right)), alone, mcnemar(*alone))


def mcnemar(first: int, second: int) -> float:
    """Two-sided exact p: each image right in one run alone is a fair coin (Psychometrika 12, 1947)."""
    count, least = first + second, min(first, second)
    tail = sum(comb(count, k) for k in range(least + 1)) / 2**count
    return min(1.0, 2 * tail)
