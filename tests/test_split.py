"""Properties of the split, over every kind of data set hypothesis can think of."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

import images
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.data.split import EXCLUDED, Shares, assign_splits
from effnet_lit.data.split_file import write_split

Sample = tuple[int, bytes, str | None]  # label, pixel hash, given part
SHARES = st.floats(0.01, 0.4)
SEEDS = st.integers(0, 2**31 - 1)
LABELS = st.integers(0, 3)
HASHES = st.integers(0, 25).map(b"%032x".__mod__)  # few, so that many are equal


def split(samples: list[Sample], val: float = 0.1, test: float = 0.2, seed: int = 0) -> np.ndarray:
    labels, hashes, given_parts = zip(*samples, strict=True)
    return assign_splits(labels, hashes, given_parts, Shares(val, test), seed)


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
    samples: list[Sample] = [(label, b"%d" % label + pixel_hash, None) for label, pixel_hash in pairs]
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
    samples: list[Sample] = [(i % 2, b"%032x" % i, "train" if i < 40 else "val") for i in range(60)]
    parts = split(samples)
    assert set(parts[40:]) == {"test"}
    assert sorted(parts[:40]) == ["train"] * 36 + ["val"] * 4


def test_a_test_without_a_val_stays_and_val_is_cut_from_train() -> None:
    samples: list[Sample] = [(i % 2, b"%032x" % i, "train" if i < 40 else "test") for i in range(60)]
    parts = split(samples)
    assert set(parts[40:]) == {"test"}
    assert sorted(parts[:40]) == ["train"] * 36 + ["val"] * 4


def test_seeds_differ_and_adding_images_moves_few() -> None:
    samples: list[Sample] = [(0, b"%032x" % i, None) for i in range(200)]
    first = split(samples)
    assert (first != split(samples, seed=1)).sum() > 40
    longer = split([*samples, *((0, b"%032x" % i, None) for i in range(200, 210))])
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
    found = {finding["kind"]: [item["paths"] for item in finding["items"]] for finding in data.audit["findings"]}
    assert found["duplicates"] == [["train/a/001.png", "train/a/twin.bmp"]]
    assert found["label_conflict"] == [["val/a/conflict.png", "val/b/002.png"]]
    assert found["leak"] == [["test/b/leak.png", "train/b/003.png"]]
    said = "\n".join(data.notes)
    assert "val/a/conflict.png and val/b/002.png" in said
    assert "test/b/leak.png and train/b/003.png" in said
    assert "audit.html" in data.notes[-1]


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = prepared(images.class_tree(tmp_path / "1", {"a": 5, "b": 5}), tmp_path / "cache")
    second = prepared(images.class_tree(tmp_path / "2", {"a": 5, "b": 5}), tmp_path / "cache")
    assert first.fingerprint == second.fingerprint
    assert list(first.splits) == list(second.splits)
    images.noise(tmp_path / "2" / "a" / "000.png", 99)
    assert prepared(tmp_path / "2", tmp_path / "cache").fingerprint != first.fingerprint


@given(
    st.lists(st.tuples(LABELS, HASHES, st.integers(0, 12)), min_size=1, max_size=80),
    st.lists(st.lists(st.integers(0, 79), min_size=2, max_size=4), max_size=6),
    SHARES,
    SHARES,
    SEEDS,
)
@settings(deadline=None, max_examples=200)
def test_what_belongs_together_is_never_on_two_sides(
    samples: list[tuple[int, bytes, int]], alike: list[list[int]], val: float, test: float, seed: int
) -> None:
    labels, hashes, groups = zip(*samples, strict=True)
    of_group: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        of_group[group].append(i)
    ties = [*of_group.values(), *([i for i in tie if i < len(samples)] or [0] for tie in alike)]
    parts = assign_splits(labels, hashes, [None] * len(samples), Shares(val, test), seed, ties)
    for tie in [*ties, *([i for i, own in enumerate(hashes) if own == h] for h in set(hashes))]:
        assert len({str(parts[i]) for i in tie} - {EXCLUDED}) <= 1
    order = np.random.default_rng(seed).permutation(len(samples))
    place = np.argsort(order)
    again = assign_splits(
        [labels[i] for i in order],
        [hashes[i] for i in order],
        [None] * len(samples),
        Shares(val, test),
        seed,
        [[int(place[i]) for i in tie] for tie in reversed(ties)],
    )
    assert list(parts[order]) == list(again)


@given(st.lists(st.tuples(LABELS, st.integers(1, 9)), min_size=1, max_size=25), SHARES, SHARES, SEEDS)
@settings(deadline=None, max_examples=200)
def test_every_class_of_three_groups_is_in_every_part(
    groups: list[tuple[int, int]], val: float, test: float, seed: int
) -> None:
    labels = [label for label, size in groups for _ in range(size)]
    ends = np.cumsum([size for _, size in groups])
    ties = [list(range(end - size, end)) for (_, size), end in zip(groups, ends, strict=True)]
    hashes = [b"%032x" % i for i in range(len(labels))]
    parts = assign_splits(labels, hashes, [None] * len(labels), Shares(val, test), seed, ties)
    for label in set(labels):
        own = [(str(parts[tie[0]]), len(tie)) for tie, (of, _) in zip(ties, groups, strict=True) if of == label]
        found = {part for part, _ in own}
        assert "train" in found
        if len(own) >= 3:
            assert found == {"train", "val", "test"}
            wanted = test * sum(size for _, size in own)
            largest = max(size for _, size in own)
            assert sum(size for part, size in own if part == "test") <= max(wanted + 0.5 + largest / 2, largest)
        elif len(own) == 2:
            assert found == {"train", "test"}


@given(st.lists(st.tuples(LABELS, HASHES), min_size=1, max_size=120), st.integers(2, 6), SEEDS)
@settings(deadline=None, max_examples=100)
def test_folds_hold_each_image_out_once(pairs: list[tuple[int, bytes]], folds: int, seed: int) -> None:
    labels = [label for label, _ in pairs]
    hashes = [b"%d" % label + own for label, own in pairs]
    tested = [
        assign_splits(labels, hashes, [None] * len(pairs), Shares(0.1, 0.2, (fold, folds)), seed) == "test"
        for fold in range(folds)
    ]
    assert (np.sum(tested, 0) == 1).all()
    for label in set(labels):
        distinct = {own: i for i, own in enumerate(hashes) if labels[i] == label}
        sizes = [sum(bool(held[i]) for i in distinct.values()) for held in tested]
        assert max(sizes) - min(sizes) <= 1


def test_a_patient_is_never_on_both_sides(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label, name in enumerate(("well", "ill")):
        for number in range(40):
            images.noise(root / name / f"patient{number // 5}_{number}.png", 100 * label + number)
    config = DataConfig(dir=str(root), cache_dir=str(tmp_path / "cache"), group=r"patient\d+")
    data = prepare(config, 0, False, 16, lambda done, total: None)
    part_of: dict[str, set[str]] = defaultdict(set)
    for path, part in zip(data.paths, data.splits, strict=True):
        part_of[path.split("/")[1].split("_")[0]].add(str(part))
    assert all(len(parts) == 1 for parts in part_of.values())
    assert {part for parts in part_of.values() for part in parts} == {"train", "val", "test"}


def test_a_split_can_be_given_to_another_run(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 30, "b": 30})
    first = prepared(root, tmp_path / "cache")
    names = [first.class_names[label] for label in first.labels]
    write_split(tmp_path / "split.csv", first.paths, names, first.splits.tolist())
    images.noise(root / "a" / "new.png", 999)
    (root / "b" / "007.png").unlink()
    config = DataConfig(dir=str(root), cache_dir=str(tmp_path / "cache"), split=str(tmp_path / "split.csv"))
    second = prepare(config, 17, False, 16, lambda done, total: None)  # another seed
    before = dict(zip(first.paths, map(str, first.splits), strict=True))
    after = dict(zip(second.paths, map(str, second.splits), strict=True))
    assert after == {path: part for path, part in before.items() if path != "b/007.png"} | {"a/new.png": "train"}
    said = "\n".join(second.notes)
    assert "1 images that split.csv does not name go to train, such as a/new.png" in said
    assert "1 images that split.csv names are not there, such as b/007.png" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("", "no columns path and split"),
        ("path,label\na/000.png,a\n", "no columns path and split"),
        ("path,label,split\na/000.png,a,training\n", "line 2: 'training' is no part"),
        ("path,label,split\nx.png,a,train\n", "names none of the images"),
    ],
)
def test_a_split_that_is_none_is_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 5, "b": 5})
    if content is not None:
        (tmp_path / "split.csv").write_text(content)
    config = DataConfig(dir=str(root), cache_dir=str(tmp_path / "cache"), split=str(tmp_path / "split.csv"))
    with pytest.raises(UserError, match=words):
        prepare(config, 0, False, 16, lambda done, total: None)


def test_folds_of_given_parts_are_refused(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {f"{part}/{name}": 6 for part in ("train", "test") for name in "ab"})
    config = DataConfig(dir=str(root), cache_dir=str(tmp_path / "cache"), fold="0/3")
    with pytest.raises(UserError, match=r"data\.fold=0/3 needs images without"):
        prepare(config, 0, False, 16, lambda done, total: None)
