"""From a data folder to everything a run needs of it: index, cache, split, audit."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effnet_lit.checks import fold_of
from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.audit import Audited, audit
from effnet_lit.data.audit_page import Picture
from effnet_lit.data.audit_rules import not_blank
from effnet_lit.data.cache import Cache, DecodedOnDemand, Progress, cache_folder, default_cache_dir, open_cache
from effnet_lit.data.cache_choice import choose_cache
from effnet_lit.data.digits import digits_folder
from effnet_lit.data.duplicates import identical, near_once
from effnet_lit.data.folder import Index, check_size
from effnet_lit.data.names import mirror_changes_label
from effnet_lit.data.source import read_images
from effnet_lit.data.split import EXCLUDED, PARTS, Shares, assign_splits
from effnet_lit.data.split_file import with_split
from effnet_lit.data.store import kept_bytes, row_bytes
from effnet_lit.machine import cores

LEFT_OUT = "data.exclude leaves all of them out"
Problems = tuple[tuple[str, str], ...]  # (path, reason)


@dataclass(frozen=True)
class Found:
    """All images of a folder, used or not, for pictures in the audit."""

    paths: tuple[str, ...]
    rows: np.ndarray  # (M,) int64; -1 if unreadable
    sizes: np.ndarray  # (M, 2) width and height as stored, in pixels


@dataclass(frozen=True)
class PreparedData:
    """The images a run uses; unreadable ones and label conflicts are gone. Image i is ``images[rows[i]]``."""

    class_names: tuple[str, ...]
    root: Path
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # (N,) int64
    splits: np.ndarray  # (N,) "train", "val" or "test"
    rows: np.ndarray  # (N,) int64
    images: np.ndarray | DecodedOnDemand  # (rows, S, S, 3) uint8
    found: Found
    audit: dict[str, Any]
    notes: tuple[str, ...]  # sentences for the screen
    fingerprint: str  # of class names, paths, labels and pixels
    cache: str  # data.cache, resolved
    cache_dir: Path
    cache_bytes: int
    obstacle: str  # why nothing can be trained on them, or nothing

    def part(self, name: str) -> np.ndarray:
        """Numbers of the images of "train", "val" or "test"."""
        return np.flatnonzero(self.splits == name)


def prepare(
    data: DataConfig, seed: int, limits: bool, eval_size: int, progress: Progress, device_memory: int = 0
) -> PreparedData:
    """Images to train on and to measure: ``look`` at them, and let too few not pass.

    Raises:
        UserError: the folder or the cache cannot be used, or too few images are left.
    """
    prepared = look(data, seed, limits, eval_size, progress, device_memory)
    if prepared.obstacle:
        raise UserError(prepared.obstacle)
    return prepared


def look(
    data: DataConfig, seed: int, limits: bool, eval_size: int, progress: Progress, device_memory: int = 0
) -> PreparedData:
    """Read, decode (once in an image's life), split and audit the images of ``data.dir``.

    ``device_memory`` is what is free on the training device, in bytes; 0 where that is the CPU.

    Raises:
        UserError: the folder or the cache cannot be used.
    """
    cache_dir = cache_dir_of(data)
    index, excluded, told = given_images(data, cache_dir)
    check_size(index, limits)
    need = len(index.paths) * row_bytes(eval_size)
    kept = kept_bytes(cache_folder(index.root, eval_size, data.resize, "disk", cache_dir))
    keep, why = choose_cache(data.cache, need, kept, cache_dir, device_memory)
    cache = open_cache(index, eval_size, data.resize, keep, cache_dir, cores(), progress)
    same, alike = copies(index, cache)
    parts = split(data, seed, index, cache, alike)
    seen = Audited(
        index,
        np.array(index.labels, np.int64),
        cache.records,
        parts,
        cache.problems,
        same,
        alike,
        excluded,
        mirror_changes_label(index.class_names),
    )
    findings = audit(seen)
    used = np.flatnonzero(np.isin(parts, PARTS))
    left = index.select(used.tolist())
    return PreparedData(
        index.class_names,
        index.root,
        left.paths,
        np.array(left.labels, np.int64),
        parts[used],
        cache.rows[used],
        cache.images,
        Found(index.paths, cache.rows, np.stack([cache.records["width"], cache.records["height"]], 1)),
        findings,
        (*told, *why, *notes(index, findings)),
        fingerprint(left, cache.records["hash"][used]),
        keep,
        cache.folder,
        cache.bytes,
        too_little(index, cache.problems, left, parts[used], limits),
    )


def pictures(data: PreparedData) -> Callable[[str], Picture | None]:
    """Path -> the decoded image, or None where it could not be read."""
    numbers = {path: i for i, path in enumerate(data.found.paths)}

    def picture(path: str) -> Picture | None:
        i = numbers.get(path, -1)
        if i < 0 or data.found.rows[i] < 0:
            return None
        width, height = map(int, data.found.sizes[i])
        return Picture(data.images[data.found.rows[i : i + 1]][0], width, height)

    return picture


def pixels_of(data: PreparedData) -> Callable[[str], np.ndarray | None]:
    """Path -> the decoded image, or None."""
    rows = dict(zip(data.paths, data.rows, strict=True))

    def pixels(path: str) -> np.ndarray | None:
        row = rows.get(path)
        return None if row is None else data.images[np.asarray([row])][0]

    return pixels


def cache_dir_of(data: DataConfig) -> Path:
    """Where decoded images are kept."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else default_cache_dir()


def given_images(data: DataConfig, cache_dir: Path) -> tuple[Index, list[str], list[str]]:
    """The images as asked for: (index, paths that the user left out, sentences for the screen)."""
    if data.dir is None:
        index = read_images(digits_folder(cache_dir), None, data.group)
    else:
        manifest = Path(data.manifest).expanduser() if data.manifest else None
        index = read_images(Path(data.dir).expanduser(), manifest, data.group)
    excluded, told = [], []
    if data.exclude:
        listed = read_exclude(Path(data.exclude).expanduser())
        excluded = sorted(listed & set(index.paths))
        index = index.select([i for i, path in enumerate(index.paths) if path not in listed])
        told.append(f"{len(excluded):,} images left out, as {data.exclude} says.")
        if len(excluded) < len(listed):
            told.append(f"{len(listed) - len(excluded):,} paths under 'exclude' in {data.exclude} are no images here.")
    if data.split:
        index, notes = with_split(index, Path(data.split).expanduser())
        told += notes
    if data.fold and any(index.splits):
        raise UserError(
            f"data.fold={data.fold} needs images without train and test folders; drop it, or merge the folders."
        )
    return index, excluded, told


def read_exclude(path: Path) -> set[str]:
    """The list "exclude" of an audit.json.

    Raises:
        UserError: there is no such file, or no such list in it.
    """
    try:
        paths = json.loads(path.read_text(encoding="utf-8"))["exclude"]
    except OSError as error:
        raise UserError(f"data.exclude={path} cannot be read ({error.strerror}); give an audit.json.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.exclude={path} has no list 'exclude'; give an audit.json.") from error
    if not isinstance(paths, list) or not all(isinstance(item, str) for item in paths):
        raise UserError(f"data.exclude={path}: 'exclude' must be a list of paths, as in an audit.json.")
    return set(paths)


def copies(index: Index, cache: Cache) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of images with the same pixels, and of those that look the same without being so."""
    readable = np.flatnonzero(cache.rows >= 0)
    same = [[int(readable[i]) for i in group] for group in identical(cache.records["hash"][readable].tolist())]
    later = {i for group in same for i in group[1:]}
    shown = not_blank(cache.records)
    looked = np.array([i for i in readable if i not in later and shown[i]], np.int64)
    records = cache.records[looked]
    pixels = lambda i: cache.images[cache.rows[looked[i : i + 1]]][0]  # noqa: E731
    groups = near_once(cache.folder, records["hash"], records["look"], pixels)
    return same, [[int(looked[i]) for i in group] for group in groups]


def split(data: DataConfig, seed: int, index: Index, cache: Cache, alike: Sequence[Sequence[int]]) -> np.ndarray:
    """The part of each image of the index: train, val, test, excluded, or "" where it could not be read."""
    parts = np.full(len(index.paths), "", f"U{len(EXCLUDED)}")
    kept = np.flatnonzero(cache.rows >= 0)
    place = {int(i): number for number, i in enumerate(kept)}
    ties = [[place[i] for i in group] for group in alike] if data.near_duplicates == "together" else []
    groups: dict[str, list[int]] = defaultdict(list)
    for i in kept if index.groups else ():
        if index.groups[i] is not None:
            groups[str(index.groups[i])].append(place[int(i)])
    parts[kept] = assign_splits(
        [index.labels[i] for i in kept],
        cache.records["hash"][kept].tolist(),
        [index.splits[i] for i in kept],
        Shares(data.val_fraction, data.test_fraction, fold_of(data.fold) if data.fold else None),
        seed,
        [*ties, *groups.values()],
    )
    return parts


def too_little(found: Index, problems: Problems, left: Index, splits: np.ndarray, limits: bool) -> str:
    """What is missing to train and to measure, after some images were left out; or nothing."""
    usable = set(left.labels)
    trained = {label for label, part in zip(left.labels, splits, strict=True) if part == "train"}
    for label, name in enumerate(found.class_names):
        if label not in usable:
            own = [f"{path}: {why}" for path, why in problems if found.labels[found.paths.index(path)] == label]
            all_left_out = label not in found.labels
            reason = own[0] if own else LEFT_OUT if all_left_out else "the same pixels are under other classes too"
            return f"Class '{name}' in {found.root} has no usable image ({reason}); add some, or remove it."
        if label not in trained:
            return f"Class '{name}' in {found.root} has no training image; add some, or remove it."
    try:
        check_size(left, limits)
    except UserError as error:
        return str(error)
    for part, least in zip(PARTS, (2, 1, 1), strict=True):
        if (splits == part).sum() < least:
            few = "groups (data.group)" if found.groups else "images"
            return f"{found.root} has too few {few} to make a {part} part; add images to each class."
    return ""


def notes(index: Index, findings: dict[str, Any]) -> list[str]:
    """What the user should know of the data before training starts: errors and warnings, notes only counted."""
    lines = [say(finding) for finding in findings["findings"] if finding["severity"] != "note"]
    if "val" in index.splits and "test" not in index.splits:
        lines.append("No test folder: the val folder is held out to measure, and a new val part is cut from train.")
    elif "test" in index.splits and "val" not in index.splits:
        lines.append("No val folder: a val part is cut from train.")
    if lines:
        lines.append("All of it is in audit.html.")
    return lines


def say(finding: dict[str, Any]) -> str:
    """A finding as one line with its worst case."""
    worst = finding["items"][0]
    example = " and ".join(worst["paths"][:2])
    example = f"{example} ({worst['detail']})" if example else worst["detail"]
    return f"{finding['title']}: {finding['count']:,}, such as {example}. {finding['next']}"


def fingerprint(index: Index, hashes: np.ndarray) -> str:
    """The same for the same images under the same names and labels, wherever they lie."""
    digest = hashlib.blake2b("\n".join(index.class_names).encode(), digest_size=16)
    for path, label, pixel_hash in sorted(zip(index.paths, index.labels, hashes, strict=True)):
        digest.update(f"\n{path}\0{label}\0".encode() + pixel_hash)
    return digest.hexdigest()
