"""Many small images: cost of each, memory, and how soon a second run has its first batch."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Process
from benchmarks.timing import Spread, interleave, machine, spread, verdict

Say = Callable[[str], object]
CLASSES, SIDE = 10, 40
SIZE = 32  # pixels trained on and cached: 3 KB an image
OVERRIDES = (f"data.image_size={SIZE}", f"data.eval_size={SIZE}", "data.horizontal_flip=on")
LEAST_SECONDS = 2.0  # few images are passed over again until so much time is measured
DEAREST, LATEST = 1.2, 3.0  # targets: times the cost of few images, seconds


def make_images(folder: Path, count: int) -> None:
    """Distinct JPEGs of random coloured patches, in class folders, from fixed seeds."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        file = folder / f"class_{number % CLASSES}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        patches = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(patches).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)


def measure_many(few: int, many: int, rounds: int, say: Say) -> dict[str, Any]:
    """Everything at ``few`` and at ``many`` images, made in the system's folder for temporary files."""
    here = machine()
    with tempfile.TemporaryDirectory(prefix="effnet-many-") as folder:
        folders = {count: Path(folder, f"images_{count}") for count in (few, many)}
        for count, images in folders.items():
            say(f"making {count:,} images")
            make_images(images, count)
        say("first pass")
        cost = first_pass_cost(folders, rounds)
        say("memory")
        memory = {count: in_new_process(memory_of, images, Path(folder, "cache")) for count, images in folders.items()}
        say("second start")
        starts = [in_new_process(second_start, folders[many], Path(folder, "cache")) for _ in range(rounds)]
        profile = in_new_process(slowest_calls, folders[many], Path(folder, "cache"))
    return {
        "machine": here,
        "images": [few, many],
        "first_pass": cost | {"verdict": verdict(cost["ratio"], DEAREST, "x", most=True)},
        "memory": grown(memory[few], memory[many], many - few),
        "second_start": started(starts) | {"slowest_calls": profile},
    }


def in_new_process(task: Callable[..., Any], *arguments: Any) -> Any:
    """A fresh interpreter for one task."""
    process = Process()
    try:
        return process.call(task, *arguments)
    finally:
        process.close()


def first_pass_cost(folders: dict[int, Path], rounds: int) -> dict[str, Any]:
    """Microseconds per image of a first pass in a fresh cache, few and many in turn."""
    few, many = folders
    process = Process()
    process.call(pass_microseconds, folders[few], few, 0.0)  # imports
    tasks = {
        str(count): partial(process.call, pass_microseconds, folders[count], count, LEAST_SECONDS) for count in folders
    }
    samples = interleave(tasks, rounds)
    process.close()
    figures = {count: spread(samples[count])._asdict() for count in samples}
    ratio = statistics.median(samples[str(many)]) / statistics.median(samples[str(few)])
    return {"microseconds_per_image": figures, "ratio": ratio}


def pass_microseconds(data: Path, images: int, least_seconds: float) -> float:
    """Mean over as many passes as fill ``least_seconds``."""
    from benchmarks.ours import our_first_pass

    seconds = [our_first_pass(data, *OVERRIDES)]
    while sum(seconds) < least_seconds:
        seconds.append(our_first_pass(data, *OVERRIDES))
    return statistics.mean(seconds) / images * 1e6


def memory_of(data: Path, cache_dir: Path) -> dict[str, int]:
    """Anonymous memory in bytes: after the imports, at most while preparing, after it, at most in an epoch."""
    from benchmarks.ours import our_config, our_prepare
    from effnet_lit.data.datamodule import ClassFolderDataModule

    config = our_config(data, cache_dir / str(data.name), *OVERRIDES)
    found = {"imported": anonymous_bytes()}
    with peak() as preparing:
        prepared = our_prepare(config)
    found |= {"preparing": preparing[0], "prepared": anonymous_bytes()}
    loader = ClassFolderDataModule(prepared, 32, config.seed, workers(config, prepared.cache)).train_dataloader()
    with peak() as epoch:
        for _ in loader:
            pass
    return found | {"epoch": epoch[0]}


def workers(config: Any, cache: str) -> int:
    """What ``data.workers=auto`` becomes on this machine."""
    from effnet_lit.training.hardware import choose_workers, resolve_hardware

    return choose_workers(config.data.workers, resolve_hardware(config).accelerator, cache)


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most anonymous memory while the block runs, looked at every few milliseconds."""
    most = [anonymous_bytes()]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], anonymous_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
        most[0] = max(most[0], anonymous_bytes())


def anonymous_bytes() -> int:
    """RssAnon of this process: memory that is no file's, which the system cannot drop."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def grown(few: dict[str, int], many: dict[str, int], more: int) -> dict[str, Any]:
    """Growth from few to many images, above what each process had after its imports.

    Decoded images are no part of it where they stay on disk: one takes 196,608 bytes at 256 pixels.
    """
    stages = [stage for stage in few if stage != "imported"]
    growth = {stage: (many[stage] - many["imported"]) - (few[stage] - few["imported"]) for stage in stages}
    return {
        "bytes": {"few": few, "many": many},
        "growth_bytes_per_image": {stage: round(size / more) for stage, size in growth.items()},
        "most_bytes_per_image": round(max(growth.values()) / more),
    }


def second_start(data: Path, cache_dir: Path) -> dict[str, float]:
    """Seconds of each step from the end of the imports to the first training batch, images being in the cache."""
    from benchmarks.ours import our_config, our_prepare
    from effnet_lit.data.datamodule import ClassFolderDataModule
    from effnet_lit.training.fit import build_network

    clock = [time.perf_counter()]
    config = our_config(data, cache_dir / data.name, *OVERRIDES)
    clock.append(time.perf_counter())
    prepared = our_prepare(config)
    clock.append(time.perf_counter())
    build_network(config, len(prepared.class_names))
    clock.append(time.perf_counter())
    loader = ClassFolderDataModule(prepared, 32, config.seed, workers(config, prepared.cache)).train_dataloader()
    next(iter(loader))
    clock.append(time.perf_counter())
    steps = ("compose", "prepare", "network", "first batch")
    return dict(zip(steps, (b - a for a, b in itertools.pairwise(clock)), strict=True))


def started(starts: list[dict[str, float]]) -> dict[str, Any]:
    """Total and steps of several starts."""
    total = spread([sum(start.values()) for start in starts])
    steps = {step: round(statistics.median([start[step] for start in starts]), 3) for step in starts[0]}
    return {"seconds": total._asdict(), "steps": steps, "verdict": verdict(total.median, LATEST, " s", most=True)}


def slowest_calls(data: Path, cache_dir: Path) -> dict[str, float]:
    """Seconds inside our functions while a second start is profiled, which slows it; the eight longest."""
    import cProfile
    import pstats

    from benchmarks.ours import our_config, our_prepare

    config = our_config(data, cache_dir / data.name, *OVERRIDES)
    profiler = cProfile.Profile()
    profiler.runcall(our_prepare, config)
    calls = {
        f"{Path(file).name}:{name}": round(cumulative, 3)
        for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
        if "effnet_lit" in file
    }
    return dict(sorted(calls.items(), key=lambda call: -call[1])[:8])


def show_many(result: dict[str, Any], console: Console) -> None:
    """Section C as a table."""
    few, many = result["images"]
    cost, memory, start = result["first_pass"], result["memory"], result["second_start"]
    table = Table("images", f"{few:,}", f"{many:,}", "", title="many small images")
    micro = [Spread(**figures).text() for figures in cost["microseconds_per_image"].values()]
    table.add_row("first pass, microseconds an image", *micro, cost["verdict"])
    for stage, growth in memory["growth_bytes_per_image"].items():
        held = (f"{memory['bytes'][of][stage] / 1e6:,.0f} MB" for of in ("few", "many"))
        table.add_row(f"anonymous memory, {stage}", *held, f"{growth:+,} bytes an image")
    table.add_row("second start to first batch", "", Spread(**start["seconds"]).text(".2f") + " s", start["verdict"])
    for step, seconds in start["steps"].items():
        table.add_row(f"  {step}", "", f"{seconds:.2f} s", "")
    console.print(table)
    console.print("  longest while preparing, profiled:", start["slowest_calls"])
