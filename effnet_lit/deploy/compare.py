"""Why an app answers otherwise than ``effnet predict``: the usual mistakes are made here, alone and together, until
the answers are the app's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from effnet_lit.data.decode import DecodeError
from effnet_lit.deploy.app_answers import AppAnswer
from effnet_lit.deploy.mistakes import Preparation, usual_mistakes
from effnet_lit.deploy.preparation import answers
from effnet_lit.model.modelfile import Header, ImageClassifier

KEPT = (1, 8, 3)  # of explanations with none, one, two mistakes, best first: those to which one more is added
MANY, SKIMMED_ON = 40, 6  # of more explanations than that, those are tried that are best on so many images
TRIED_ON, CHECKED_ON = 24, 72  # images: those that choose an explanation, others that tell how much it explains
EXPLAINS = 0.9  # of the difference, at least; below that nothing is said
ENOUGH = 0.99  # of it: no further mistakes are looked for
NEARLY = 0.5  # of it on the other images: one more mistake is tried on these
HOPELESS = 0.2  # of it by two mistakes: a third is not tried
WORTH = 0.5  # of what an explanation leaves must one with a further mistake explain
SURELY, NOTABLY = 2.0, 0.0005  # standard errors, and distance, by which another explanation must be worse
SAME = 0.002  # a mean difference below which nothing is left to explain
CLEARLY, AT_LEAST = 0.6, 3  # share and number of a class's images that must be one class, to tell the order of classes

Left = dict[Preparation, np.ndarray]  # of each explanation: how far it leaves the answers apart, for every image
OneMore = Callable[[Preparation], Iterator[Preparation]]
Progress = Callable[[Sequence["Asked"], str], Iterable["Asked"]]


class Asked(NamedTuple):
    """One image: what the app answered, what ``effnet predict`` does (classes), and what reads the file."""

    app: AppAnswer
    ours: np.ndarray
    read: Callable[[], bytes]

    @property
    def apart(self) -> float:
        """How far the answers are from each other, 0 to 1."""
        return float(self.app.apart(self.ours[None])[0])

    @property
    def other(self) -> bool:
        """Whether the classes differ."""
        return not self.app.is_class(int(self.ours.argmax()))


class Cause(NamedTuple):
    """Ways to prepare images that explain the app's answers about equally well, best first; the share of the difference
    that the best one explains, and on how many images, of 25 or more on others than those that chose it."""

    ways: list[Preparation]
    explained: float
    images: int

    @property
    def common(self) -> list[tuple[str, str]]:
        """The mistakes that all of the ways make."""
        return [mistake for mistake in self.ways[0].mistakes if all(mistake in way.mistakes for way in self.ways)]


def find_cause(classifier: ImageClassifier, asked: Sequence[Asked], progress: Progress) -> Cause | None:
    """The fewest usual mistakes with which this model answers as the app did; None where none do."""
    furthest = sorted(asked, key=lambda item: -item.apart)[: TRIED_ON + CHECKED_ON]
    tried_on = furthest[:: -(-len(furthest) // TRIED_ON)]
    checked_on = without(furthest, tried_on) or tried_on
    one_more = one_more_by(classifier.header, without(asked, checked_on) or tried_on)
    left = search(classifier, tried_on, one_more, progress)
    near, before = as_good(left, fewest(left)), mean_apart(checked_on)
    left = left_by(classifier, progress(checked_on, "checking it on other images"), near)
    nearly = ordered(left)[0]
    if (1 - EXPLAINS) * before < left[nearly].mean() <= (1 - NEARLY) * before:  # what few images show may be missing
        left |= left_by(classifier, progress(checked_on, "trying one more mistake"), list(one_more(nearly)))
    best = fewest(left)
    explained = 1 - float(left[best].mean()) / before if before else 0.0
    return Cause(as_good(left, best), explained, len(checked_on)) if explained >= EXPLAINS else None


def search(classifier: ImageClassifier, images: Sequence[Asked], one_more: OneMore, progress: Progress) -> Left:
    """What is left of the difference, for explanations with more and more mistakes, until one leaves nearly nothing."""
    before, found, further = mean_apart(images), Left(), [Preparation()]
    for mistakes, kept in enumerate((*KEPT, 0)):
        doing = f"trying {len(further)} explanations"
        if len(further) > MANY:
            skimmed = images[:: -(-len(images) // SKIMMED_ON)]
            further = ordered(left_by(classifier, progress(skimmed, doing), further))[:MANY]
        new = left_by(classifier, progress(images, doing), further)
        found |= new
        least = min(left.mean() for left in found.values())
        if least <= max(SAME, (1 - ENOUGH) * before) or (mistakes == 2 and least > (1 - HOPELESS) * before):
            break
        more = (way for base in ordered(new)[:kept] for way in one_more(base))
        further = list(dict.fromkeys(more))
    return found


def one_more_by(header: Header, asked: Sequence[Asked]) -> OneMore:
    """What gives the same explanation with one more mistake, of those that can show in these answers."""
    order = order_of(asked, len(header.class_names))
    unseen = "output" if all(item.app.class_only for item in asked) else ""  # changes no class

    def one_more(way: Preparation) -> Iterator[Preparation]:
        yield from usual_mistakes(way, header, unseen)
        if order and not way.order:
            yield replace(way, order=order)

    return one_more


def ordered(left: Left) -> list[Preparation]:
    """The explanations, best first."""
    return sorted(left, key=lambda way: left[way].mean())


def fewest(left: Left) -> Preparation:
    """The best explanation, with a further mistake only where that is worth it."""
    best: dict[int, Preparation] = {}
    for way in ordered(left):
        best.setdefault(len(way.mistakes), way)
    chosen, *further = (best[mistakes] for mistakes in sorted(best))
    for way in further:
        if left[way].mean() < (1 - WORTH) * left[chosen].mean():
            chosen = way
    return chosen


def as_good(left: Left, best: Preparation) -> list[Preparation]:
    """The explanations with as many mistakes that could be no worse than this one, by what they leave of the same
    images; best first."""

    def is_as_good(way: Preparation) -> bool:
        worse = left[way] - left[best]
        return bool(worse.mean() <= max(NOTABLY, SURELY * worse.std() / len(worse) ** 0.5))

    return [way for way in ordered(left) if len(way.mistakes) == len(best.mistakes) and is_as_good(way)]


def left_by(classifier: ImageClassifier, images: Iterable[Asked], ways: Sequence[Preparation]) -> Left:
    """How far the app's answers are from each way's; files that cannot be opened so count as ours."""
    rows = []
    for item in images:
        try:
            given = answers(classifier, item.read(), ways)
        except (DecodeError, OSError):
            given = np.tile(item.ours, (len(ways), 1))
        rows.append(item.app.apart(given))
    return dict(zip(ways, np.stack(rows, 1), strict=True))


def without(asked: Sequence[Asked], some: Sequence[Asked]) -> list[Asked]:
    """The others."""
    left_out = set(map(id, some))
    return [item for item in asked if id(item) not in left_out]


def mean_apart(asked: Sequence[Asked]) -> float:
    """How far the answers are from ours, on average."""
    return float(np.mean([item.apart for item in asked]))


def order_of(asked: Sequence[Asked], classes: int) -> tuple[int, ...]:
    """The model's class that the app takes each of its own for; empty where that is itself, or cannot be told."""
    seen = np.zeros((classes, classes), int)  # app's class, ours
    for item in asked:
        seen[item.app.label, item.ours.argmax()] += 1
    clear = (seen.max(1) >= AT_LEAST) & (seen.max(1) > CLEARLY * seen.sum(1))
    order = dict(zip(np.flatnonzero(clear).tolist(), seen[clear].argmax(1).tolist(), strict=True))
    if len(set(order.values())) < len(order) or all(label == taken for label, taken in order.items()):
        return ()
    for label in np.argsort(
        -seen.sum(1), kind="stable"
    ).tolist():  # of the others what they seem to be, or what is left
        unused = [taken for taken in range(classes) if taken not in order.values()]
        order.setdefault(label, max(unused, key=lambda taken: (seen[label, taken], taken == label), default=label))
    return tuple(order[label] for label in range(classes))
