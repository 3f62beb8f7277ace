"""What is wrong with these images, how sure we are, and what to do: the content of ``audit.json``.

Three severities: "error" was left out of training, "warning" asks for a decision, "note" is good to know.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effnet_lit.data.audit_rules import RULES, misnomer
from effnet_lit.data.folder import Index
from effnet_lit.data.split import PARTS

SEVERITIES = ("error", "warning", "note")
FEW_TRAIN, FEW_TEST = 10, 5  # images of a class


@dataclass(frozen=True)
class Item:
    """One case of a finding: the images it is about (none: a class), and its figure."""

    paths: list[str]
    detail: str


@dataclass(frozen=True)
class Finding:
    """One kind of problem. ``next`` says what was done and what the user can do; items come worst first."""

    kind: str
    severity: str
    title: str
    count: int
    next: str
    items: list[Item]


@dataclass(frozen=True)
class Audited:
    """What the audit looks at. Arrays have one entry an image of ``index``; ``parts`` is "" for the unreadable.
    ``identical`` and ``near`` are groups of image numbers."""

    index: Index
    labels: np.ndarray
    records: np.ndarray
    parts: np.ndarray
    problems: Sequence[tuple[str, str]]
    identical: Sequence[Sequence[int]]
    near: Sequence[Sequence[int]]
    excluded: Sequence[str]  # paths that a list of the user's left out before
    mirror_matters: bool

    def counts(self) -> dict[str, dict[str, int]]:
        """Class name -> part -> images."""
        tables = {
            part: np.bincount(self.labels[self.parts == part], minlength=len(self.index.class_names)) for part in PARTS
        }
        return {name: {part: int(tables[part][i]) for part in PARTS} for i, name in enumerate(self.index.class_names)}


def audit(seen: Audited) -> dict[str, Any]:
    """Counts and findings, worst first, in an order that depends on the images alone."""
    findings = [finding for group in (broken, copies, classes, odd_images) for finding in group(seen)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    index, used = seen.index, np.isin(seen.parts, PARTS)
    return {
        "format": 2,
        "data_dir": str(index.root),
        "images": {
            "found": len(index.paths) + len(seen.excluded),
            "used": int(used.sum()),
            "left_out": int((~used).sum()) + len(seen.excluded),
        },
        "classes": seen.counts(),
        "parts": {part: int((seen.parts == part).sum()) for part in PARTS},
        "findings": [asdict(finding) for finding in findings],
        "exclude": sorted([*seen.excluded, *(index.paths[i] for i in np.flatnonzero(~used))]),
        "ignored": [{"path": path, "reason": reason} for path, reason in index.ignored],
    }


def broken(seen: Audited) -> Iterator[Finding]:
    """Files that give no image."""
    large = [Item([path], reason) for path, reason in seen.problems if reason.startswith("too large")]
    rest = [Item([path], reason) for path, reason in seen.problems if not reason.startswith("too large")]
    if rest:
        yield Finding(
            "unreadable",
            "error",
            "Unreadable or truncated",
            len(rest),
            "Left out. Replace them, or delete them; they are tried again in the next run.",
            rest,
        )
    if large:
        yield Finding(
            "too_large",
            "error",
            "Too many pixels",
            len(large),
            "Left out before decoding, since such files can exhaust the memory. Save them smaller.",
            large,
        )


COPIES = {  # what a group of copies spans -> severity, end of the title, next step: of the same pixels, of near ones
    "label_conflict": (
        (
            "error",
            "under different classes",
            "Left out, since a label must be wrong. Delete the wrong copy and run again.",
        ),
        (
            "warning",
            "under different classes",
            "Used as they are. Look at each: delete the wrong one, or list it under 'exclude' in audit.json.",
        ),
    ),
    "leak": (
        (
            "warning",
            "in several of the given parts",
            "All copies go to the training side, so the held-out figure is honest.",
        ),
        (
            "warning",
            "in several of the given parts",
            "Left where they are, so the held-out figure is too good; data.near_duplicates=together moves them.",
        ),
    ),
    "across": (
        ("note", "in training and held out", ""),  # cannot be
        (
            "note",
            "in training and held out",
            "They make the held-out figure a little too good; data.near_duplicates=together keeps them on one side.",
        ),
    ),
    "duplicates": (
        ("note", "within a class", "They lie on one side of the split. Extra copies teach nothing new."),
        ("note", "within a class", "They lie on one side of the split. Extra copies teach little."),
    ),
}


def copies(seen: Audited) -> Iterator[Finding]:
    """Images that are the same or look the same: across classes, across given parts, within a class."""
    for near, groups in enumerate((seen.identical, seen.near)):
        found: dict[str, list[Item]] = defaultdict(list)
        for group in groups:
            kind = span(seen, group)
            places = {where(seen.index, i, kind) for i in group}
            found[kind].append(Item(sorted(seen.index.paths[i] for i in group), ", ".join(sorted(places))))
        for kind, texts in COPIES.items():
            severity, title, next_step = texts[near]
            title = f"{'Almost the same image' if near else 'Same pixels'} {title}"
            items = sorted(found[kind], key=lambda item: item.paths)
            if items:
                count = sum(len(item.paths) for item in items)
                yield Finding("near_" * near + kind, severity, title, count, next_step, items)


def span(seen: Audited, group: Sequence[int]) -> str:
    """Which row of COPIES a group belongs to."""
    if len({seen.index.labels[i] for i in group}) > 1:
        return "label_conflict"
    if len({seen.index.splits[i] for i in group}) > 1:
        return "leak"
    return "across" if len({seen.parts[i] for i in group}) > 1 else "duplicates"


def where(index: Index, i: int, kind: str) -> str:
    """Of an image in a group: its given part where the group spans parts, else its class."""
    return str(index.splits[i]) if kind == "leak" else index.class_names[index.labels[i]]


def training_images(name: str, count: int) -> str:
    """How many a class has."""
    return f"{name}: {count:,} training image{'' if count == 1 else 's'}"


def classes(seen: Audited) -> Iterator[Finding]:
    """Classes that are uneven or too small."""
    of = seen.counts()
    train = sorted((own["train"], name) for name, own in of.items())
    (fewest, rare), (most, frequent) = train[0], train[-1]
    if fewest and most / fewest >= 3:
        yield Finding(
            "imbalance",
            "warning" if most / fewest >= 10 else "note",
            "Uneven classes",
            len(of),
            f"'{frequent}' has {most / fewest:.1f} times the training images of '{rare}'. "
            "If rare classes matter as much, data.balance=loss weighs them more.",
            [Item([], training_images(name, count)) for count, name in train],
        )
    small = [Item([], training_images(name, count)) for count, name in train if count < FEW_TRAIN]
    if small:
        yield Finding(
            "small_class",
            "warning",
            "Classes too small to learn",
            len(small),
            f"Fewer than {FEW_TRAIN} images teach little. Add images, or merge or remove the class.",
            small,
        )
    unmeasured = [Item([], f"{name}: {own['test']} test images") for name, own in of.items() if own["test"] < FEW_TEST]
    if unmeasured:
        yield Finding(
            "unmeasured_class",
            "note",
            "Classes too small to measure",
            len(unmeasured),
            "Their own figures in the report mean little. Add images, or set data.fold to test on all in turn.",
            unmeasured,
        )
    if seen.mirror_matters:
        yield Finding(
            "mirror",
            "note",
            "Mirroring may change the class",
            0,
            "The class names are single signs, or speak of left and right; images are not mirrored in training unless "
            "you set data.horizontal_flip=on. If turning changes them as well, set data.rotation=off.",
            [],
        )


def suspected_labels(items: list[Item]) -> Finding:
    """What a trained model adds: held-out images, surest first."""
    return Finding(
        "likely_wrong_label",
        "note",
        "Labels worth a second look",
        len(items),
        "The model is sure of another class, of images it was not trained on. Look at them: move those that are wrong "
        "to the right class folder. data.fold=0/5, 1/5 and so on looks at every image in turn.",
        items,
    )


def odd_images(seen: Audited) -> Iterator[Finding]:
    """Single images that a rule applies to, worst first, and those that are not what their names say."""
    numbers = np.flatnonzero(seen.parts != "")
    records, paths = seen.records[numbers], seen.index.paths
    for rule in RULES if len(numbers) else ():
        chosen = np.flatnonzero(rule.applies(records))
        worst = chosen[np.argsort(-rule.badness(records[chosen]), kind="stable")]
        items = [Item([paths[numbers[i]]], rule.detail(records[i])) for i in worst]
        if items:
            yield Finding(rule.kind, rule.severity, rule.title, len(items), rule.next, items)
    misnamed = [Item([paths[i]], f"is {kind}") for i in numbers if (kind := misnomer(paths[i], seen.records[i]))]
    if misnamed:
        yield Finding(
            "wrong_extension",
            "note",
            "Content does not match the extension",
            len(misnamed),
            "Read by content here. Rename them, since other programs may refuse them.",
            misnamed,
        )


def write_audit(path: Path, content: dict[str, Any]) -> None:
    """Write ``audit.json``: beside the target first, then renamed."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
