"""Threads that each take whole pieces of a batch.

Threads within an operation wait for each other at its end, thousands of times in a step, and all wait for the one whose
core another program has. Threads with a piece each meet only where BatchNorm needs the whole batch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier, local
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_together = _standing_in = False
_undivided = local()


def each(function: Callable[..., T], *pieces: Iterable[object]) -> list[T]:
    """``map(function, *pieces)`` without autograd, each call by one thread alone; results in the order of pieces."""
    if at_once() > 1:
        calls = list(zip(*pieces, strict=True))
        results: list[Any] = [None] * len(calls)
        turns = iter(range(len(calls)))  # gives each number to one thread

        def work() -> None:
            for turn in turns:
                results[turn] = function(*calls[turn])

        threads_at_work = [pool(at_once()).submit(work) for _ in range(at_once())]
        wait(threads_at_work)  # once; waking up at every piece's end takes a core from those that work
        for thread in threads_at_work:
            thread.result()  # raises what was raised there
        return results
    global _standing_in
    _standing_in = _together and threads() > 1
    try:
        return list(map(function, *pieces))
    finally:
        _standing_in = False


def at_once() -> int:
    """Pieces that are worked off at once: one for each thread."""
    return 1 if _together else threads()


def threads() -> int:
    """As many as PyTorch has for an operation of the calling thread."""
    return getattr(_undivided, "threads", None) or torch.get_num_threads()


def undivided(function: Callable[..., T]) -> Callable[..., T]:
    """A function whose own operations stay in the calling thread, while ``each`` in it has as many threads as before.

    Threads of an operation wait for the next one spinning, on the cores that those with pieces need.
    """

    @functools.wraps(function)
    def run(*arguments: object) -> T:
        count = torch.get_num_threads()
        if count == 1:
            return function(*arguments)
        _undivided.threads = count
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(count)
            del _undivided.threads

    return run


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


def standing_in() -> bool:
    """Whether the calling thread is doing what other threads would do, because of ``together``."""
    return _standing_in


@functools.cache
def pool(count: int) -> ThreadPoolExecutor:
    """So many threads, all started."""
    before = torch.get_num_threads()
    result = ThreadPoolExecutor(count, "piece", initializer=alone)
    all_started = Barrier(count)
    list(result.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(before)  # which ``alone`` has changed for threads that others start later
    return result


def alone() -> None:
    """For one thread: operations stay in it and nothing is recorded for autograd."""
    torch.get_num_threads()  # a thread takes over the number of all others at its first question, not later
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=pool.cache_clear)
