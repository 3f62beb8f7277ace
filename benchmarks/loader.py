"""How fast images become training batches: ``python -m benchmarks.loader --help``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Spread, machine

RESULTS = Path(__file__).parent / "results" / "loader.json"
EPOCH = 1_280  # images of an epoch at most, forty batches: seconds for everybody
SAMPLE = 384  # images that settings are chosen on
FEW = 1_000  # what many images are compared with

Say = Callable[[str], object]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A part that is not asked for keeps its place in the JSON file."""
    options = parser().parse_args(arguments)
    if not options.peers and options.many is None:
        parser().error("say what to measure: --peers --data FOLDER, --many 60000, or both")
    if options.peers and not (options.data and options.data.is_dir()):
        parser().error(f"--peers needs --data FOLDER, one sub-folder of images per class (given: {options.data})")
    if options.many is not None and options.many <= FEW:
        parser().error(f"--many {options.many} has nothing to be compared with; give more than {FEW:,}, such as 60000")
    if options.rounds < 1:
        parser().error(f"--rounds {options.rounds} measures nothing; give 1 or more")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if options.peers:
        begin = time.perf_counter()
        result = measure_peers(options.data, options.rounds, console.log)
        save(options.out, "peers", result | {"minutes": minutes(begin)})
        show_first_pass(result["first_pass"], console)
        show_batches(result["batches"], console)
    if options.many:
        from benchmarks.many import measure_many, show_many

        begin = time.perf_counter()
        result = measure_many(FEW, options.many, options.rounds, console.log)
        save(options.out, "many", result | {"minutes": minutes(begin)})
        show_many(result, console)
    console.print(f"written to {options.out}")


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.loader", description="How fast images become batches.")
    of.add_argument("--peers", action="store_true", help="beside cleanvision, Pillow, timm, torchvision, Ultralytics")
    of.add_argument("--data", type=Path, metavar="FOLDER", help="class folders for --peers; only read")
    of.add_argument("--many", type=int, metavar="N", help=f"N small images made here, beside {FEW:,}; 60000")
    of.add_argument("--rounds", type=int, default=3, help="repeats of everything, interleaved (default 3)")
    of.add_argument("--out", type=Path, default=RESULTS, help="JSON file (default benchmarks/results/loader.json)")
    return of


def minutes(begin: float) -> float:
    """Since ``begin``."""
    return round((time.perf_counter() - begin) / 60, 1)


def measure_peers(data: Path, rounds: int, say: Say) -> dict[str, Any]:
    """First pass and batches, on a copy of ``data`` in the system's folder for temporary files."""
    from benchmarks.batches import compare_batches
    from benchmarks.contenders import copy_images
    from benchmarks.first_pass import compare_first_pass

    here = machine()
    with tempfile.TemporaryDirectory(prefix="effnet-loader-") as folder:
        images, epoch, sample = (Path(folder, name, data.name) for name in ("all", "epoch", "sample"))
        counts = copy_images(data, images), copy_images(data, epoch, EPOCH), copy_images(data, sample, SAMPLE)
        first_pass = compare_first_pass(images, sample, counts[0], rounds, say)
        batches = compare_batches(epoch, sample, rounds, say)
    used = dict(zip(("all", "an_epoch", "chosen_on"), counts, strict=True))
    return {"machine": here, "data": data.name, "images": used, "first_pass": first_pass, "batches": batches}


def save(file: Path, part: str, result: dict[str, Any]) -> None:
    """Write one part of the results, keeping the others."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | {part: result}, indent=2) + "\n", encoding="utf-8")


def show_first_pass(result: dict[str, Any], console: Console) -> None:
    """Section A as a table."""
    table = Table("first pass", "images/s a core", "ours is", title=f"median (lowest-highest), {result['cores']} cores")
    for name, figures in result["contenders"].items():
        table.add_row(name, Spread(**figures["images_per_s_and_core"]).text(), times(figures))
    for name, reason in result["absent"].items():
        table.add_row(name, reason, "")
    console.print(table)


def show_batches(result: dict[str, Any], console: Console) -> None:
    """Section B, one table a scenario."""
    for scenario, compared in result["scenarios"].items():
        table = Table(scenario, "images/s, second epoch on", "ours is", "best settings")
        for name, figures in compared["contenders"].items():
            table.add_row(name, Spread(**figures["images_per_s"]).text(), times(figures), figures["settings"])
        for name, reason in result["absent"].items():
            table.add_row(name, reason, "", "")
        console.print(table)
        for name, figures in compared["contenders"].items():
            console.print(f"  a batch of {name}: {figures['batch']}")
        if "verdict" in compared:
            console.print(f"  ours beside the best, {compared['best_peer']}: {compared['verdict']}")


def times(figures: dict[str, Any]) -> str:
    """How many times ours is theirs."""
    return Spread(**figures["ours_is_times"]).text(".2f") + "x" if "ours_is_times" in figures else ""


if __name__ == "__main__":
    main()
