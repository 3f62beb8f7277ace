"""Train, val and test: stratified by class, seeded, images that belong together on one side.

Images belong together that have the same pixels or the same group (and, where asked for, that look the same). Each
such set gets a number from (seed, pixel hash), and the sets of a class are dealt out in the order of these numbers. So
the split depends neither on file names nor on the order of files, and adding some images moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PARTS = ("train", "val", "test")
EXCLUDED = "excluded"


@dataclass(frozen=True)
class Shares:
    """What is cut from the images without a given part; ``fold`` (number, of how many) replaces the test share."""

    val: float
    test: float
    fold: tuple[int, int] | None = None


@dataclass
class Together:
    """Images that stay on one side."""

    images: list[int]
    labels: Counter[int]  # distinct images of each class
    number: bytes  # random, belongs to these images under this seed
    part: str  # given, or the one assigned


def assign_splits(
    labels: Sequence[int],
    hashes: Sequence[bytes],
    given: Sequence[str | None],
    shares: Shares,
    seed: int,
    ties: Sequence[Sequence[int]] = (),
) -> np.ndarray:
    """The part of each image: "train", "val", "test", or "excluded" (same pixels under different labels).

    ``ties`` lists more images that belong together. Given parts stay as they are, but for images that belong together
    in several: these all go to the first of train, val, test. A val without a test becomes the test part, since that
    is the one that measures; what is then missing is cut from train. Of a class with three or more sets of images each
    part that is cut gets one at least; two go to train and test, one to train.
    """
    sides = given_sides(given)
    conflicts = conflicting(labels, hashes)
    sets = sets_together(labels, hashes, sides, conflicts, ties, seed)
    pool = [own for own in sets if own.part == "train"]
    if shares.fold:
        mark_fold(pool, *shares.fold)
    cut_test = "test" not in sides and not shares.fold
    cut(pool, shares.val if "val" not in sides else 0.0, shares.test if cut_test else 0.0)
    parts = np.full(len(labels), EXCLUDED)
    for own in sets:
        parts[own.images] = own.part
    return parts


def given_sides(given: Sequence[str | None]) -> list[str]:
    """The given parts, val as test where there is no test; images without one start in train."""
    val_measures = "test" not in given
    return ["test" if part == "val" and val_measures else part or "train" for part in given]


def conflicting(labels: Sequence[int], hashes: Sequence[bytes]) -> set[bytes]:
    """Hashes that carry several labels."""
    label_of: dict[bytes, int] = {}
    return {own for label, own in zip(labels, hashes, strict=True) if label_of.setdefault(own, label) != label}


def sets_together(
    labels: Sequence[int],
    hashes: Sequence[bytes],
    sides: Sequence[str],
    conflicts: set[bytes],
    ties: Sequence[Sequence[int]],
    seed: int,
) -> list[Together]:
    """All images but those in conflict, in sets that stay on one side, in random order."""
    root = list(range(len(labels)))  # a forest: each image points towards the first of its set

    def first(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    same_pixels: dict[bytes, int] = {}
    for i, own in enumerate(hashes):
        root[first(i)] = first(same_pixels.setdefault(own, i))
    for tie in ties:
        for i in tie[1:]:
            root[first(i)] = first(tie[0])
    members: dict[int, list[int]] = defaultdict(list)
    for i, own in enumerate(hashes):
        if own not in conflicts:
            members[first(i)].append(i)
    sets = [
        Together(
            images,
            Counter(label for label, _ in {(labels[i], hashes[i]) for i in images}),
            min(random_number(seed, own) for own in {hashes[i] for i in images}),
            first_part(sides[i] for i in images),
        )
        for images in members.values()
    ]
    return sorted(sets, key=lambda own: own.number)


def first_part(sides: Iterable[str]) -> str:
    """Where images go that belong together and were given to several parts; the training side first."""
    return min(sides, key=PARTS.index)


def random_number(seed: int, pixel_hash: bytes) -> bytes:
    """A random number that belongs to one image under one seed."""
    return hashlib.blake2b(pixel_hash, key=seed.to_bytes(8, "little"), digest_size=8).digest()


def mark_fold(pool: list[Together], fold: int, folds: int) -> None:
    """Give one of ``folds`` equal shares of each class to test."""
    counted: Counter[int] = Counter()
    for own in pool:
        rarest = main_label(own)
        if counted[rarest] % folds == fold:
            own.part = "test"
        counted[rarest] += 1


def main_label(own: Together) -> int:
    """The label that most of a set's images carry."""
    return min(own.labels, key=lambda label: (-own.labels[label], label))


def cut(pool: list[Together], val_share: float, test_share: float) -> None:
    """Move sets from train to test and val until each class has its share there; rare classes choose first."""
    sets_of: dict[int, list[Together]] = defaultdict(list)
    for own in pool:
        for label in own.labels:
            sets_of[label].append(own)
    for label, sets in sorted(sets_of.items(), key=lambda item: (len(item[1]), item[0])):
        wanted = deal(sum(own.labels[label] for own in sets), val_share, test_share)
        for_val = 1 if wanted["val"] and len(sets) > 2 else 0
        move(sets, label, "test", wanted["test"], keep=1 + for_val)
        move(sets, label, "val", wanted["val"], keep=1)


def move(sets: Sequence[Together], label: int, part: str, wanted: int, keep: int) -> None:
    """Move sets from train until ``part`` has about ``wanted`` images of a class; ``keep`` sets stay."""
    there = sum(own.labels[label] for own in sets if own.part == part)
    in_train = [own for own in sets if own.part == "train"]
    for own in in_train[: max(0, len(in_train) - keep)]:
        size = own.labels[label]
        if wanted and (there == 0 or there + size / 2 <= wanted):  # a set may come nearer by going over
            own.part = part
            there += size


def deal(count: int, val_share: float, test_share: float) -> dict[str, int]:
    """How many of a class's images val and test get; a share above 0 gives one at least, train keeps one."""
    wanted = {
        part: max(1, int(count * share + 0.5)) if share else 0
        for part, share in (("val", val_share), ("test", test_share))
    }
    while sum(wanted.values()) > max(0, count - 1):
        wanted[max(("val", "test"), key=wanted.__getitem__)] -= 1
    return wanted
