"""From a data folder to everything a run needs of it: index, cache, split, audit."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.audit import audit
from effnet_lit.data.cache import Cache, Progress, default_cache_dir, open_cache
from effnet_lit.data.digits import digits_folder
from effnet_lit.data.folder import Index, check_size, read_folder
from effnet_lit.data.split import EXCLUDED, PARTS, assign_splits

Problems = tuple[tuple[str, str], ...]  # (path, reason)


@dataclass(frozen=True)
class PreparedData:
    """The images a run uses; unreadable ones and label conflicts are gone. Image i is ``images[rows[i]]``."""

    class_names: tuple[str, ...]
    root: Path
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # (N,) int64
    splits: np.ndarray  # (N,) "train", "val" or "test"
    rows: np.ndarray  # (N,) int64
    images: np.ndarray  # (rows, S, S, 3) uint8, on disk
    audit: dict[str, Any]
    notes: tuple[str, ...]  # sentences for the screen
    fingerprint: str  # of class names, paths, labels and pixels
    cache_dir: Path
    cache_bytes: int

    def part(self, name: str) -> np.ndarray:
        """Numbers of the images of "train", "val" or "test"."""
        return np.flatnonzero(self.splits == name)


def prepare(data: DataConfig, seed: int, limits: bool, eval_size: int, progress: Progress) -> PreparedData:
    """Read, decode (once in an image's life), split and audit the images of ``data.dir``.

    Raises:
        UserError: the folder or the cache cannot be used, or too few images are left.
    """
    cache_dir = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache_dir()
    root = Path(data.dir).expanduser() if data.dir else digits_folder(cache_dir)
    index = read_folder(root)
    check_size(index, limits)
    cache = open_cache(index, eval_size, cache_dir, cores(), progress)
    kept = np.flatnonzero(cache.rows >= 0)
    parts = assign_splits(
        [index.labels[i] for i in kept],
        [cache.hashes[i] for i in kept],
        [index.splits[i] for i in kept],
        data.val_fraction,
        data.test_fraction,
        seed,
    )
    used, splits = kept[parts != EXCLUDED], parts[parts != EXCLUDED]
    findings = audit(index, cache, kept, parts)
    left = select(index, used)
    check_left(index, cache.problems, left, splits, limits)
    return PreparedData(
        index.class_names,
        root,
        left.paths,
        np.array(left.labels, np.int64),
        splits,
        cache.rows[used],
        cache.images,
        findings,
        notes(index, cache, findings),
        fingerprint(left, [cache.hashes[i] for i in used]),
        cache.folder,
        cache.bytes,
    )


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def select(index: Index, chosen: np.ndarray) -> Index:
    """The index with these images only."""
    return replace(
        index,
        paths=tuple(index.paths[i] for i in chosen),
        labels=tuple(index.labels[i] for i in chosen),
        splits=tuple(index.splits[i] for i in chosen),
    )


def check_left(found: Index, problems: Problems, left: Index, splits: np.ndarray, limits: bool) -> None:
    """Raise ``UserError`` where too little is left, after some images were left out, to train and to measure."""
    usable = set(left.labels)
    trained = {label for label, part in zip(left.labels, splits, strict=True) if part == "train"}
    for label, name in enumerate(found.class_names):
        if label not in usable:
            own = [f"{path}: {why}" for path, why in problems if found.labels[found.paths.index(path)] == label]
            reason = own[0] if own else "the same pixels are under other classes too"
            raise UserError(f"Class '{name}' in {found.root} has no usable image ({reason}); add some, or remove it.")
        if label not in trained:
            raise UserError(f"Class '{name}' in {found.root} has no training image; add some, or remove it.")
    if len(left.paths) < len(found.paths):
        check_size(left, limits)
    for part, least in zip(PARTS, (2, 1, 1), strict=True):
        if (splits == part).sum() < least:
            raise UserError(f"{found.root} has too few images to make a {part} part; add images to each class.")


def notes(index: Index, cache: Cache, findings: dict[str, Any]) -> tuple[str, ...]:
    """What the user should know of the data before training starts."""
    lines = []
    if cache.problems:
        path, reason = cache.problems[0]
        lines.append(f"{len(cache.problems):,} unreadable images left out, such as {path} ({reason}).")
    if findings["label_conflicts"]:
        count = sum(map(len, findings["label_conflicts"]))
        first, second = findings["label_conflicts"][0][:2]
        lines.append(f"{count:,} images left out: same pixels under different classes, such as {first} and {second}.")
    if findings["moved_out_of_a_given_part"]:
        count = len(findings["moved_out_of_a_given_part"])
        lines.append(f"{count:,} images moved towards training: the same pixels lie in an earlier part.")
    if "val" in index.splits and "test" not in index.splits:
        lines.append("No test folder: the val folder is held out to measure, and a new val part is cut from train.")
    elif "test" in index.splits and "val" not in index.splits:
        lines.append("No val folder: a val part is cut from train.")
    if lines:
        lines.append("All of it is in audit.json.")
    return tuple(lines)


def fingerprint(index: Index, hashes: list[str]) -> str:
    """The same for the same images under the same names and labels, wherever they lie."""
    digest = hashlib.blake2b("\n".join(index.class_names).encode(), digest_size=16)
    for path, label, pixel_hash in sorted(zip(index.paths, index.labels, hashes, strict=True)):
        digest.update(f"\n{path}\0{label}\0{pixel_hash}".encode())
    return digest.hexdigest()
