"""Decode once in an image's life: one uint8 array on disk, [rows, S, S, 3], and an index beside it.

A cache folder holds

    info.json      which data folder, size and decode version this is
    images.u8      the rows, one after another
    index.jsonl    one line an image: [path, bytes, mtime_ns, row, pixel hash]

Both files only grow. Rows reach the disk before the lines that name them, so a process killed at any moment leaves
at worst rows that no line names and half a last line; the next run cuts both off. A changed file gets a new row.
Unreadable files get no line: they are tried again, since the reason may be gone.
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
from typing import NamedTuple

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from effnet_lit.config import UserError
from effnet_lit.data.decode import DECODE_VERSION, RESIZE_RULE, DecodeError, decode_with_hash
from effnet_lit.data.folder import Index

INFO, IMAGES, LINES, LOCK = "info.json", "images.u8", "index.jsonl", "lock"
FORMAT = "effnet_lit image cache 1"
COMMIT_EVERY = 500  # images that a killed process loses at most
AHEAD = 64  # decoded images that may wait to be written

Progress = Callable[[int, int], object]  # (images done, images to do)


@dataclass(frozen=True)
class Cache:
    """Decoded images of an index. ``rows[i]`` is where image i lies in ``images``, -1 if it could not be read."""

    folder: Path
    images: np.ndarray  # (rows, S, S, 3) uint8, read-only, on disk
    rows: np.ndarray  # (images of the index,) int64
    hashes: tuple[str, ...]  # of the full-size pixels; "" if unreadable
    problems: tuple[tuple[str, str], ...]  # (path, reason)
    bytes: int


class Entry(NamedTuple):
    """What the index knows of one file. A file of another size or time is another file."""

    size: int
    mtime_ns: int
    row: int
    hash: str


def default_cache_dir() -> Path:
    """EFFNET_LIT_CACHE, or the user's cache folder (~/.cache/effnet_lit on Linux)."""
    return Path(os.environ.get("EFFNET_LIT_CACHE") or platformdirs.user_cache_dir("effnet_lit", appauthor=False))


def open_cache(index: Index, size: int, cache_dir: Path, workers: int, progress: Progress) -> Cache:
    """The decoded images of ``index`` at ``size`` x ``size``; what is missing is decoded now, in ``workers`` threads.

    Raises:
        UserError: the cache folder cannot be written, or its disk is full.
    """
    folder = cache_folder(index.root, size, cache_dir)
    states = [state(index.root / path) for path in index.paths]
    entries = read_entries(folder, size)
    problems: dict[str, str] = {}
    if outdated(entries, index.paths, states):
        try:
            prepare_folder(folder, index.root, size)
            with FileLock(folder / LOCK):
                entries = read_entries(folder, size)  # another run may have been here
                missing = outdated(entries, index.paths, states)
                check_room(folder, len(missing) * row_bytes(size))
                with Writer(folder, size, entries) as writer:
                    problems = fill(writer, index, missing, states, workers, progress)
        except OSError as error:
            raise UserError(
                f"The cache {folder} cannot be written ({error.strerror}); "
                "make room there, or set data.cache_dir to a folder on another disk."
            ) from error
    found = [None if path in problems else entries[path] for path in index.paths]
    return Cache(
        folder,
        map_images(folder, rows_used(entries), size),
        np.array([entry.row if entry else -1 for entry in found], np.int64),
        tuple(entry.hash if entry else "" for entry in found),
        tuple(sorted(problems.items())),
        used_bytes(folder),
    )


def cache_folder(root: Path, size: int, cache_dir: Path) -> Path:
    """Where the images of one data folder at one size belong."""
    root = Path(os.path.realpath(root))
    key = hashlib.blake2b(digest_size=6)
    key.update(json.dumps([str(root), size, DECODE_VERSION, RESIZE_RULE]).encode())
    return cache_dir / f"{root.name}-{size}-{key.hexdigest()}"


def state(path: Path) -> tuple[int, int]:
    """(bytes, mtime_ns) of a file; one that vanished is told by its decode."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_entries(folder: Path, size: int) -> dict[str, Entry]:
    """The index as far as it is whole; nothing if the images it speaks of are not there."""
    entries: dict[str, Entry] = {}
    if (folder / LINES).is_file() and (folder / IMAGES).is_file():
        for line in whole_lines((folder / LINES).read_bytes()):
            path, *rest = json.loads(line)
            entries[path] = Entry(*rest)  # a path's last line wins
        if (folder / IMAGES).stat().st_size < rows_used(entries) * row_bytes(size):
            return {}
    return entries


def whole_lines(content: bytes) -> list[bytes]:
    """Lines written to their end: a killed process leaves half a line, a power cut perhaps zeros."""
    lines = content.split(b"\n")[:-1]
    torn = (i for i, line in enumerate(lines) if not (line.startswith(b"[") and line.endswith(b"]")))
    return lines[: next(torn, len(lines))]


def outdated(entries: dict[str, Entry], paths: Sequence[str], states: Sequence[tuple[int, int]]) -> list[int]:
    """Numbers of the images that the index does not hold as they are now."""
    known = (entries.get(path) for path in paths)
    return [i for i, (entry, now) in enumerate(zip(known, states, strict=True)) if entry is None or entry[:2] != now]


def prepare_folder(folder: Path, root: Path, size: int) -> None:
    """Make the cache folder with the file that tells what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {"format": FORMAT, "data_dir": os.path.realpath(root), "size": size, "decode_version": DECODE_VERSION}
    unfinished = folder / f".{INFO}.{os.getpid()}"
    unfinished.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / INFO)


def check_room(folder: Path, need: int) -> None:
    """Raise ``UserError`` before an hour of decoding ends on a full disk."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"The cache {folder} needs {need / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "make room there, or set data.cache_dir to a folder on another disk."
        )


def rows_used(entries: dict[str, Entry]) -> int:
    """Rows of the array that some line names, or that lie before one."""
    return 1 + max((entry.row for entry in entries.values()), default=-1)


def row_bytes(size: int) -> int:
    """Bytes of one image."""
    return size * size * 3


class Writer:
    """Appends images to a cache folder whose lock is held. Nothing counts before ``commit``."""

    def __init__(self, folder: Path, size: int, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.size = size
        self.row = rows_used(entries)
        self.images = open(folder / IMAGES, "ab")  # noqa: SIM115
        self.lines = open(folder / LINES, "ab")  # noqa: SIM115
        self.waiting: list[bytes] = []
        whole = whole_lines((folder / LINES).read_bytes()) if entries else []
        self.lines.truncate(sum(len(line) + 1 for line in whole))
        self.images.truncate(self.row * row_bytes(size))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.images.close()
        self.lines.close()

    def add(self, path: str, file_state: tuple[int, int], pixels: np.ndarray, pixel_hash: str) -> None:
        """Append one decoded image."""
        self.images.write(pixels.tobytes())
        entry = Entry(*file_state, self.row, pixel_hash)
        self.waiting.append(json.dumps([path, *entry]).encode() + b"\n")
        self.entries[path] = entry
        self.row += 1

    def commit(self) -> None:
        """Make all rows safe on disk, then the lines that name them."""
        for file, content in ((self.images, b""), (self.lines, b"".join(self.waiting))):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.waiting.clear()


def fill(
    writer: Writer,
    index: Index,
    missing: Sequence[int],
    states: Sequence[tuple[int, int]],
    workers: int,
    progress: Progress,
) -> dict[str, str]:
    """Decode the missing images into the cache; return what could not be read, and why."""
    problems: dict[str, str] = {}
    results = decode_all([index.root / index.paths[i] for i in missing], writer.size, workers)
    for done, (i, result) in enumerate(zip(missing, results, strict=True), start=1):
        path = index.paths[i]
        if isinstance(result, str):
            problems[path] = result
        else:
            writer.add(path, states[i], *result)
        if done % COMMIT_EVERY == 0 or done == len(missing):
            writer.commit()
        progress(done, len(missing))
    return problems


Decoded = tuple[np.ndarray, str] | str  # pixels and their hash, or why not


def decode_all(paths: Sequence[Path], size: int, workers: int) -> Iterator[Decoded]:
    """Decode in order. Threads do it: Pillow decodes and resizes, and the hash runs, without Python's lock."""
    if workers == 0:
        yield from (decode_or_reason(path, size) for path in paths)
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Decoded]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(decode_or_reason, path, size))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_or_reason(path: Path, size: int) -> Decoded:
    """One image; a bad one is a result like others."""
    try:
        return decode_with_hash(path, size)
    except DecodeError as error:
        return str(error)


def map_images(folder: Path, rows: int, size: int) -> np.ndarray:
    """The array on disk, read-only; mapping needs at least one row."""
    shape = (rows, size, size, 3)
    return np.memmap(folder / IMAGES, np.uint8, "r", shape=shape) if rows else np.empty(shape, np.uint8)


def used_bytes(folder: Path) -> int:
    """Bytes of a cache folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def cache_folders(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    """(folder, data folder) of every cache below ``cache_dir`` that says it is one."""
    for info in sorted(cache_dir.glob(f"*/{INFO}")):
        try:
            content = json.loads(info.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("format") == FORMAT and not info.parent.is_symlink():
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
