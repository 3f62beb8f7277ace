"""A CSV file -> its lines, as people, programs and spreadsheets write them. Standard library only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path

from effnet_lit.config import UserError

DELIMITERS = ",;\t"

Row = dict[str, str]  # by column name; no spaces around the values


def read_lines(file: Path, given: str) -> list[tuple[int, list[str]]]:
    """(line number, values) of every line that is not blank; the first has the names of columns. ``given`` is how the
    file was named.

    Raises:
        UserError: the file cannot be read, or a line has more values than there are names.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            header = next((line for line in text if line.strip()), "")
            text.seek(0)
            reader = csv.reader(text, delimiter=max(DELIMITERS, key=header.count))
            lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{given} cannot be read ({reason}); give a CSV file in UTF-8.") from error
    lines = [(number, row) for number, row in lines if any(row)]
    for number, row in lines[1:]:
        if any(row[len(lines[0][1]) :]):
            raise UserError(
                f"{file}, line {number} has {len(row)} values for {len(lines[0][1])} columns; "
                'put quotes around a value with the delimiter in it, such as "a, b.jpg".'
            )
    return lines


def by_name(names: Sequence[str], row: Sequence[str]) -> Row:
    """The values of a line, empty where it ends early; a column without a name, as pandas writes one, is left out."""
    return {name: value for name, value in zip(names, chain(row, repeat("")), strict=False) if name}
