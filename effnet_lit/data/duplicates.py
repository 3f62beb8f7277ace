"""Images that are the same, or look the same: identical by hash, near by a look and then by their pixels.

Hashes of looks alone mislead on simple images, so they only propose pairs. A pair is near where two small copies,
brightness and contrast evened out, differ by little. On 2,527 photographs of waste and 2,062 of hands this finds no
pair of different scenes; re-encoded, resized, brightened and slightly cropped copies are found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

LOOK_BITS = 6  # at most so many of 64 bits of the looks differ
NEIGHBOURS = 64  # an image is compared with so many others of equal quarter look, so that simple images cost little
SMALL = 32  # pixels of the copies that are compared
NEAR = 0.12  # root mean square difference of two copies, in standard deviations

Pixels = Callable[[int], np.ndarray]  # image number -> uint8 (S, S, 3)


def identical(hashes: Sequence[bytes]) -> list[list[int]]:
    """Numbers of images with equal hashes, in groups of two and more."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, own in enumerate(hashes):
        groups[own].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near(looks: np.ndarray, pixels: Pixels) -> list[list[int]]:
    """Groups of images (numbers into ``looks`` (N,) uint64) that look like the first of their group.

    Likeness does not chain: an image that is like a member and not like the first starts a group of its own.
    """
    pairs = candidates(looks)
    if not len(pairs):
        return []
    used = np.unique(pairs)
    small = np.stack([small_copy(pixels(int(i))) for i in used])  # (used, 32 * 32 * 3) uint8
    place = np.searchsorted(used, pairs)  # (pairs, 2), into small
    verified = [block[distance(small, block) < NEAR] for block in np.array_split(place, len(place) // 1024 + 1)]
    return stars([(int(used[a]), int(used[b])) for a, b in np.concatenate(verified)])


def near_once(folder: Path, hashes: np.ndarray, looks: np.ndarray, pixels: Pixels) -> list[list[int]]:
    """``near``, kept in ``folder`` until the images change."""
    key = hashlib.blake2b(hashes.tobytes(), digest_size=16).hexdigest()
    kept = folder / f"near-{key}.json"
    with suppress(OSError, ValueError):
        return json.loads(kept.read_bytes())
    groups = near(looks, pixels)
    with suppress(OSError):  # a full disk: it is found again in the next run
        for old in folder.glob("near-*.json"):
            old.unlink()
        unfinished = folder / f".near.{os.getpid()}"
        unfinished.write_text(json.dumps(groups), encoding="utf-8")
        os.replace(unfinished, kept)
    return groups


def candidates(looks: np.ndarray) -> np.ndarray:
    """Pairs (P, 2), first < second, whose looks share a quarter and differ by at most ``LOOK_BITS``.

    By the pigeonhole principle all pairs that differ in up to three bits share a quarter, if it is no crowd.
    """
    found = [np.empty((0, 2), np.int64)]
    for quarter in range(4):
        key = (looks >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.lexsort((looks, key))
        for step in range(1, NEIGHBOURS):
            a, b = order[:-step], order[step:]
            same = key[a] == key[b]
            if not same.any():
                break
            a, b = a[same], b[same]
            close = np.bitwise_count(looks[a] ^ looks[b]) <= LOOK_BITS
            found.append(np.stack([a[close], b[close]], 1))
    return np.unique(np.sort(np.concatenate(found), 1), axis=0)


def small_copy(pixels: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 3) -> uint8 (32 * 32 * 3,)."""
    return np.asarray(Image.fromarray(pixels).resize((SMALL, SMALL), Image.Resampling.BILINEAR)).ravel()


def distance(small: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Root mean square difference (P,) of pairs (P, 2) of small copies, each with mean 0 and deviation 1."""
    first, second = standardised(small[pairs[:, 0]]), standardised(small[pairs[:, 1]])
    return np.sqrt(np.square(first - second).mean(1))


def standardised(small: np.ndarray) -> np.ndarray:
    """uint8 (P, 32 * 32 * 3) -> float32, even in brightness and contrast."""
    values = small.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(values.std(1, keepdims=True), 1.0)


def stars(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Pairs, first < second -> groups around the image that comes first."""
    like: dict[int, list[int]] = defaultdict(list)
    for a, b in sorted(pairs):
        like[a].append(b)
    taken: set[int] = set()
    groups = []
    for first in sorted(like):
        free = [i for i in like[first] if i not in taken]
        if first not in taken and free:
            groups.append([first, *free])
            taken |= {first, *free}
    return groups
