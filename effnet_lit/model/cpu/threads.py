"""Threads that each take whole pieces of a batch.

Threads within an operation wait for each other at its end, thousands of times in a step, and all wait for the one whose
core another program has. Threads with a piece each meet only where BatchNorm needs the whole batch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
_together = False


def each(function: Callable[..., T], *pieces: Iterable[object]) -> list[T]:
    """``map(function, *pieces)`` without autograd, each call by one thread alone; results in the order of pieces."""
    if at_once() > 1:
        return list(pool(at_once()).map(function, *pieces))
    return list(map(function, *pieces))


def at_once() -> int:
    """Pieces that are worked off at once: as many as PyTorch has threads for an operation."""
    return 1 if _together else torch.get_num_threads()


@contextmanager
def together() -> Iterator[None]:
    """What threads would take at once is one piece for the calling thread, where a dispatch mode sees its tensors; it
    takes as much memory."""
    global _together
    before, _together = _together, True
    try:
        yield
    finally:
        _together = before


@functools.cache
def pool(count: int) -> ThreadPoolExecutor:
    """So many threads, all started."""
    result = ThreadPoolExecutor(count, "piece", initializer=alone)
    all_started = Barrier(count)
    list(result.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(count)  # which ``alone`` has changed for threads that others start later
    return result


def alone() -> None:
    """For one thread: operations stay in it and nothing is recorded for autograd."""
    torch.get_num_threads()  # a thread takes over the number of all others at its first question, not later
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=pool.cache_clear)
