"""Train, val and test: stratified by class, seeded, pixel-identical images on one side.

Each distinct image gets a number from (seed, pixel hash), and a class's images are dealt out in the order of these
numbers. So the split depends neither on file names nor on the order of files, and adding some images moves few others.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

PARTS = ("train", "val", "test")
CUT = ("val", "test")  # of equal counts the first is made smaller first
EXCLUDED = "excluded"


def assign_splits(
    labels: Sequence[int],
    hashes: Sequence[str],
    given: Sequence[str | None],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """The part of each image: "train", "val", "test", or "excluded" (same pixels under different labels).

    Given parts stay as they are, but for identical pixels in several: these all go to the first of train, val, test.
    A val without a test becomes the test part, since that is the one that measures; what is then missing is cut from
    train. Of a class with three or more distinct images each part that is cut gets one at least; two go to train and
    test, one to train.
    """
    sides = given_sides(given)
    val_share = 0.0 if "val" in sides else val_fraction
    test_share = 0.0 if "test" in sides else test_fraction
    parts = np.full(len(labels), EXCLUDED)
    for members in distinct_images(labels, hashes).values():
        part_of = {pixel_hash: first_part(sides[i] for i in images) for pixel_hash, images in members.items()}
        pool = sorted((key for key, part in part_of.items() if part == "train"), key=lambda key: rank(seed, key))
        part_of |= dict(zip(pool, deal(len(pool), val_share, test_share), strict=True))
        for pixel_hash, images in members.items():
            parts[images] = part_of[pixel_hash]
    return parts


def given_sides(given: Sequence[str | None]) -> list[str]:
    """The given parts, val as test where there is no test; images without one start in train."""
    val_measures = "test" not in given
    return ["test" if part == "val" and val_measures else part or "train" for part in given]


def distinct_images(labels: Sequence[int], hashes: Sequence[str]) -> dict[int, dict[str, list[int]]]:
    """label -> pixel hash -> image numbers, without the hashes that carry several labels."""
    labels_of: dict[str, set[int]] = defaultdict(set)
    for label, pixel_hash in zip(labels, hashes, strict=True):
        labels_of[pixel_hash].add(label)
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (label, pixel_hash) in enumerate(zip(labels, hashes, strict=True)):
        if len(labels_of[pixel_hash]) == 1:
            groups[label][pixel_hash].append(i)
    return groups


def first_part(sides: Iterable[str]) -> str:
    """Where identical images go that were given to several parts; the training side first."""
    return min(sides, key=PARTS.index)


def rank(seed: int, pixel_hash: str) -> bytes:
    """A random number that belongs to one image under one seed."""
    return hashlib.blake2b(pixel_hash.encode(), key=seed.to_bytes(8, "little"), digest_size=8).digest()


def deal(count: int, val_share: float, test_share: float) -> list[str]:
    """The parts of one class's distinct images in their random order; a share above 0 gives one image at least."""
    shares = dict(zip(CUT, (val_share, test_share), strict=True))
    cut = {part: max(1, int(count * share + 0.5)) if share else 0 for part, share in shares.items()}
    while sum(cut.values()) > max(0, count - 1):  # one is left to learn from
        cut[max(CUT, key=cut.__getitem__)] -= 1
    return ["test"] * cut["test"] + ["val"] * cut["val"] + ["train"] * (count - sum(cut.values()))
