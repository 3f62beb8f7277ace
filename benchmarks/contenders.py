"""Who is compared, each in a process of its own, so that no library changes another's settings or memory."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Process:
    """One worker process that lives until ``close``; it starts as a new interpreter and prints nothing."""

    def __init__(self) -> None:
        usual = multiprocessing.get_start_method()
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=settle, initargs=(usual,))

    def call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """What the task returns there; its exception is raised here."""
        return self.pool.submit(task, *arguments).result()

    def close(self) -> None:
        self.pool.shutdown()


def settle(start_method: str) -> None:
    """Start loader workers as this system usually does (a spawned process would spawn them too, seconds each), and
    send what the libraries print, progress bars above all, nowhere."""
    multiprocessing.set_start_method(start_method, force=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


@dataclass(frozen=True)
class Contender:
    """A library and how its loader is made: ``epochs`` is "module:function", imported in its own process."""

    name: str
    package: str
    epochs: str
    variants: tuple[str, ...] = ("",)


LOADERS = (
    Contender("ours", "effnet_lit", "benchmarks.ours:our_epochs"),
    Contender("timm", "timm", "benchmarks.peers:timm_epochs"),
    Contender("torchvision", "torchvision", "benchmarks.peers:torchvision_epochs", ("pil", "tensor")),
    Contender(
        "ultralytics",
        "ultralytics",
        "benchmarks.peers:ultralytics_epochs",
        ("cache off", "cache ram", "cache disk"),
    ),
)


class Measured(NamedTuple):
    """Images per second, and what one batch was."""

    rate: float
    batch: str


def why_not(package: str) -> str:
    """An empty text, or why a library cannot be measured here."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == package else f"not measured: {error}"
    except (ImportError, OSError) as error:
        return f"not measured: {error}"
    return ""


def loader_rate(epochs: str, data: Path, scenario: str, workers: int, variant: str, seconds: float) -> Measured:
    """Images per second of whole epochs, for at least so long; the first epoch is thrown away."""
    module, _, function = epochs.partition(":")
    batches = getattr(importlib.import_module(module), function)(data, scenario, workers, variant)
    shapes = {f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}" for batch in batches}
    assert shapes, f"{data} has too few images for one batch"
    images, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not images:
        images += sum(len(batch) for batch in batches)
    batches.close()
    return Measured(images / spent, " or ".join(sorted(shapes)))


def copy_images(data: Path, target: Path, count: int | None = None) -> int:
    """Copy class folders, or evenly spaced images of them, so that nobody writes beside the user's own.

    Reading and writing them leaves every file in the system's page cache. Returns how many there are.
    """
    images = [file for file in sorted(data.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
    chosen = images if count is None else spaced(images, count)
    for file in chosen:
        copy = target / file.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return len(chosen)


def spaced(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` items, evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
