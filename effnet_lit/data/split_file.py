"""split.csv: which image is in which part, to be read by people and given back with ``data.split``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from effnet_lit.config import UserError
from effnet_lit.data.folder import Index
from effnet_lit.data.split import PARTS

SPLIT = "split.csv"  # its name in a run folder
COLUMNS = ("path", "label", "split")


def write_split(path: Path, paths: Sequence[str], labels: Sequence[str], parts: Sequence[str]) -> None:
    """One row an image that is used."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(paths, labels, parts, strict=True))


def read_split(path: Path) -> dict[str, str]:
    """Image path -> "train", "val" or "test".

    Raises:
        UserError: there is no such file, or it is none that ``write_split`` writes.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.split={path} cannot be read ({error}); give the split.csv of a run folder.") from error
    if not rows or not {"path", "split"} <= rows[0].keys():
        raise UserError(f"data.split={path} has no columns path and split; give the split.csv of a run folder.")
    for number, row in enumerate(rows, start=2):
        if row["split"] not in PARTS:
            raise UserError(f"data.split={path}, line {number}: '{row['split']}' is no part; use train, val or test.")
    return {row["path"]: row["split"] for row in rows}


def with_split(index: Index, path: Path) -> tuple[Index, list[str]]:
    """The index with the parts of a split.csv, and what did not fit. Images it does not name go to train, so that
    the held-out ones stay the same."""
    parts = read_split(path)
    unnamed = [own for own in index.paths if own not in parts]
    gone = parts.keys() - set(index.paths)
    if len(unnamed) == len(index.paths):
        raise UserError(
            f"data.split={path} names none of the images in {index.root}; give the split.csv of a run on them."
        )
    notes = []
    if unnamed:
        notes.append(f"{len(unnamed):,} images that {path.name} does not name go to train, such as {unnamed[0]}.")
    if gone:
        notes.append(f"{len(gone):,} images that {path.name} names are not there, such as {min(gone)}.")
    return replace(index, splits=tuple(parts.get(own, "train") for own in index.paths)), notes
