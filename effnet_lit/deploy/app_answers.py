"""What an app answered, from a CSV file with one row an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effnet_lit.config import UserError
from effnet_lit.data.manifest import COLUMNS
from effnet_lit.data.table import Row, by_name, read_lines
from effnet_lit.model.modelfile import Header

PATHS = COLUMNS["path"]
LABELS = ("prediction", "predicted", "answer", *COLUMNS["label"])  # beside a prediction, a label is the true class
PROBABILITIES = ("probability", "confidence", "score")
WHOLE, PERCENT = 1.0, 100.0  # what probabilities sum up to
SLACK = 0.1  # of that sum: digits that were cut off
FORM = "it needs a column path, and either a column for every class or a column class"

Line = tuple[int, Row]  # its number, values by column


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

    def is_class(self, label: int) -> bool:
        """Whether this class is its answer, or one of its answers where written digits do not tell them apart."""
        return label == self.label or (
            self.probabilities is not None and bool(self.probabilities[label] == self.probabilities[self.label])
        )

    def apart(self, others: np.ndarray) -> np.ndarray:
        """How far it is from each of other answers (K, classes) -> (K,), from 0 to 1: half of what all probabilities
        differ by (total variation), where the app tells them; else whether the class differs, and by how much its
        probability."""
        if self.probabilities is not None:
            return np.abs(others - self.probabilities).sum(1) / 2
        differs = (others.argmax(1) != self.label).astype(float)
        return differs if self.probability is None else (differs + np.abs(others[:, self.label] - self.probability)) / 2


class AppAnswers(NamedTuple):
    """Of all images; how far rounding alone can take them from others on average; what was made of the file."""

    answers: list[AppAnswer]
    rounding: float
    note: str = ""


def read_answers(file: Path, header: Header) -> AppAnswers:
    """The rows that hold an answer.

    Raises:
        UserError: no such file, no such columns, or a value that cannot be meant.
    """
    lines = read_lines(file, str(file))
    columns = lines[0][1] if lines else []
    path = one_of(columns, PATHS)
    if path is None:
        raise UserError(f"{file} has no column path; {FORM}.")
    rows = [(line, by_name(columns, values)) for line, values in lines[1:]]
    told = told_probabilities if set(header.class_names) <= set(columns) else told_classes
    found = told(file, columns, rows, path, header)
    if not found.answers:
        raise UserError(f"{file} holds no answers; {FORM}.")
    must_be_one_each(file, found.answers)
    return found


def told_probabilities(
    file: Path, columns: Sequence[str], rows: Sequence[Line], path: str, header: Header
) -> AppAnswers:
    """Of a file that has a column for every class."""
    names = header.class_names
    rows = [(line, row) for line, row in rows if any(row[name] for name in names)]
    if not rows:
        return AppAnswers([], 0)
    values = np.array([[number(file, line, row[name]) for name in names] for line, row in rows])
    step = min(digits(row[name]) for _, row in rows for name in names)
    whole, note = whole_of(values), ""
    shares = values / (whole or 1)
    if whole is None:
        shares = softmax(values / header.calibration["temperature"])
        note = "the numbers are neither probabilities nor percent, and were taken for the network's output (logits)"
    answers = [AppAnswer(row[path], int(one.argmax()), None, one) for (_, row), one in zip(rows, shares, strict=True)]
    return AppAnswers(answers, len(names) * step / (whole or 1) / 8, note)


def told_classes(file: Path, columns: Sequence[str], rows: Sequence[Line], path: str, header: Header) -> AppAnswers:
    """Of a file that tells one class an image, by its name or its number, and perhaps that one's probability.

    Raises:
        UserError: it does not, or the model has no such class.
    """
    names, label, probability = header.class_names, one_of(columns, LABELS), one_of(columns, PROBABILITIES)
    if label is None:
        lacking = next(name for name in names if name not in columns)
        raise UserError(f"{file} has neither a column '{lacking}' nor a column class; {FORM}.")
    rows = [(line, row) for line, row in rows if row[label]]
    numbers = {str(i): i for i in range(len(names))}
    by_number = all(row[label] in numbers for _, row in rows) and not all(row[label] in names for _, row in rows)
    known = numbers if by_number else {name: i for i, name in enumerate(names)}
    chances = [number(file, line, row[probability]) if probability and row[probability] else None for line, row in rows]
    whole = PERCENT if any(chance is not None and chance > WHOLE + SLACK for chance in chances) else WHOLE
    answers = []
    for (line, row), chance in zip(rows, chances, strict=True):
        if row[label] not in known:
            told = ", ".join(names[:20])
            raise UserError(f"{file}, line {line}: '{row[label]}' is no class of this model; they are: {told}.")
        if chance is not None and not -SLACK <= chance / whole <= 1 + SLACK:
            raise UserError(f"{file}, line {line}: {chance:g} is no probability; give a number from 0 to 1.")
        chance = None if chance is None else min(max(chance / whole, 0.0), 1.0)
        answers.append(AppAnswer(row[path], known[row[label]], chance))
    step = min((digits(row[probability]) for _, row in rows if probability and row[probability]), default=0.0)
    return AppAnswers(answers, step / whole / 8, "classes were taken for numbers, from 0 on" if by_number else "")


def must_be_one_each(file: Path, answers: Sequence[AppAnswer]) -> None:
    """One image has one answer.

    Raises:
        UserError: one has two.
    """
    first: dict[str, AppAnswer] = {}
    for answer in answers:
        if first.setdefault(answer.path, answer).label != answer.label:
            raise UserError(f"{file} has two answers for {answer.path}; write the likeliest class only.")


def one_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column by its name or a usual synonym, in any case."""
    return next((column for name in names for column in columns if column.lower() == name), None)


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
        raise UserError(f"{file}, line {line}: '{text}' is no probability; give a number from 0 to 1.")
    return value


def digits(text: str) -> float:
    """The step between numbers that are written so: 0.01 for 0.25; 0 where powers of ten stand behind."""
    decimals = text.replace(",", ".").partition(".")[2]
    return 0.0 if "e" in text.lower() else 10.0 ** -len(decimals.rstrip("0"))


def whole_of(values: np.ndarray) -> float | None:
    """What rows of probabilities (N, classes) sum up to; None where these are something else."""
    for whole in (WHOLE, PERCENT):
        if values.min() >= -SLACK * whole and (np.abs(values.sum(1) / whole - 1) <= SLACK).all():
            return whole
    return None


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) -> probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
