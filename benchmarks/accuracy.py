"""Accuracy on held-out images beside other people's trainers, from scratch or from ImageNet weights:
``python -m benchmarks.accuracy --help``."""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy_runs, fine_tuning_runs
from benchmarks.accuracy_runs import Run
from benchmarks.contenders import Process
from benchmarks.timing import machine

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
USUAL = ("ours", "timm", "torchvision", "ultralytics")  # fastai on request
USUAL_FROM_WEIGHTS = ("ours", "timm", "fastai")  # AutoGluon on request
PARTS = ("train", "val", "test")
SPLIT_SEED = 0  # of every contender and every seed: what is compared is training, not luck with the split


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not in the JSON file yet, then print the table."""
    of = parser()
    options = of.parse_args(arguments)
    usual = USUAL_FROM_WEIGHTS if options.weights == "lite0" else USUAL
    known = runs_from(options.weights).CONTENDERS
    if not set(options.contenders or ()) <= set(known):
        of.error(f"with --weights {options.weights} only {', '.join(known)} are trained")
    if "autogluon" in (options.contenders or ()) and "AUTOGLUON_PYTHON" not in os.environ:
        of.error("AUTOGLUON_PYTHON is to name the Python of an environment with autogluon.multimodal")
    for folder in options.data:
        with tempfile.TemporaryDirectory() as work:
            parts = split(folder, Path(work), options.per_class)
            task = Run(parts, options.size, options.epochs, options.preset, bool(options.per_class))
            name = title(folder, options)
            for contender in options.contenders or usual:
                measure(options, name, contender, task)
    print(table(load(options.output)))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Accuracy beside other trainers.")
    of.add_argument("--data", type=Path, nargs="+", default=[], help="class folders; none = print the table")
    of.add_argument("--contenders", nargs="+", choices=tuple(accuracy_runs.CONTENDERS | fine_tuning_runs.CONTENDERS))
    of.add_argument("--weights", choices=("none", "lite0"), default="none", help="lite0: Lite0's of ImageNet")
    of.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of.add_argument("--tries", action="store_true", help="also other settings of each; the best gets all seeds")
    of.add_argument("--size", type=int, default=64, help="pixels a side")
    of.add_argument("--epochs", type=int, default=18)
    of.add_argument("--preset", default="medium", help="ours")
    of.add_argument("--per-class", type=int, help="train on so many images of each class alone")
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def runs_from(weights: str) -> Any:
    """The module with CONTENDERS and TRIES."""
    return fine_tuning_runs if weights == "lite0" else accuracy_runs


def title(folder: Path, options: argparse.Namespace) -> str:
    """What is measured, as it stands in the file and the table."""
    few = f", {options.per_class} a class" if options.per_class else ""
    weights = ", from ImageNet weights of Lite0" if options.weights == "lite0" else ""
    return f"{folder.name}, {options.size} px, {options.epochs} epochs{few}{weights}"


def split(folder: Path, work: Path, per_class: int | None) -> Path:
    """train, val and test as class folders of links, and a manifest of the same; our own split makes them."""
    from effnet_lit import compose
    from effnet_lit.data.prepare import prepare

    config = compose(f"data.dir={folder}", "data.image_size=32", "model.weights=none")
    data = prepare(config.data, SPLIT_SEED, False, 32, lambda done, total: None)
    rows = []
    for part in PARTS:
        taken: dict[int, int] = {}
        for number in data.part(part):
            label = int(data.labels[number])
            taken[label] = taken.get(label, 0) + 1
            if part == "train" and per_class and taken[label] > per_class:
                continue
            name, source = data.class_names[label], Path(folder, data.paths[number]).resolve()
            link = work / part / name / f"{number}{source.suffix.lower()}"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(source, link)
            rows.append({"path": str(link), "label": name, "split": part})
    with open(work / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("path", "label", "split"))
        writer.writeheader()
        writer.writerows(rows)
    return work


def measure(options: argparse.Namespace, name: str, contender: str, task: Run) -> None:
    """Every seed at the defaults; with ``--tries`` other settings with the first seed, and every seed of the
    best by validation accuracy."""
    runs = runs_from(options.weights)
    train, (defaults, *others) = runs.CONTENDERS[contender], runs.TRIES[contender]

    def once(settings: dict[str, Any], seed: int) -> dict[str, Any]:
        key = "defaults" if settings is defaults else json.dumps(settings)
        return train_once(options.output, (name, contender, key), train, task._replace(seed=seed, settings=settings))

    for seed in options.seeds:
        once(defaults, seed)
    if options.tries and others:
        best = max(others, key=lambda settings: once(settings, options.seeds[0])["val_accuracy"])
        for seed in options.seeds:
            once(best, seed)


def train_once(
    output: Path, place: tuple[str, str, str], train: Callable[[Run], dict[str, Any]], task: Run
) -> dict[str, Any]:
    """One run in a process of its own, unless the file has it at ``place``: images, contender, settings."""
    name, contender, key = place
    results = load(output)
    runs = results.setdefault(name, {}).setdefault(contender, {}).setdefault(key, {})
    if str(task.seed) in runs:
        return runs[str(task.seed)]
    process, started = Process(), time.perf_counter()
    try:
        found = process.call(train, task)
    finally:
        process.close()
    runs[str(task.seed)] = found | {"minutes": round((time.perf_counter() - started) / 60, 2), "machine": machine()}
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {contender}, {key}, seed {task.seed}: {found['test_accuracy']:.1%}", flush=True)
    return runs[str(task.seed)]


def load(file: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def table(results: Mapping[str, Any]) -> str:
    """Mean, lowest and highest of the seeds, as Markdown."""
    lines = []
    for name, contenders in results.items():
        lines += [
            "",
            f"**{name}**",
            "",
            "| trainer | settings | held out: mean (lowest-highest) | seeds | images/s | peak memory, GB |",
        ]
        lines += ["|---|---|---|---:|---:|---:|"]
        for contender, settings in contenders.items():
            for key, runs in settings.items():
                values = list(runs.values())
                found = [run["test_accuracy"] for run in values]
                span = f"{statistics.mean(found):.1%} ({min(found):.1%}-{max(found):.1%})"
                speeds = [run["images_per_s"] for run in values if run["images_per_s"] is not None]
                speed = f"{statistics.median(speeds):.0f}" if speeds else "-"
                memory = max(run["peak_memory_bytes"] for run in values) / 1e9
                lines.append(f"| {contender} | {key} | {span} | {len(found)} | {speed} | {memory:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
