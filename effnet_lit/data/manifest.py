"""A CSV file -> an index of image files, for people without class folders. Standard library only.

    path,label,split,patient
    img/0001.jpg,cat,train,17

``path`` and ``label`` are needed, ``split`` may be there, and every other column can keep images on one side of a split
with ``data.group``. The delimiter is a comma, semicolon or tab; column names may be in any case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from effnet_lit.config import UserError
from effnet_lit.data.folder import SPLIT_FOLDERS, Index
from effnet_lit.data.table import Row, by_name, read_lines

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "category", "target", "class_name"),
    "split": ("split", "set", "partition", "subset"),
}

Said = tuple[str, str | None, str | None]  # (label, split, group) of one image


def read_manifest(manifest: Path, root: Path, group: str | None) -> Index:
    """The images that a CSV file lists, with paths relative to ``root``; ``group`` names a column, or none of them.

    Class names are sorted as plain text, as numbers where all of them are whole numbers.

    Raises:
        UserError: the file cannot be read, lacks a column or a value, contradicts itself, or names files that are
            not there.
    """
    names, rows = read_rows(manifest)
    path_column, label_column, split_column = (find_column(manifest, names, kind) for kind in COLUMNS)
    group_column = group.strip().lower() if group else ""
    found: dict[str, Said] = {}
    for number, row in rows:
        line = f"{manifest}, line {number}"
        path = relative(line, row[path_column], root)
        if not row[label_column]:
            raise UserError(f"{line}: {path} has no label; give it one, or remove the line.")
        said = row[label_column], part(line, path, row.get(split_column, "")), row.get(group_column) or None
        for here, above in zip(said, found.setdefault(path, said), strict=True):
            if here != above:
                raise UserError(f"{line}: {path} is '{here or ''}' here and '{above or ''}' above; keep one line.")
    paths = sorted(found)
    check_files(manifest, root, paths)
    labels, splits, groups = zip(*(found[path] for path in paths), strict=True)
    class_names = sort_classes(set(labels))
    number_of = {name: i for i, name in enumerate(class_names)}
    return Index(
        root,
        tuple(class_names),
        tuple(paths),
        tuple(number_of[label] for label in labels),
        splits,
        (),
        groups if group_column in names else (),
    )


def read_rows(manifest: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Column names in lower case, and (line number, row) of every line that is not blank."""
    lines = read_lines(manifest, f"data.manifest={manifest}")
    if len(lines) < 2:
        raise UserError(f"data.manifest={manifest} lists no images; give a CSV file with columns path and label.")
    names = [name.lower() for name in lines[0][1]]
    return [name for name in names if name], [(number, by_name(names, row)) for number, row in lines[1:]]


def find_column(manifest: Path, names: Sequence[str], kind: str) -> str:
    """The column of a kind by its name or a usual synonym; an empty text where ``split`` is absent."""
    known = [name for name in COLUMNS[kind] if name in names]
    if not known and kind != "split":
        raise UserError(
            f"data.manifest={manifest} has no column '{kind}' (its columns: {', '.join(names)}); rename one."
        )
    return known[0] if known else ""


def relative(line: str, text: str, root: Path) -> str:
    """A path as written, on whatever system, -> relative to ``root`` with forward slashes."""
    path = text.replace("\\", "/")
    if os.path.isabs(path):
        folder, name = os.path.split(path)
        path = os.path.relpath(path, root)
        if path.startswith(".."):  # root itself may be written by way of a link, or without
            path = os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(root))
    path = os.path.normpath(path)
    if not text or path == "." or path.split(os.sep)[0] == "..":
        raise UserError(f"{line}: '{text}' is no file below {root}; set data.dir to the images' folder.")
    return path.replace(os.sep, "/")


def part(line: str, path: str, text: str) -> str | None:
    """The part of one image, None where none is given."""
    if text and text.lower() not in SPLIT_FOLDERS:
        raise UserError(f"{line}: {path} has the split '{text}'; use train, val or test, or leave it empty.")
    return SPLIT_FOLDERS.get(text.lower())


def check_files(manifest: Path, root: Path, paths: Sequence[str]) -> None:
    """Raise ``UserError`` where files are not there."""
    missing = [path for path in paths if not os.path.isfile(root / path)]
    if not missing:
        return
    hint = "put them back, or remove their lines."
    if len(missing) == len(paths):
        hint = f"set data.dir to the folder that the paths start from (now {root})."
    if same := same_name(root / missing[0]):
        hint = f"did you mean {same}?"
    raise UserError(f"{manifest}: {len(missing):,} of {len(paths):,} files are not there, such as {missing[0]}; {hint}")


def same_name(file: Path) -> str:
    """A file beside it with another extension, where this one may have none; else an empty text."""
    own = [entry.name for entry in os.scandir(file.parent)] if file.parent.is_dir() else []
    return min((name for name in own if os.path.splitext(name)[0] in (file.name, file.stem)), default="")


def sort_classes(names: set[str]) -> list[str]:
    """2 before 10 where all are whole numbers, plain text order elsewhere."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # 1 and 01 are two classes
    return sorted(names)
