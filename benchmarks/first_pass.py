"""Images per second and core of a first pass over a folder: our audit and cache, cleanvision's audit, plain Pillow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contenders import Process, why_not
from benchmarks.timing import cores, interleave, ratio, spread

Say = Callable[[str], object]
OURS, CLEANVISION = "ours: audit + split + cache", "cleanvision: audit"
DECODED_SIZE = "data.image_size=224"  # cached at 256


def our_seconds(data: Path, *overrides: str) -> float:
    """A first pass of ours; importing us is not part of it."""
    from benchmarks.ours import our_first_pass

    return our_first_pass(data, *overrides)


def cleanvision_seconds(data: Path, jobs: int) -> float:
    """cleanvision's default audit; importing it is not part of it."""
    from benchmarks.peers import cleanvision_audit

    import_module("cleanvision")
    start = time.perf_counter()
    cleanvision_audit(data, jobs)
    return time.perf_counter() - start


def pillow_seconds(data: Path, kind: str, workers: int) -> float:
    """A plain pass; starting threads or processes is part of it, as it is with the others."""
    from benchmarks.peers import pillow_pass, pillow_pool

    start = time.perf_counter()
    with pillow_pool(kind, workers) as pool:
        pillow_pass(data, pool)
    return time.perf_counter() - start


def compare_first_pass(data: Path, sample: Path, images: int, rounds: int, say: Say) -> dict[str, Any]:
    """Interleaved rounds on the copied images ``data``; each contender runs once on ``sample`` before them, which is
    not counted and tells how many processes suit cleanvision."""
    workers = cores()
    seconds: dict[str, Callable[[Path], float]] = {}
    with ExitStack() as processes:

        def in_own_process(task: Callable[..., float], *arguments: Any) -> Callable[[Path], float]:
            process = Process()
            processes.callback(process.close)
            return lambda folder: process.call(task, folder, *arguments)

        seconds[OURS] = in_own_process(our_seconds, DECODED_SIZE)
        for kind in ("threads", "processes"):
            seconds[f"Pillow: decode + resize, {workers} {kind}"] = in_own_process(pillow_seconds, kind, workers)
        for task in seconds.values():
            task(sample)
        absent = missing()
        if not absent:
            say("first pass: best number of cleanvision's processes")
            tried = {jobs: in_own_process(cleanvision_seconds, jobs) for jobs in sorted({1, workers})}
            jobs = min(tried, key=lambda count: tried[count](sample))
            seconds[f"{CLEANVISION}, {jobs} {'process' if jobs == 1 else 'processes'}"] = tried[jobs]
        say(f"first pass: {rounds} rounds")
        rates = {name: partial(rate, task, data, images / workers) for name, task in seconds.items()}
        return conclude(interleave(rates, rounds)) | {"absent": absent, "cores": workers}


def missing() -> dict[str, str]:
    """cleanvision and why it is not measured, or nothing."""
    process = Process()
    reason = process.call(why_not, "cleanvision")
    process.close()
    return {CLEANVISION: reason} if reason else {}


def rate(seconds: Callable[[Path], float], data: Path, images: float) -> float:
    """Images per second."""
    return images / seconds(data)


def conclude(samples: dict[str, list[float]]) -> dict[str, Any]:
    """What the rounds gave, as it is written to JSON."""
    figures: dict[str, dict[str, Any]] = {
        name: {"images_per_s_and_core": spread(rates)._asdict(), "rounds": [round(rate, 1) for rate in rates]}
        for name, rates in samples.items()
    }
    for name in samples.keys() - {OURS}:
        figures[name]["ours_is_times"] = ratio(samples[OURS], samples[name])._asdict()
    return {"contenders": figures}
