"""What is wrong with these images, as ``audit.json``."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effnet_lit.data.cache import Cache
from effnet_lit.data.folder import Index
from effnet_lit.data.split import EXCLUDED


def audit(index: Index, cache: Cache, kept: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    """Counts and findings; ``kept`` are the numbers of the readable images and ``parts`` what became of each."""
    used = kept[parts != EXCLUDED]
    per_class = Counter(index.labels[i] for i in used)
    conflicts, duplicates = identical_images(index, cache, kept)
    return {
        "data_dir": str(index.root),
        "images": {"found": len(index.paths), "used": len(used)},
        "classes": {name: per_class[label] for label, name in enumerate(index.class_names)},
        "parts": {str(part): int((parts == part).sum()) for part in np.unique(parts)},
        "unreadable": [{"path": path, "reason": reason} for path, reason in cache.problems],
        "label_conflicts": conflicts,
        "duplicates": duplicates,
        "moved_out_of_a_given_part": moved(index, kept, parts),
        "ignored": [{"path": path, "reason": reason} for path, reason in index.ignored],
    }


def identical_images(index: Index, cache: Cache, kept: Sequence[int] | np.ndarray) -> tuple[list[list[str]], ...]:
    """Groups of paths with the same pixels: (under several labels, under one)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in kept:
        groups[cache.hashes[i]].append(i)
    several: list[list[str]] = []
    one: list[list[str]] = []
    for group in sorted(group for group in groups.values() if len(group) > 1):
        labels = {index.labels[i] for i in group}
        (several if len(labels) > 1 else one).append([index.paths[i] for i in group])
    return several, one


def moved(index: Index, kept: np.ndarray, parts: np.ndarray) -> list[str]:
    """Images that left the part their folder names, because the same pixels lie in an earlier one."""
    order = {"train": 0, "val": 1, "test": 2}
    return [
        index.paths[i]
        for i, part in zip(kept, parts, strict=True)
        if part in order and order[part] < order[index.splits[i] or part] and index.splits[i] != "train"
    ]


def write_audit(path: Path, content: dict[str, Any]) -> None:
    """Write ``audit.json``: beside the target first, then renamed."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
