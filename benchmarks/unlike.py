"""How often images of a class that training never showed are noticed: ``python -m benchmarks.unlike --help``.

Each run leaves some classes of a folder out of training; they are then asked about, as are other folders.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import load, split
from benchmarks.contenders import Process
from benchmarks.timing import machine

RESULTS = Path(__file__).parent / "results" / "unlike.json"
FALSE_ALARMS = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not in the JSON file yet, then print the table."""
    options = parser().parse_args(arguments)
    for folder in options.data:
        for left_out in range(options.choices):
            once(options, folder, left_out)
    print(table(load(options.output)))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.unlike", description="Images unlike the training ones.")
    of.add_argument("--data", type=Path, nargs="+", default=[], help="class folders; none = print the table")
    of.add_argument("--others", type=Path, nargs="*", default=[], help="folders whose images are all unlike")
    of.add_argument("--choices", type=int, default=2, help="how many times other classes are left out")
    of.add_argument("--settings", nargs="*", default=["preset=medium", "data.image_size=64", "model.weights=none"])
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def once(options: argparse.Namespace, folder: Path, choice: int) -> None:
    """One training and its scores, unless the file has them."""
    results = load(options.output)
    key = f"{folder.name}, choice {choice}"
    if key in results:
        return
    process = Process()
    try:
        others = [str(other) for other in options.others if other.resolve() != folder.resolve()]
        found = process.call(measure, str(folder), choice, options.settings, others)
    finally:
        process.close()
    results[key] = found | {"settings": options.settings, "machine": machine()}
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(key, found["found"], flush=True)


def measure(folder: str, choice: int, settings: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """Leave every fifth class out, train on the rest, and ask about everything."""
    from effnet_lit import compose, fit, load_model
    from effnet_lit.deploy.predict import find_images, predict

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        split(Path(folder), work, None)
        with open(work / "manifest.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["label"] for row in rows})
        left_out = names[choice::5] if len(names) > 6 else names[choice : choice + 1]
        with open(work / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row in rows if row["label"] not in left_out)
        places = (f"data.manifest={work / 'manifest.csv'}", f"data.cache_dir={work / 'cache'}")
        result = fit(compose(*settings, "limits=off", *places), work / "run")
        classifier = load_model(result.model_path)
        asked = {
            "test": [Path(row["path"]) for row in rows if row["split"] == "test" and row["label"] not in left_out],
            "classes left out": [Path(row["path"]) for row in rows if row["label"] in left_out],
        } | {Path(other).name: find_images([other])[::5] for other in others}
        flagged = {
            name: float(np.mean([item.unlike for item in predict(classifier, paths) if not item.error]))
            for name, paths in asked.items()
        }
        counts = {name: len(paths) for name, paths in asked.items()}
    return {"left_out": left_out, "accuracy": result.test["accuracy"], "found": flagged, "images": counts}


def table(results: dict[str, Any]) -> str:
    """Share flagged, as Markdown."""
    lines = ["| trained on | without | flagged of its own held-out | of the classes left out | of other folders |"]
    lines += ["|---|---|---:|---:|---|"]
    for name, run in results.items():
        own, left, *others = run["found"].values()
        other = ", ".join(f"{key} {value:.0%}" for key, value in zip(list(run["found"])[2:], others, strict=True))
        lines.append(f"| {name.split(',')[0]} | {', '.join(run['left_out'])} | {own:.1%} | {left:.1%} | {other} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
