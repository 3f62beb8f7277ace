"""Does the doctor find planted faults, and keep silent without? ``python -m benchmarks.doctor --help``.

Each case trains once. Those on the embedded digits were there to choose the rules' thresholds; the others score them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy import split
from benchmarks.contenders import Process
from benchmarks.timing import machine

RESULTS = Path(__file__).parent / "results" / "doctor.json"
Rows = list[dict[str, str]]  # of a manifest: path, label, split
SETTINGS = ("data.image_size=64", "preset=medium", "limits=off")


class Case(NamedTuple):
    """A run: what was done to images and settings, and which diagnoses are right; none = healthy."""

    name: str
    right: frozenset[str]
    settings: tuple[str, ...] = ()
    plant: Callable[[Rows, Path], Rows] | None = None
    per_class: int | None = None


def wrong_labels(rows: Rows, work: Path) -> Rows:
    """30% of all labels, drawn anew among the other classes."""
    draw, names = random.Random(0), sorted({row["label"] for row in rows})
    for row in rows:
        if draw.random() < 0.3:
            row["label"] = draw.choice([name for name in names if name != row["label"]])
    return rows


def copies_in_training(rows: Rows, work: Path) -> Rows:
    """A third of the held-out images once more in training, saved again as JPEG."""
    from PIL import Image

    added = []
    for number, row in enumerate([row for row in rows if row["split"] == "test"][::3]):
        copy = work / "copies" / f"{number}.jpg"
        copy.parent.mkdir(exist_ok=True)
        Image.open(row["path"]).convert("RGB").save(copy, quality=70)
        added.append(row | {"path": str(copy), "split": "train"})
    return rows + added


def rare(rows: Rows, work: Path, classes: int, kept: int) -> Rows:
    """Only ``kept`` training images of some classes."""
    few, taken, left = sorted({row["label"] for row in rows})[:classes], dict[str, int](), []
    for row in rows:
        if row["split"] == "train" and row["label"] in few:
            taken[row["label"]] = taken.get(row["label"], 0) + 1
            if taken[row["label"]] > kept:
                continue
        left.append(row)
    return left


def even(rows: Rows, work: Path) -> Rows:
    """Without classes that have less than half the images of the largest: the doctor would tell of them, rightly."""
    counts = Counter(row["label"] for row in rows)
    return [row for row in rows if 2 * counts[row["label"]] >= max(counts.values())]


def mirrored_classes(rows: Rows, work: Path) -> Rows:
    """Every other image of one class, mirrored, is a class of its own."""
    (work / "mirrored").mkdir()
    label = sorted({row["label"] for row in rows})[-3]
    for number, row in enumerate([row for row in rows if row["label"] == label][::2]):
        row["path"], row["label"] = mirror(row["path"], work / "mirrored" / f"{number}.png"), "the other way"
    return rows


def mirror(source: str, target: Path) -> str:
    """The image, left and right exchanged, at ``target``."""
    from PIL import Image, ImageOps

    ImageOps.mirror(Image.open(source).convert("RGB")).save(target)
    return str(target)


def large_files(rows: Rows, work: Path) -> Rows:
    """The images enlarged to a megapixel: what a slow disk does, a slow decoder does too."""
    from PIL import Image

    (work / "large").mkdir()
    for number, row in enumerate(rows):
        target = work / "large" / f"{number}.png"
        Image.open(row["path"]).convert("RGB").resize((1000, 1000)).save(target, compress_level=1)
        row["path"] = str(target)
    return rows


def faults(epochs: int, weights: Path | None) -> list[Case]:
    """One planted fault each."""

    def case(name: str, right: Sequence[str], *settings: str, **planted: Any) -> Case:
        length = () if any(given.startswith("epochs=") for given in settings) else (f"epochs={epochs}",)
        return Case(name, frozenset(right), (*length, *settings), **planted)

    few, slow = {"per_class": 60}, ("epochs=2", "data.cache=off", "data.workers=1")
    rare_kinds = ("few_images", "imbalance")
    mirrored = ("label_changing_augmentation",)
    return [
        case("learning rate x 30", ["rate_high"], "learning_rate=0.03"),
        case("learning rate / 100", ["rate_low"], "learning_rate=1e-5"),
        case("no augmentation, 60 a class", ["overfitting"], f"epochs={2 * epochs}", "augmentation=none", **few),
        case("one worker, large files, no cache", ["data_slow"], *slow, plant=large_files, **few),
        case("30% wrong labels", ["label_noise"], plant=wrong_labels),
        case("copies of held-out images in training", ["leakage"], plant=copies_in_training),
        case("a frozen backbone", ["frozen"], f"model.weights={weights}", "training.strategy=probe"),
        case("three classes with 10 images", rare_kinds, plant=partial(rare, classes=3, kept=10)),
        case("one class with 4 images", rare_kinds, plant=partial(rare, classes=1, kept=4)),
        case("heavy augmentation for 3 epochs on 60 a class", ["few_steps"], "augmentation=heavy", "epochs=3", **few),
        case("1 epoch", ["few_steps"], "epochs=1"),
        case("classes that are mirror images", mirrored, "data.horizontal_flip=on", plant=mirrored_classes),
    ]


def healthy(epochs: int) -> list[Case]:
    """Nothing planted: presets, and changes to them that people make."""
    variations = ("preset=medium", "preset=small", "learning_rate=2e-3", "batch_size=16", "dropout_rate=0.4")
    return [Case(one, frozenset(), (f"epochs={epochs}", one), even) for one in variations]


def train(folder: str, case: Case, seed: int) -> dict[str, Any]:
    """Train one case; returns what the doctor said, and the figures it had."""
    from effnet_lit import compose, fit
    from effnet_lit.evaluation.doctor import diagnose
    from effnet_lit.evaluation.evidence import read_evidence

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        split(Path(folder), work, case.per_class)
        with open(work / "manifest.csv", newline="", encoding="utf-8") as file:
            rows: Rows = list(csv.DictReader(file))
        rows = case.plant(rows, work) if case.plant else rows
        with open(work / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        weights = [] if any(s.startswith("model.weights") for s in case.settings) else ["model.weights=none"]
        usual = [s for s in SETTINGS if s.split("=")[0] not in {given.split("=")[0] for given in case.settings}]
        settings = [*usual, *case.settings, *weights, f"data.manifest={work / 'manifest.csv'}", f"seed={seed}"]
        run = fit(compose(*settings, f"data.cache_dir={work / 'cache'}"), work / "run").run_dir
        seen = read_evidence(run)
        return {
            "said": [advice._asdict() for advice in diagnose(seen)],
            "train": seen.train,
            "test": seen.test,
            "contradicted": seen.result["training_sample"]["contradicted"] / seen.result["training_sample"]["images"],
            "data_wait": seen.result["data_wait_share"],
            "val_losses": [row.get("val/loss") for row in seen.epochs],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not in the JSON file yet, then print the table."""
    options = parser().parse_args(arguments)
    for folder in options.data:
        cases = [] if options.only == "healthy" else faults(options.epochs, options.weights)
        cases += [] if options.only == "faults" else healthy(options.epochs)
        for seed in options.seeds:
            for case in cases:
                once(options.output, folder, case, seed)
    print(table(load(options.output)))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.doctor", description="Planted faults, and none.")
    of.add_argument("--data", type=Path, nargs="+", default=[], help="class folders; none = print the table")
    of.add_argument("--only", choices=("faults", "healthy"))
    of.add_argument("--seeds", type=int, nargs="+", default=[1])
    of.add_argument("--epochs", type=int, default=12)
    of.add_argument("--weights", type=Path, help="a model of other images, for the fault of a frozen backbone")
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def once(output: Path, folder: Path, case: Case, seed: int) -> None:
    """One case in a process of its own, unless the file has it."""
    results = load(output)
    key = f"{folder.name}, {case.name}, seed {seed}"
    if key in results:
        return
    process = Process()
    try:
        found = process.call(train, str(folder), case, seed)
    finally:
        process.close()
    results[key] = found | {"right": sorted(case.right), "machine": machine()}
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(key, [one["kind"] for one in found["said"]], flush=True)


def load(file: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def table(results: dict[str, Any]) -> str:
    """What was planted and what was said, as Markdown; detection and false alarms with 95% intervals."""
    from effnet_lit.evaluation.metrics import wilson_interval

    lines = ["| run | training, held out | the doctor said | right |", "|---|---|---|---|"]
    found, alarms = [], []
    for name, run in results.items():
        said = [one["kind"] for one in run["said"]]
        right = bool(set(said) & set(run["right"])) if run["right"] else not said
        (found if run["right"] else alarms).append(right)
        figures = f"{run['train'][0]:.0%}, {run['test'][0]:.0%}"
        lines.append(f"| {name} | {figures} | {', '.join(said) or 'nothing'} | {'yes' if right else 'no'} |")
    for about, values in (("Faults found", found), ("Healthy runs left alone", alarms)):
        if values:
            low, high = wilson_interval(sum(values), len(values))
            lines += ["", f"{about}: {sum(values)} of {len(values)} (95% interval {low:.0%} to {high:.0%})."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
