"""report.html and report.md: how good a model is, where it fails and why, on one page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from effnet_lit.commands import override, typed
from effnet_lit.config import Config, UserError, from_dict, knobs, value_of
from effnet_lit.evaluation.calibration import coverage
from effnet_lit.evaluation.charts import Axis, Line, chart, ticks
from effnet_lit.evaluation.doctor import diagnose
from effnet_lit.evaluation.evidence import read_evidence
from effnet_lit.evaluation.gradcam import heat_maps, overlay
from effnet_lit.evaluation.metrics import wilson_interval
from effnet_lit.model.modelfile import ImageClassifier

IMAGES_SHOWN = 12  # of each kind
PAIRS_SHOWN = 6  # of classes taken for each other
EXAMPLES = 3  # images of each pair
MATRIX_CLASSES = 30  # more are not readable as a matrix
SIDE, QUALITY = 144, 70  # of a picture: pixels, JPEG
RELIABILITY_BINS = 10

BY_PRESET = ("batch_size", "epochs", "learning_rate", "dropout_rate", "augmentation")

Pixels = Callable[[str], np.ndarray | None]


class Answer(NamedTuple):
    """One held-out image: its true class, the model's, and how sure that was."""

    path: str
    label: int
    answer: int
    confidence: float
    probabilities: np.ndarray


class Picture(NamedTuple):
    """An image, or the same with a heat map, and what is told of it."""

    uri: str
    heat: str
    path: str
    text: str


def write_report(run_dir: Path, classifier: ImageClassifier, pixels: Pixels) -> Path:
    """Write both files from what the run left behind; returns the page.

    Args:
        pixels: path of a held-out image -> uint8 (S, S, 3) at the model's eval_size, or None where it is gone.

    Raises:
        UserError: the folder holds no finished run.
    """
    facts = gather(run_dir, classifier, pixels)
    write_page(run_dir / "report.md", facts)
    return write_page(run_dir / "report.html", facts)


def write_page(target: Path, facts: Mapping[str, Any]) -> Path:
    """Fill the template of that name; beside the target first, then renamed: never half a page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "percent": percent, "plain": plain}
    text = environment.get_template(f"{target.name}.j2").render(**facts)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, target)
    return target


def percent(share: float) -> str:
    """0.9861 -> 98.6%."""
    return f"{share:.1%}"


def plain(text: str) -> str:
    """A name that cannot change the Markdown around it."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|~" else letter for letter in " ".join(text.split()))


def gather(run_dir: Path, classifier: ImageClassifier, pixels: Pixels) -> dict[str, Any]:
    """Everything that the pages show."""
    result = read_json(run_dir / "result.json")
    names = result["class_names"]
    answers = read_answers(run_dir / "test_predictions.csv", names)
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    audit = read_json(run_dir / "audit.json")
    right = np.array([one.answer == one.label for one in answers])
    confidence = np.array([one.confidence for one in answers])
    draw = Drawing(classifier, pixels)
    wrong = sorted((one for one in answers if one.answer != one.label), key=lambda one: -one.confidence)
    unsure = sorted(answers, key=lambda one: one.confidence)
    return {
        "result": result,
        "header": classifier.header,
        "test": result["test"],
        "names": names,
        "verdict": verdict(result),
        "curves": learning_curves(run_dir / "metrics.csv"),
        "matrix": matrix(result) if len(names) <= MATRIX_CLASSES else None,
        "pairs": pairs(answers, names, draw),
        "classes": class_rows(result),
        "wrong": [draw(one, names) for one in wrong[:IMAGES_SHOWN]],
        "wrong_total": len(wrong),
        "unsure": [draw(one, names) for one in unsure[:IMAGES_SHOWN]],
        "reliability": reliability(confidence, right, result["calibration"]["temperature"], answers),
        "coverage": coverage_chart(confidence, right),
        "audit": audit,
        "advice": diagnose(read_evidence(run_dir)) if "training_sample" in result else None,
        "config": config,
        "command": command(from_dict(yaml.safe_load(config))),
        "run": run_dir.resolve().name,
    }


def command(config: Config) -> str:
    """What trains the same again: every setting that is not the schema's default, and those that presets change."""
    given, usual = [], Config()
    for key, _, _ in knobs():
        value = value_of(config, key)
        if key in ("name", "resume", "expectation", "trainer"):
            continue
        if key in BY_PRESET or value != value_of(usual, key):
            given.append(override(key, value))
    given += [override(f"trainer.{k}", v) for k, v in config.trainer.items() if usual.trainer.get(k) != v]
    return typed("python train.py", *given)


def read_json(path: Path) -> dict[str, Any]:
    """A file of the run.

    Raises:
        UserError: it is not there.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} has no {path.name}, so it is not a finished run; give a folder under runs/."
        ) from error


def read_answers(path: Path, names: Sequence[str]) -> list[Answer]:
    """The model's answers on the held-out images, as the run wrote them."""
    number = {name: i for i, name in enumerate(names)}
    found = []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        for place, label, answer, *values in rows:
            probabilities = np.array(values, dtype=np.float64)
            found.append(Answer(place, number[label], number[answer], float(probabilities.max()), probabilities))
    return found


def verdict(result: Mapping[str, Any]) -> list[str]:
    """How good, against what, and how far to trust it: three short sentences."""
    test, told = result["test"], result["calibration"]
    low, high = test["accuracy_ci95"]
    base = result["baseline_accuracy"]
    sentences = [
        f"{percent(test['accuracy'])} right on {test['images']:,} images it never saw "
        f"(95% interval {percent(low)} to {percent(high)}).",
        f"Always answering the most frequent class would be right on {percent(base)}.",
    ]
    answered, right = told["answered"], told["answered_right"]
    if told["abstain_below"] > 1 or not answered:
        sentences.append("No threshold makes its answers as right as wanted: treat each as a suggestion.")
    elif answered < test["images"]:
        sentences.append(
            f'It says "not sure" to {percent(1 - answered / test["images"])} of them; '
            f"of the others {percent(right / answered)} are right."
        )
    return sentences


def learning_curves(metrics: Path) -> list[tuple[str, Markup]]:
    """Loss and accuracy over epochs; none after a probe."""
    if not metrics.is_file():
        return []
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    charts = []
    for quantity, form in (("loss", "{:g}"), ("accuracy", "{:.0%}")):
        lines = []
        for part, kind in (("train", "c1"), ("val", "c0")):
            key = f"{part}/{quantity}"
            points = [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key)]
            lines.append(Line(part, kind, [point for point in points if np.isfinite(point[1])], dots=True))
        values = [value for line in lines for _, value in line.points] or [0.0]
        low, high = (min(0.0, *values), max(values)) if quantity == "loss" else (min(values), 1.0)
        last = max((point[0] for line in lines for point in line.points), default=1.0)
        x = Axis("epoch", 1, max(last, 2), [t for t in ticks(1, last, 8) if t == int(t)])
        y = Axis(quantity, low, high, ticks(low, high), form)
        charts.append((quantity, chart(f"{quantity} over epochs", x, y, lines)))
    return charts


class Cell(NamedTuple):
    """Of the confusion matrix: images, and their share of the true class."""

    images: int
    share: float


def matrix(result: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """(true class, cells) for each row."""
    rows = []
    for name, counts in zip(result["class_names"], result["test"]["confusion_matrix"], strict=True):
        total = max(1, sum(counts))
        rows.append((name, [Cell(count, count / total) for count in counts]))
    return rows


def pairs(answers: Sequence[Answer], names: Sequence[str], draw: Drawing) -> list[dict[str, Any]]:
    """The classes most often taken for another, with examples."""
    found: dict[tuple[int, int], list[Answer]] = {}
    for one in answers:
        if one.answer != one.label:
            found.setdefault((one.label, one.answer), []).append(one)
    most = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:PAIRS_SHOWN]
    totals = np.bincount([one.label for one in answers], minlength=len(names))
    return [
        {
            "true": names[label],
            "answer": names[answer],
            "count": len(mistaken),
            "of": int(totals[label]),
            "pictures": [draw(one, names) for one in sorted(mistaken, key=lambda one: -one.confidence)[:EXAMPLES]],
        }
        for (label, answer), mistaken in most
    ]


def class_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each class with the interval of its recall, the weakest first."""
    rows = []
    for name, row in result["test"]["per_class"].items():
        interval = wilson_interval(round(row["recall"] * row["images"]), row["images"])
        rows.append(row | {"name": name, "low": interval[0], "high": interval[1]})
    return sorted(rows, key=lambda row: row["recall"])


def reliability(confidence: np.ndarray, right: np.ndarray, temperature: float, answers: Sequence[Answer]) -> Markup:
    """Share right against confidence, before and after calibration."""
    logs = [np.log(np.maximum(one.probabilities, 1e-38)) * temperature for one in answers]
    before = np.array([1 / np.exp(values - values.max()).sum() for values in logs])
    lines = [
        Line("as it should be", "even", [(0.0, 0.0), (1.0, 1.0)]),
        Line("before", "c1", binned(before, right), dots=True),
        Line("after", "c0", binned(confidence, right), dots=True),
    ]
    tenths = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x, y = Axis("confidence", 0, 1, tenths, "{:.0%}"), Axis("right", 0, 1, tenths, "{:.0%}")
    return chart("share right against confidence, before and after calibration", x, y, lines)


def binned(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float]]:
    """(mean confidence, share right) of equally wide bins that hold five images and more."""
    place = np.minimum((confidence * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    groups = [place == i for i in range(RELIABILITY_BINS)]
    return [(float(confidence[g].mean()), float(right[g].mean())) for g in groups if g.sum() >= 5]


def coverage_chart(confidence: np.ndarray, right: np.ndarray) -> Markup:
    """Accuracy if only the surest are answered."""
    found = coverage(confidence, right)
    points = list(zip(found.share.tolist(), found.accuracy.tolist(), strict=True))
    points = [point for point in points if point[0] * len(right) >= min(10, len(right))]
    low = min((point[1] for point in points), default=0.0)
    low = min(0.9, np.floor(low * 10) / 10)
    x = Axis("share of images answered, the surest first", 0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0], "{:.0%}")
    y = Axis("right", low, 1, ticks(low, 1.0), "{:.0%}")
    return chart("accuracy against the share answered", x, y, [Line("right", "c0", points)])


class Drawing:
    """Makes pictures with heat maps for the class that the model answered."""

    def __init__(self, classifier: ImageClassifier, pixels: Pixels) -> None:
        self.classifier, self.pixels = classifier, pixels
        self.drawn: dict[str, Picture] = {}

    def __call__(self, one: Answer, names: Sequence[str]) -> Picture:
        if one.path not in self.drawn:
            text = f"{names[one.answer]} {percent(one.confidence)}"
            text += "" if one.answer == one.label else f", is {names[one.label]}"
            image = self.pixels(one.path)
            uri, heat = ("", "") if image is None else (encoded(image), self.heat(image, one.answer))
            self.drawn[one.path] = Picture(uri, heat, one.path, text)
        return self.drawn[one.path]

    def heat(self, image: np.ndarray, answer: int) -> str:
        """The image with its heat map; empty where the network has none."""
        try:
            (found,) = heat_maps(self.classifier, image[None], np.array([answer]))
        except UserError:
            return ""
        return encoded(overlay(image, found))


def encoded(image: np.ndarray) -> str:
    """A small JPEG as a data URI."""
    stream = BytesIO()
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    small.save(stream, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
