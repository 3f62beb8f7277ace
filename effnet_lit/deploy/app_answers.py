"""What an app answered, from a CSV file with one row an image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effnet_lit.config import UserError
from effnet_lit.data.manifest import COLUMNS, DELIMITERS

PATHS = COLUMNS["path"]
LABELS = (*COLUMNS["label"], "answer", "prediction", "predicted")
PROBABILITIES = ("probability", "confidence", "score")
WHOLE, PERCENT, SLACK = 1.0, 100.0, 0.1  # what probabilities sum up to; digits that were cut off make it less
NUMBER = "give a number from 0 to 1"
FORM = "it needs a column path, and either a column for every class or a column class"
Row = tuple[int, dict[str, str]]  # number of the line, values by column


@dataclass(frozen=True)
class AppAnswer:
    """One image's: the class, and as much of its probabilities as the app told."""

    path: str
    label: int
    probability: float | None = None  # of ``label``
    probabilities: np.ndarray | None = None  # (classes)

    @property
    def class_only(self) -> bool:
        """Whether the app told no probability."""
        return self.probability is None and self.probabilities is None

    def apart(self, others: np.ndarray) -> np.ndarray:
        """How far it is from each of other answers (K, classes) -> (K,), from 0 to 1: half of what all probabilities
        differ by (total variation), where the app tells them; else whether the class differs, and by how much its
        probability."""
        if self.probabilities is not None:
            return np.abs(others - self.probabilities).sum(1) / 2
        differs = (others.argmax(1) != self.label).astype(float)
        return differs if self.probability is None else (differs + np.abs(others[:, self.label] - self.probability)) / 2


def read_answers(file: Path, class_names: Sequence[str]) -> tuple[list[AppAnswer], bool]:
    """The rows that hold an answer, and whether their numbers were logits, of which the softmax was taken.

    Raises:
        UserError: no such file, no such columns, or a value that cannot be meant.
    """
    columns, rows = read_rows(file)
    path = one_of(columns, PATHS)
    if path is None:
        raise UserError(f"{file} has no column path; {FORM}.")
    if set(class_names) <= set(columns):
        answers, logits = told_probabilities(file, rows, path, class_names)
    else:
        answers, logits = list(told_classes(file, columns, rows, path, class_names)), False
    if not answers:
        raise UserError(f"{file} holds no answers; {FORM}.")
    return answers, logits


def told_probabilities(
    file: Path, rows: Sequence[Row], path: str, class_names: Sequence[str]
) -> tuple[list[AppAnswer], bool]:
    """Of a file that has a column for every class; as ``read_answers``."""
    rows = [(line, row) for line, row in rows if any(row[name] for name in class_names)]
    if not rows:
        return [], False
    values = np.array([[number(file, line, row[name]) for name in class_names] for line, row in rows])
    shares = as_shares(values)
    each = softmax(values) if shares is None else shares
    answers = [AppAnswer(row[path], int(one.argmax()), None, one) for (_, row), one in zip(rows, each, strict=True)]
    return answers, shares is None


def told_classes(
    file: Path, columns: Sequence[str], rows: Sequence[Row], path: str, class_names: Sequence[str]
) -> Iterator[AppAnswer]:
    """Of a file that tells one class an image, by its name or its number, and perhaps that one's probability.

    Raises:
        UserError: it does not, or the model has no such class.
    """
    label, probability = one_of(columns, LABELS), one_of(columns, PROBABILITIES)
    if label is None:
        lacking = next(name for name in class_names if name not in columns)
        raise UserError(f"{file} has neither a column '{lacking}' nor a column class; {FORM}.")
    known = {str(i): i for i in range(len(class_names))} | {name: i for i, name in enumerate(class_names)}
    rows = [(line, row) for line, row in rows if row[label]]
    chances = [number(file, line, row[probability]) if probability and row[probability] else None for line, row in rows]
    whole = PERCENT if any(chance is not None and chance > WHOLE for chance in chances) else WHOLE
    for (line, row), chance in zip(rows, chances, strict=True):
        if row[label] not in known:
            told = ", ".join(class_names[:20])
            raise UserError(f"{file}, line {line}: '{row[label]}' is no class of this model; they are: {told}.")
        if chance is not None and not 0 <= chance <= whole:
            raise UserError(f"{file}, line {line}: {chance:g} is no probability; {NUMBER}.")
        yield AppAnswer(row[path], known[row[label]], None if chance is None else chance / whole)


def read_rows(file: Path) -> tuple[list[str], list[Row]]:
    """Names of columns, and every line; a row that ends early has empty values.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=max(DELIMITERS, key=header.count), restval="")
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file} cannot be read ({reason}); give a CSV file in UTF-8: {FORM}.") from error
    return columns, rows


def one_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column by its name or a usual synonym, in any case."""
    return next((column for name in names for column in columns if column.strip().lower() == name), None)


def number(file: Path, line: int, text: str) -> float:
    """A finite number.

    Raises:
        UserError: the text is none.
    """
    try:
        value = float(text.replace(",", "."))  # as many countries write it
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{file}, line {line}: '{text}' is no probability; {NUMBER}.")
    return value


def as_shares(values: np.ndarray) -> np.ndarray | None:
    """Probabilities (N, classes), given as such or in percent; None where these are something else."""
    for whole in (WHOLE, PERCENT):
        if values.min() >= 0 and (np.abs(values.sum(1) / whole - 1) <= SLACK).all():
            return values / whole
    return None


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) -> probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
