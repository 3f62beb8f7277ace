"""What a model answers where an app prepares photographs its own way: ``python -m benchmarks.deployment --help``.

A run's held-out photographs are given to its exported file whole, and to the same network after other ways of making
them its size.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.accuracy import load
from benchmarks.timing import machine
from effnet_lit import load_model
from effnet_lit.deploy.agreement import readable
from effnet_lit.deploy.export import to_onnx
from effnet_lit.deploy.onnx_file import ask, session_of
from effnet_lit.deploy.predict import answer
from effnet_lit.evaluation.metrics import wilson_interval
from effnet_lit.export_command import divided, held_out

RESULTS = Path(__file__).parent / "results" / "deployment.json"
Prepare = Callable[[np.ndarray, int], np.ndarray]


def whole(image: np.ndarray, size: int) -> np.ndarray:
    """As it is; the file resizes it."""
    return image


def pillow_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Antialiased, as torchvision's transforms and timm's do by default."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def opencv_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """OpenCV's default, without antialiasing; so do the image classes of phones."""
    return cv2.resize(image, (size, size))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Short side to the size, bilinear and antialiased, then the middle."""
    scale = size / min(image.shape[:2])
    height, width = (max(size, round(length * scale)) for length in image.shape[:2])
    top, left = (height - size) // 2, (width - size) // 2
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(shrunk)[top : top + size, left : left + size]


def blue_first(image: np.ndarray, size: int) -> np.ndarray:
    """Whole, but with the channels as OpenCV reads them."""
    return np.ascontiguousarray(image[:, :, ::-1])


PREDICT, SMALL = "effnet predict", "effnet export --small, whole photographs"
WAYS: dict[str, Prepare] = {
    "effnet export, whole photographs": whole,
    "squeezed by Pillow, bilinear": pillow_bilinear,
    "squeezed by OpenCV or a phone, bilinear": opencv_bilinear,
    "short side, then the middle": centre_crop,
    "whole, channels blue first": blue_first,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask about every run given, then print the table."""
    options = parser().parse_args(arguments)
    results = load(options.output)
    for run in options.runs:
        results[run.resolve().name] = measure(run) | {"machine": machine()}
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.deployment", description="Photographs prepared otherwise.")
    of.add_argument(
        "runs", type=Path, nargs="*", help="run folders whose images are still there; none = print the table"
    )
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def measure(run: Path) -> dict[str, Any]:
    """For each way: how many answers are other than ``effnet predict``'s, and how many are right."""
    classifier = load_model(run)
    size = classifier.header.eval_size
    photographs = held_out(run)
    typical, others = divided(photographs, classifier.header)
    session, small = (session_of(to_onnx(classifier, by).SerializeToString()) for by in (None, typical))
    with open(run / "test_predictions.csv", newline="", encoding="utf-8") as file:
        labels = {row["path"]: classifier.header.class_names.index(row["label"]) for row in csv.DictReader(file)}

    answers: dict[str, list[int]] = {name: [] for name in (PREDICT, SMALL, *WAYS)}
    right, compared, told = [], [], {name for name, _ in others}
    for path, square, image in readable(photographs, classifier.header):
        right.append(labels[path])
        compared.append(path in told)  # weights in 8 bits were rounded by the others
        answers[PREDICT].append(int(answer(classifier, [square])[0][0].argmax()))
        answers[SMALL].append(ask(small, image).verdict[0])
        for name, prepare in WAYS.items():
            answers[name].append(ask(session, prepare(image, size)).verdict[0])
    rows = {}
    for name, given in answers.items():
        part = np.array(compared) if name == SMALL else slice(None)
        rows[name] = counts(*(np.array(each)[part] for each in (given, answers[PREDICT], right)))
    return {"size": size, "ways": rows}


def counts(given: np.ndarray, expected: np.ndarray, right: np.ndarray) -> dict[str, int]:
    """Of answers: how many there are, how many are other than expected, and how many right."""
    return {"images": len(given), "other": int((given != expected).sum()), "right": int((given == right).sum())}


def table(results: dict[str, Any]) -> str:
    """Both shares for every run, as Markdown."""
    lines = ["| run | photographs | prepared | other answers | right (95% interval) |", "|---|---:|---|---:|---|"]
    for name, run in results.items():
        for way, row in run["ways"].items():
            images = row["images"]
            low, high = wilson_interval(row["right"], images)
            share = f"{row['right'] / images:.1%} ({low:.1%}-{high:.1%})"
            other = "-" if way == PREDICT else f"{row['other'] / images:.1%}"
            lines.append(f"| {name}, {run['size']} px | {images:,} | {way} | {other} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
