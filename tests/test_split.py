"""Properties of the split, over every kind of data set hypothesis can think of."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

import images
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from effnet_lit.config import DataConfig
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.data.split import EXCLUDED, assign_splits

Sample = tuple[int, str, str | None]  # label, pixel hash, given part
SHARES = st.floats(0.01, 0.4)
SEEDS = st.integers(0, 2**31 - 1)
LABELS = st.integers(0, 3)
HASHES = st.integers(0, 25).map("{:032x}".format)  # few, so that many are equal


def split(samples: list[Sample], val: float = 0.1, test: float = 0.2, seed: int = 0) -> np.ndarray:
    labels, hashes, given_parts = zip(*samples, strict=True)
    return assign_splits(labels, hashes, given_parts, val, test, seed)


def with_parts(parts: list[str | None]) -> st.SearchStrategy[list[Sample]]:
    return st.lists(st.tuples(LABELS, HASHES, st.sampled_from(parts)), min_size=1, max_size=80)


ANY = st.one_of(
    with_parts([None]),
    with_parts(["train", "val", "test"]),
    with_parts(["train", "val"]),
    with_parts(["train", "test"]),
)


@given(ANY, SHARES, SHARES, SEEDS)
@settings(deadline=None, max_examples=150)
def test_same_pixels_are_never_on_two_sides_and_conflicts_are_out(
    samples: list[Sample], val: float, test: float, seed: int
) -> None:
    parts = split(samples, val, test, seed)
    sides, labels = defaultdict(set), defaultdict(set)
    for (label, pixel_hash, _), part in zip(samples, parts, strict=True):
        sides[pixel_hash].add(str(part))
        labels[pixel_hash].add(label)
    for pixel_hash in sides:
        assert len(sides[pixel_hash]) == 1
        assert (sides[pixel_hash] == {EXCLUDED}) == (len(labels[pixel_hash]) > 1)


@given(ANY, SEEDS, st.randoms())
@settings(deadline=None, max_examples=100)
def test_the_order_of_images_does_not_matter(samples: list[Sample], seed: int, random: Random) -> None:
    order = list(range(len(samples)))
    random.shuffle(order)
    shuffled = split([samples[i] for i in order], seed=seed)
    assert list(split(samples, seed=seed)[order]) == list(shuffled)


@given(st.lists(st.tuples(LABELS, HASHES), min_size=1, max_size=80), SHARES, SHARES, SEEDS)
@settings(deadline=None, max_examples=150)
def test_every_class_of_three_is_in_every_part_and_shares_are_kept(
    pairs: list[tuple[int, str]], val: float, test: float, seed: int
) -> None:
    samples: list[Sample] = [(label, f"{label}{pixel_hash}", None) for label, pixel_hash in pairs]
    parts = split(samples, val, test, seed)
    for label in {label for label, _ in pairs}:
        part_of = {h: str(part) for (own, h, _), part in zip(samples, parts, strict=True) if own == label}
        found = list(part_of.values())
        assert "train" in found
        if len(part_of) >= 3:
            assert set(found) == {"train", "val", "test"}
            assert abs(found.count("test") - test * len(found)) <= 1
            assert abs(found.count("val") - val * len(found)) <= 1
        elif len(part_of) == 2:
            assert set(found) == {"train", "test"}


@given(with_parts(["train", "val", "test"]), SEEDS)
@settings(deadline=None, max_examples=100)
def test_given_parts_stay_but_for_leaks_which_go_to_training(samples: list[Sample], seed: int) -> None:
    order = ("train", "val", "test")
    assume({part for _, _, part in samples} == set(order))
    parts = split(samples, seed=seed)
    where = defaultdict(set)
    for _, pixel_hash, part in samples:
        where[pixel_hash].add(part)
    for (_, pixel_hash, _), part in zip(samples, parts, strict=True):
        if part != EXCLUDED:
            assert part == min(where[pixel_hash], key=order.index)


def test_a_val_without_a_test_measures_and_a_new_val_is_cut_from_train() -> None:
    samples: list[Sample] = [(i % 2, f"{i:032x}", "train" if i < 40 else "val") for i in range(60)]
    parts = split(samples)
    assert set(parts[40:]) == {"test"}
    assert sorted(parts[:40]) == ["train"] * 36 + ["val"] * 4


def test_a_test_without_a_val_stays_and_val_is_cut_from_train() -> None:
    samples: list[Sample] = [(i % 2, f"{i:032x}", "train" if i < 40 else "test") for i in range(60)]
    parts = split(samples)
    assert set(parts[40:]) == {"test"}
    assert sorted(parts[:40]) == ["train"] * 36 + ["val"] * 4


def test_seeds_differ_and_adding_images_moves_few() -> None:
    samples: list[Sample] = [(0, f"{i:032x}", None) for i in range(200)]
    first = split(samples)
    assert (first != split(samples, seed=1)).sum() > 40
    longer = split([*samples, *((0, f"{i:032x}", None) for i in range(200, 210))])
    assert (first != longer[:200]).sum() < 10


def prepared(root: Path, cache: Path) -> PreparedData:
    return prepare(DataConfig(dir=str(root), cache_dir=str(cache)), 0, False, 16, lambda done, total: None)


def test_planted_duplicates_conflicts_and_leaks_in_real_files(tmp_path: Path) -> None:
    root = images.class_tree(
        tmp_path / "data", {f"{part}/{name}": 6 for part in ("train", "val", "test") for name in ("a", "b")}
    )
    images.noise(root / "train/a/twin.bmp", 1)  # = train/a/001.png in another encoding
    images.noise(root / "test/b/leak.png", 10_003)  # = train/b/003.png
    images.noise(root / "val/a/conflict.png", 30_002)  # = val/b/002.png
    data = prepared(root, tmp_path / "cache")
    part = dict(zip(data.paths, map(str, data.splits), strict=True))
    assert part["train/a/twin.bmp"] == part["train/a/001.png"] == "train"
    assert part["test/b/leak.png"] == "train"
    assert not {"val/a/conflict.png", "val/b/002.png"} & set(part)
    assert data.audit["duplicates"] == [["test/b/leak.png", "train/b/003.png"], ["train/a/001.png", "train/a/twin.bmp"]]
    assert data.audit["label_conflicts"] == [["val/a/conflict.png", "val/b/002.png"]]
    assert data.audit["moved_out_of_a_given_part"] == ["test/b/leak.png"]
    assert len(data.notes) == 3  # conflicts, leaks, where to read on


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = prepared(images.class_tree(tmp_path / "1", {"a": 5, "b": 5}), tmp_path / "cache")
    second = prepared(images.class_tree(tmp_path / "2", {"a": 5, "b": 5}), tmp_path / "cache")
    assert first.fingerprint == second.fingerprint
    assert list(first.splits) == list(second.splits)
    images.noise(tmp_path / "2" / "a" / "000.png", 99)
    assert prepared(tmp_path / "2", tmp_path / "cache").fingerprint != first.fingerprint
