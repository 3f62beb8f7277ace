"""Decode once in an image's life. Where the decoded images are kept is ``data.cache``:

    disk     one array on disk, for this run and all later ones
    device   the same, and a copy in the GPU's memory, so that batches travel as numbers
    ram      an array in memory, decoded at each start
    off      nothing is kept: images are decoded again in every epoch

Unreadable files are tried again at each start, since the reason may be gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from effnet_lit.config import UserError
from effnet_lit.data.decode import DECODE_VERSION, DecodeError, decode, examine
from effnet_lit.data.facts import Facts
from effnet_lit.data.folder import Index
from effnet_lit.data.store import (
    FORMAT,
    IMAGES,
    INFO,
    LOCK,
    RECORD,
    Writer,
    prepare_folder,
    read_known,
    row_bytes,
)

KEEPS_PIXELS = ("disk", "device")
COMMIT_EVERY = 200  # images that a killed process loses at most
AHEAD = 64  # decoded images that may wait to be written

Progress = Callable[[int, int], object]  # (images done, images to do)
T = TypeVar("T")


@dataclass(frozen=True)
class Cache:
    """Decoded images of an index. ``rows[i]`` is where image i lies in ``images``, -1 if it could not be read."""

    folder: Path
    images: np.ndarray | DecodedOnDemand  # (rows, S, S, 3) uint8, read-only
    rows: np.ndarray  # (images of the index,) int64
    records: np.ndarray  # (images of the index,) of RECORD: hash and facts; zeros if unreadable
    problems: tuple[tuple[str, str], ...]  # (path, reason)
    bytes: int  # of this cache on disk


class DecodedOnDemand:
    """Looks like an array of decoded images, and decodes the rows that are asked for."""

    def __init__(self, index: Index, size: int, resize: str) -> None:
        self.index, self.size, self.resize = index, size, resize

    def __len__(self) -> int:
        return len(self.index.paths)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(rows, S, S, 3) uint8.

        Raises:
            UserError: a file that could be read when the run began cannot be read now.
        """
        pixels = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows):
            decoded = decode_or_reason(self.index, int(row), self.size, self.resize)
            if isinstance(decoded, str):
                raise UserError(
                    f"{self.index.root / self.index.paths[row]} could be read when the run began and now not "
                    f"({decoded}); put it back, then go on with resume=."
                )
            pixels[place] = decoded
        return pixels


def default_cache_dir() -> Path:
    """EFFNET_LIT_CACHE, or the user's cache folder (~/.cache/effnet_lit on Linux)."""
    return Path(os.environ.get("EFFNET_LIT_CACHE") or platformdirs.user_cache_dir("effnet_lit", appauthor=False))


def open_cache(
    index: Index, size: int, resize: str, keep: str, cache_dir: Path, workers: int, progress: Progress
) -> Cache:
    """The decoded images of ``index`` at ``size`` x ``size``; what is missing is decoded now, in ``workers`` threads.

    Raises:
        UserError: the cache folder cannot be written, or its disk is full.
    """
    folder = cache_folder(index.root, size, resize, keep, cache_dir)
    keeps_pixels = keep in KEEPS_PIXELS
    states = [index.state(i) for i in range(len(index.paths))]
    in_memory = np.empty((len(states), size, size, 3), np.uint8) if keep == "ram" else None
    known = read_known(folder, size, keeps_pixels)
    missing = known.outdated(index.paths, states)
    problems: dict[int, str] = {}
    if missing:
        try:
            prepare_folder(folder, index.root, size, DECODE_VERSION)
            with FileLock(folder / LOCK):
                known = read_known(folder, size, keeps_pixels)  # another run may have been here
                missing = known.outdated(index.paths, states)
                if keeps_pixels:
                    check_room(folder, len(missing) * row_bytes(size))
                with Writer(folder, size, known, keeps_pixels) as writer:
                    examined = in_order(lambda i: examine_or_reason(index, i, size, resize), missing, workers)
                    problems = fill(writer, index.paths, missing, states, examined, in_memory, progress)
            known = read_known(folder, size, keeps_pixels)
        except OSError as error:
            raise UserError(
                f"The cache {folder} cannot be written ({error.strerror}); "
                "make room there, or set data.cache_dir to a folder on another disk."
            ) from error
    readable = [i for i in range(len(states)) if i not in problems]
    records = np.zeros(len(states), RECORD)
    records[readable] = known.records[[known.numbers[index.paths[i]] for i in readable]]
    rows = np.full(len(states), -1, np.int64)
    rows[readable] = records["row"][readable] if keeps_pixels else readable
    images: np.ndarray | DecodedOnDemand = DecodedOnDemand(index, size, resize)
    if in_memory is not None:
        images = in_memory
        again = sorted(set(readable) - set(missing))
        decoded = in_order(lambda i: decode_or_reason(index, i, size, resize), again, workers)
        problems |= fill_memory(in_memory, again, decoded, progress)
        rows[list(problems)] = -1
    elif keeps_pixels:
        images = map_images(folder, known.rows_used(), size)
    told = tuple(sorted((index.paths[i], reason) for i, reason in problems.items()))
    return Cache(folder, images, rows, records, told, used_bytes(folder))


def cache_folder(root: Path, size: int, resize: str, keep: str, cache_dir: Path) -> Path:
    """Where the images of one data folder at one size belong, or only what is known of them."""
    root = Path(os.path.realpath(root))
    key = hashlib.blake2b(digest_size=6)
    key.update(json.dumps([str(root), size, DECODE_VERSION, resize, FORMAT]).encode())
    facts_only = "" if keep in KEEPS_PIXELS else "-facts"
    return cache_dir / f"{root.name}-{size}-{key.hexdigest()}{facts_only}"


def check_room(folder: Path, need: int) -> None:
    """Raise ``UserError`` before an hour of decoding ends on a full disk."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"The cache {folder} needs {need / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "make room there, set data.cache_dir to a folder on another disk, or data.cache=off."
        )


def fill(
    writer: Writer,
    paths: Sequence[str],
    missing: Sequence[int],
    states: Sequence[tuple[int, int]],
    examined: Iterator[Examined],
    in_memory: np.ndarray | None,
    progress: Progress,
) -> dict[int, str]:
    """Take the missing images in; return what could not be read, and why."""
    problems: dict[int, str] = {}
    for done, (i, result) in enumerate(zip(missing, examined, strict=True), start=1):
        if isinstance(result, str):
            problems[i] = result
        else:
            writer.add(paths[i], states[i], *result)
            if in_memory is not None:
                in_memory[i] = result[0]
        if done % COMMIT_EVERY == 0 or done == len(missing):
            writer.commit()
        progress(done, len(missing))
    return problems


def fill_memory(
    images: np.ndarray, chosen: Sequence[int], decoded: Iterator[np.ndarray | str], progress: Progress
) -> dict[int, str]:
    """Decode images whose facts are known; return what cannot be read now, and why."""
    problems: dict[int, str] = {}
    for done, (i, result) in enumerate(zip(chosen, decoded, strict=True), start=1):
        if isinstance(result, str):
            problems[i] = result
        else:
            images[i] = result
        progress(done, len(chosen))
    return problems


Examined = tuple[np.ndarray, str, Facts] | str  # pixels, their hash and facts, or why not


def in_order(work: Callable[[int], T], chosen: Sequence[int], workers: int) -> Iterator[T]:
    """Do the work on each number, in order. Threads do it: Pillow decodes and resizes without Python's lock."""
    if workers == 0:
        yield from map(work, chosen)
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[T]] = deque()
    try:
        for i in chosen:
            waiting.append(pool.submit(work, i))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def examine_or_reason(index: Index, i: int, size: int, resize: str) -> Examined:
    """One image with its hash and facts; a bad one is a result like others."""
    try:
        return examine(index.read(i), size, resize)
    except DecodeError as error:
        return str(error)
    except OSError as error:
        return (error.strerror or str(error)).lower()


def decode_or_reason(index: Index, i: int, size: int, resize: str) -> np.ndarray | str:
    """One image, or why not."""
    try:
        return decode(index.read(i), size, resize)
    except DecodeError as error:
        return str(error)
    except OSError as error:
        return (error.strerror or str(error)).lower()


def map_images(folder: Path, rows: int, size: int) -> np.ndarray:
    """The array on disk, read-only; mapping needs at least one row."""
    shape = (rows, size, size, 3)
    return np.memmap(folder / IMAGES, np.uint8, "r", shape=shape) if rows else np.empty(shape, np.uint8)


def used_bytes(folder: Path) -> int:
    """Bytes of a cache folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def cache_folders(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    """(folder, data folder) of every cache below ``cache_dir`` that says it is one, of whatever version."""
    for info in sorted(cache_dir.glob(f"*/{INFO}")):
        try:
            content = json.loads(info.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        ours = isinstance(content, dict) and str(content.get("format")).startswith("effnet_lit image cache ")
        if ours and not info.parent.is_symlink():
            yield info.parent, content["data_dir"]


def cache_sizes(cache_dir: Path) -> list[tuple[str, int]]:
    """(data folder, bytes) of every cache."""
    return [(data_dir, used_bytes(folder)) for folder, data_dir in cache_folders(cache_dir)]


def clear_cache(cache_dir: Path) -> None:
    """Delete every cache; nothing else that lies there is touched.

    Raises:
        UserError: one is being written by a run, or cannot be deleted.
    """
    for folder, data_dir in cache_folders(cache_dir):
        try:
            with FileLock(folder / LOCK, timeout=0):
                (folder / INFO).unlink()
            shutil.rmtree(folder)
        except Timeout as error:
            raise UserError(f"The cache of {data_dir} is being written by another run; wait for it.") from error
        except OSError as error:
            raise UserError(f"{folder} cannot be deleted ({error.strerror}); delete it by hand.") from error
