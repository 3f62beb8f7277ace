"""`effnet predict`: answers for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from effnet_lit.allocator import keep_freed_memory
from effnet_lit.config import UserError
from effnet_lit.deploy.predict import Prediction, find_images, is_sure, predict
from effnet_lit.evaluation.gradcam import heat_maps, last_maps, overlay
from effnet_lit.model.modelfile import Header, ImageClassifier, load_model

MANY = 200  # files, from which on a bar shows how far it is
WIDEST_PATH, WIDEST_NAME = 60, 30  # letters, of columns on the screen


def predict_files(
    model: Path, paths: Sequence[str], form: str, top: int, explain: Path | None, level: float | None
) -> bool:
    """Print an answer for each image; returns whether every file could be read.

    Args:
        form: json, csv or lines.
        top: classes a file.
        explain: folder for heat maps.
        level: instead of ``top`` classes, those that hold the true one with this chance.

    Raises:
        UserError: no such file, folder, model or level.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    keep_freed_memory()
    classifier = load_model(model)
    header = classifier.header
    least = None if level is None else set_threshold(header, level)
    files = find_images(paths)
    predictions: Iterator[Prediction] = predict(classifier, files)
    if explain is not None:
        last_maps(classifier.network)  # says so at once where there are none
        if explain.resolve() in {Path(file).resolve().parent for file in files}:
            raise UserError(f"--explain {explain} would put its pictures among the images; give another folder.")
        predictions = explained(predictions, classifier, explain)
    console = Console(stderr=True)
    if len(files) >= MANY and console.is_terminal and not sys.stdout.isatty():
        predictions = iter(track(predictions, "predicting", len(files), console=console, transient=True))
    if form == "lines" and not is_sure(1.0, header):
        wanted = header.calibration["wanted_accuracy"]
        console.print(f"Never sure: no threshold left answers that were {wanted:.0%} right on the validation images.")
    if form == "lines" and least == 0:
        console.print(f"Every class is in each set: only more validation images could show {level:.0%}.")
    lines = partial(text_line, width=min(WIDEST_PATH, max(len(str(file)) for file in files)))
    print_one = {"json": json_line, "csv": csv_line, "lines": lines}[form]
    if form == "csv":
        csv.writer(sys.stdout).writerow(
            ["path", "class", "probability", "sure", "unlike", "error", *header.class_names]
        )
    readable = True
    for item in predictions:
        print_one(item, header, Chosen(top, least))
        readable &= not item.error
    return readable


class Chosen:
    """Which classes of an answer are told."""

    def __init__(self, top: int, least: float | None) -> None:
        self.top, self.least = top, least

    def __call__(self, item: Prediction, names: Sequence[str]) -> list[tuple[str, float]]:
        if self.least is None:
            return item.top(names, self.top)
        ordered = item.top(names, len(names))
        return [pair for pair in ordered if pair[1] >= self.least] or ordered[:1]


def set_threshold(header: Header, level: float) -> float:
    """The least probability of a class in such a set.

    Raises:
        UserError: the model file has none for this level.
    """
    known = {key.removeprefix("set_"): value for key, value in header.calibration.items() if key.startswith("set_")}
    if f"{level:g}" not in known:
        told = ", ".join(known) or "none, since it was trained by an older effnet_lit"
        raise UserError(f"--set {level:g} is not in this model; it has: {told}.")
    return known[f"{level:g}"]


def json_line(item: Prediction, header: Header, chosen: Chosen) -> None:
    """One object a line."""
    row: dict[str, Any] = {"path": item.path}
    if item.error:
        row["error"] = item.error
    else:
        name, probability = item.top(header.class_names, 1)[0]
        row |= {"class": name, "probability": probability, "sure": is_sure(probability, header), "unlike": item.unlike}
        row["top"] = [{"class": name, "probability": value} for name, value in chosen(item, header.class_names)]
    print(json.dumps(row, ensure_ascii=False), flush=True)


def csv_line(item: Prediction, header: Header, chosen: Chosen) -> None:
    """One row a file: path, class, probability, sure, unlike, error, then every class's probability."""
    writer = csv.writer(sys.stdout)
    if item.probabilities is None:
        writer.writerow([item.path, "", "", "", "", item.error, *[""] * len(header.class_names)])
        return
    name, probability = item.top(header.class_names, 1)[0]
    sure, unlike = ("yes" if told else "no" for told in (is_sure(probability, header), item.unlike))
    values = [repr(float(value)) for value in item.probabilities]
    writer.writerow([item.path, name, repr(probability), sure, unlike, "", *values])


def text_line(item: Prediction, header: Header, chosen: Chosen, width: int) -> None:
    """A row a file for the eye: path (``width`` letters wide), answer, probability, other classes, doubts."""
    path = f"{item.path:<{width}}"
    if item.error:
        print(f"{path}  not read: {item.error}")
        return
    (name, probability), *others = chosen(item, header.class_names)
    answer = f"{name:<{min(WIDEST_NAME, max(map(len, header.class_names)))}}  {probability:6.1%}"
    doubts = [] if is_sure(probability, header) else ["not sure"]
    doubts += ["unlike the training images"] if item.unlike else []
    rest = [", ".join(f"{name} {probability:.1%}" for name, probability in others)] if others else []
    print("   ".join([f"{path}  {answer}", *rest, *doubts]))


def explained(predictions: Iterator[Prediction], classifier: ImageClassifier, folder: Path) -> Iterator[Prediction]:
    """The same predictions; a picture of each is written to ``folder``, none that is there is written over."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); give another folder with --explain.") from error
    for number, item in enumerate(predictions):
        if item.image is not None and item.probabilities is not None:
            answer = np.array([int(item.probabilities.argmax())])
            (heat,) = heat_maps(classifier, item.image[None], answer)
            picture = Image.fromarray(np.concatenate([item.image, overlay(item.image, heat)], axis=1))
            picture.save(free(folder, f"{number:05}-{Path(item.path).stem}"))
        yield item


def free(folder: Path, stem: str) -> Path:
    """A name for a PNG that nobody has."""
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for name in names if not (path := folder / f"{name}.png").exists())
