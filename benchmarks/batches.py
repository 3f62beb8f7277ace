"""Images per second of ready training batches: ours, timm's, torchvision's reference and Ultralytics'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contenders import LOADERS, Contender, Measured, Process, loader_rate, why_not
from benchmarks.peers import prepare_ultralytics
from benchmarks.timing import best, interleave, ratio, spread, verdict

SCENARIOS = {"decoded": 4.0, "crop_flip": 1.0, "augmented": 1.0}  # and how many times the best peer ours should be
WORKERS = (0, 1, 2, 3, 4)
FIRST_TRY = 2  # workers with which variants are compared
TUNING_SECONDS, SECONDS = 0.5, 1.0

Say = Callable[[str], object]


class Choice(NamedTuple):
    """Settings that a contender is measured with, and what led to them."""

    workers: int
    variant: str
    tried: dict[str, float]


def compare_batches(data: Path, sample: Path, rounds: int, say: Say) -> dict[str, Any]:
    """Every scenario on the copied images ``data``, settings chosen on the smaller ``sample``."""
    prepare_ultralytics(data.parent / "ultralytics")
    with ExitStack() as processes:
        running: dict[str, Process] = {}
        absent: dict[str, str] = {}
        for contender in LOADERS:
            process = Process()
            processes.callback(process.close)
            if reason := process.call(why_not, contender.package):
                absent[contender.name] = reason
            else:
                running[contender.name] = process
        scenarios = {name: compare(name, running, data, sample, rounds, say) for name in SCENARIOS}
    return {"absent": absent, "scenarios": scenarios}


def compare(
    scenario: str, running: Mapping[str, Process], data: Path, sample: Path, rounds: int, say: Say
) -> dict[str, Any]:
    """One scenario: each contender's best settings, then interleaved rounds with these."""
    contenders = [contender for contender in LOADERS if contender.name in running]
    choices: dict[str, Choice] = {}
    batch: dict[str, str] = {}

    def rate(contender: Contender, folder: Path, workers: int, variant: str, seconds: float) -> float:
        measured: Measured = running[contender.name].call(
            loader_rate, contender.epochs, folder, scenario, workers, variant, seconds
        )
        batch[contender.name] = measured.batch
        return measured.rate

    for contender in contenders:
        say(f"{scenario}: best settings of {contender.name}")
        choices[contender.name] = tune(
            contender.variants,
            lambda workers, variant, of=contender: rate(of, sample, workers, variant, TUNING_SECONDS),
        )
    say(f"{scenario}: {rounds} rounds")
    tasks = {
        contender.name: partial(
            rate, contender, data, choices[contender.name].workers, choices[contender.name].variant, SECONDS
        )
        for contender in contenders
    }
    return conclude(interleave(tasks, rounds), choices, batch, SCENARIOS[scenario])


def tune(variants: tuple[str, ...], rate: Callable[[int, str], float]) -> Choice:
    """The best variant with FIRST_TRY workers, then its best number of workers."""
    tried = {(FIRST_TRY, variant): rate(FIRST_TRY, variant) for variant in variants}
    variant = max(tried, key=lambda choice: tried[choice])[1]
    tried |= {(workers, variant): rate(workers, variant) for workers in WORKERS if workers != FIRST_TRY}
    workers, variant = max(tried, key=lambda choice: tried[choice])
    return Choice(workers, variant, {settings(*choice): round(value, 1) for choice, value in tried.items()})


def settings(workers: int, variant: str) -> str:
    """Such as "cache ram, 2 workers"."""
    return ", ".join(filter(None, (variant, f"{workers} workers")))


def conclude(
    samples: Mapping[str, list[float]], choices: Mapping[str, Choice], batch: Mapping[str, str], target: float
) -> dict[str, Any]:
    """What a scenario gave, as it is written to JSON."""
    figures = {
        name: {
            "images_per_s": spread(rates)._asdict(),
            "rounds": [round(rate, 1) for rate in rates],
            "settings": settings(choices[name].workers, choices[name].variant),
            "batch": batch[name],
            "tried": choices[name].tried,
        }
        for name, rates in samples.items()
    }
    peers = {name: rates for name, rates in samples.items() if name != "ours"}
    if not peers:
        return {"contenders": figures}
    rival = best(peers)
    for name, rates in peers.items():
        figures[name]["ours_is_times"] = ratio(samples["ours"], rates)._asdict()
    times = ratio(samples["ours"], peers[rival])
    return {"contenders": figures, "best_peer": rival, "verdict": verdict(times.median, target, "x")}
