"""A CSV file -> an index of image files, for people without class folders. Standard library only.

    path,label,split,patient
    img/0001.jpg,cat,train,17

``path`` and ``label`` are needed, ``split`` may be there, and every other column can keep images on one side of a split
with ``data.group``.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from effnet_lit.config import UserError
from effnet_lit.data.folder import SPLIT_FOLDERS, Index

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "category", "target", "class_name"),
    "split": ("split", "set", "partition", "subset"),
}
DELIMITERS = ",;\t"

Row = dict[str, str]


def read_manifest(manifest: Path, root: Path, group: str | None) -> Index:
    """The images that a CSV file lists, with paths relative to ``root``; ``group`` names a column, or none of them.

    Class names are sorted as plain text, as numbers where all of them are whole numbers.

    Raises:
        UserError: the file cannot be read, lacks a column or a value, or names files that are not there.
    """
    names, rows = read_rows(manifest)
    columns = {kind: find_column(manifest, names, kind) for kind in COLUMNS}
    by_path: dict[str, Row] = {}
    for number, row in rows:
        path = relative(manifest, number, row[columns["path"]], root)
        label = row[columns["label"]].strip()
        if not label:
            raise UserError(f"{manifest}, line {number}: {path} has no label; give it one, or remove the line.")
        earlier = by_path.setdefault(path, row)[columns["label"]].strip()
        if earlier != label:
            raise UserError(
                f"{manifest}, line {number}: {path} is '{label}' here and '{earlier}' above; keep one line."
            )
    check_files(manifest, root, list(by_path))
    paths = sorted(by_path)
    labels = [by_path[path][columns["label"]].strip() for path in paths]
    class_names = sorted(set(labels), key=class_order(labels))
    number_of = {name: i for i, name in enumerate(class_names)}
    return Index(
        root,
        tuple(class_names),
        tuple(paths),
        tuple(number_of[label] for label in labels),
        tuple(part(manifest, path, by_path[path].get(columns["split"], "")) for path in paths),
        (),
        tuple(by_path[path][group] or None for path in paths) if group in names else (),
    )


def read_rows(manifest: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Column names as written, and (line number, row) of every line that is not blank."""
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=header.count)
            reader = csv.DictReader(file, delimiter=delimiter, restval="")
            rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"data.manifest={manifest} cannot be read ({reason}); give a CSV file in UTF-8.") from error
    if not rows:
        raise UserError(f"data.manifest={manifest} lists no images; give a CSV file with columns path and label.")
    return [name for name in reader.fieldnames or () if name], rows


def find_column(manifest: Path, names: Sequence[str], kind: str) -> str:
    """The column of a kind by its name or a usual synonym, in any case; an empty text where ``split`` is absent."""
    found = {name.strip().lower(): name for name in names}
    known = [found[name] for name in COLUMNS[kind] if name in found]
    if not known and kind != "split":
        raise UserError(
            f"data.manifest={manifest} has no column '{kind}' (its columns: {', '.join(names)}); rename one."
        )
    return known[0] if known else ""


def relative(manifest: Path, number: int, text: str, root: Path) -> str:
    """A path of the file, relative to ``root`` with forward slashes."""
    text = text.strip().replace("\\", "/") if os.name == "nt" else text.strip()
    path = os.path.normpath(os.path.relpath(text, root) if os.path.isabs(text) else text)
    if not text or path == "." or path.split(os.sep)[0] == "..":
        raise UserError(
            f"{manifest}, line {number}: '{text}' is no file below {root}; set data.dir to the images' folder."
        )
    return path.replace(os.sep, "/")


def check_files(manifest: Path, root: Path, paths: Sequence[str]) -> None:
    """Raise ``UserError`` where files are not there; a few that vanish later are told by the audit."""
    missing = [path for path in paths if not os.path.isfile(root / path)]
    if not missing:
        return
    hint = f"set data.dir to the folder that the paths start from (now {root})"
    folder = (root / missing[0]).parent
    if folder.is_dir():
        own = [entry.name for entry in os.scandir(folder)]
        stem = [name for name in own if os.path.splitext(name)[0] == Path(missing[0]).name]
        close = stem or difflib.get_close_matches(Path(missing[0]).name, own, n=1)
        hint = f"did you mean {close[0]}?" if close else hint
    raise UserError(f"{manifest}: {len(missing):,} of {len(paths):,} files are not there, such as {missing[0]}; {hint}")


def class_order(labels: Sequence[str]) -> type[int] | type[str]:
    """How class names are sorted: 2 before 10 where all are whole numbers."""
    return int if all(label.isdecimal() for label in labels) else str


def part(manifest: Path, path: str, text: str) -> str | None:
    """The part of one image, None where none is given."""
    name = text.strip().lower()
    if name and name not in SPLIT_FOLDERS:
        raise UserError(f"{manifest}: {path} has the split '{text}'; use train, val or test, or leave it empty.")
    return SPLIT_FOLDERS.get(name)
