"""Interleaved repeats, medians with their spread, and the machine they were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PACKAGES = (
    "effnet_lit",
    "torch",
    "torchvision",
    "timm",
    "ultralytics",
    "cleanvision",
    "lightning",
    "numpy",
    "onnx",
    "onnxruntime",
    "opencv-python-headless",
    "pillow",
    "opencv-python",
    "fastapi",
    "uvicorn",
    "litserve",
)


class Spread(NamedTuple):
    """Median of repeats and how far they lie apart."""

    median: float
    low: float
    high: float

    def text(self, form: str = ",.0f") -> str:
        """Such as 1,234 (1,200-1,250)."""
        return f"{self.median:{form}} ({self.low:{form}}-{self.high:{form}})"


def spread(samples: Sequence[float]) -> Spread:
    """Of one thing measured several times."""
    return Spread(statistics.median(samples), min(samples), max(samples))


def interleave(tasks: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every task once a round, so that a slow minute of the machine meets all of them.

    Each round starts one task later than the round before: no task always comes first.
    """
    samples: dict[str, list[T]] = {name: [] for name in tasks}
    names = list(tasks)
    for round_ in range(rounds):
        first = round_ % max(1, len(names))
        for name in names[first:] + names[:first]:
            samples[name].append(tasks[name]())
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times ours is theirs, taken round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def best(samples: Mapping[str, Sequence[float]]) -> str:
    """The name with the highest median."""
    return max(samples, key=lambda name: statistics.median(samples[name]))


def verdict(value: float, target: float, unit: str = "", most: bool = False) -> str:
    """Such as "target >= 4x: 6.12x ok"; with ``most`` the target is an upper limit."""
    met = value <= target if most else value >= target
    return f"target {'<=' if most else '>='} {target:g}{unit}: {value:.2f}{unit} {'ok' if met else 'missed'}"


def machine() -> dict[str, Any]:
    """Where and with what a figure was taken; belongs beside every figure."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name as Linux tells it, or as far as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Of the packages that are measured or that decide the speed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
