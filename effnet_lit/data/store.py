"""The files of one cache folder: rows of pixels, and an index of what is known of each image.

    info.json      which data folder, size and decode version this is
    images.u8      the rows [rows, S, S, 3] uint8, one after another (absent where no pixels are kept)
    index.jsonl    one line an image: [path, bytes, mtime_ns, row, pixel hash, facts ...]

Both data files only grow. Rows reach the disk before the lines that name them, so a process killed at any moment
leaves at worst rows that no line names and half a last line; the next run cuts both off. A changed file gets a new row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effnet_lit.data.facts import FACTS, Facts

INFO, IMAGES, LINES, LOCK = "info.json", "images.u8", "index.jsonl", "lock"
FORMAT = "effnet_lit image cache 2"
RECORD = np.dtype([("bytes", "i8"), ("mtime_ns", "i8"), ("row", "i8"), ("hash", "S32"), *FACTS])
LINES_AT_ONCE = 4096  # turned from text into numbers; a whole index as Python objects would take much memory


@dataclass(frozen=True)
class Known:
    """What the index holds: ``records[numbers[path]]``. A file of another size or time is another file."""

    numbers: dict[str, int]
    records: np.ndarray  # (lines,) of RECORD

    def rows_used(self) -> int:
        """Rows of the array that some line names, or that lie before one."""
        return 1 + int(self.records["row"].max(initial=-1))

    def outdated(self, paths: Sequence[str], states: Sequence[tuple[int, int]]) -> list[int]:
        """Numbers of the images that the index does not hold as they are now."""
        own = np.array([self.numbers.get(path, -1) for path in paths], np.int64)
        now = np.array(states, np.int64).reshape(-1, 2)
        fresh = own >= 0
        for column, field in enumerate(("bytes", "mtime_ns")):
            fresh[fresh] = self.records[field][own[fresh]] == now[fresh, column]
        return np.flatnonzero(~fresh).tolist()


def read_known(folder: Path, size: int, keeps_pixels: bool) -> Known:
    """The index as far as it is whole; nothing if the images it speaks of are not there."""
    nothing = Known({}, np.empty(0, RECORD))
    if not (folder / LINES).is_file():
        return nothing
    lines = whole_lines((folder / LINES).read_bytes())
    numbers: dict[str, int] = {}
    blocks = [nothing.records]
    for start in range(0, len(lines), LINES_AT_ONCE):
        values = json.loads(b"[" + b",".join(lines[start : start + LINES_AT_ONCE]) + b"]")
        numbers |= {value[0]: start + i for i, value in enumerate(values)}  # a path's last line wins
        blocks.append(np.array([tuple(value[1:]) for value in values], RECORD))
    known = Known(numbers, np.concatenate(blocks))
    if keeps_pixels and not enough_pixels(folder, known.rows_used() * row_bytes(size)):
        return nothing
    return known


def whole_lines(content: bytes) -> list[bytes]:
    """Lines written to their end: a killed process leaves half a line, a power cut perhaps zeros."""
    lines = content.split(b"\n")[:-1]
    torn = (i for i, line in enumerate(lines) if not (line.startswith(b"[") and line.endswith(b"]")))
    return lines[: next(torn, len(lines))]


def enough_pixels(folder: Path, count: int) -> bool:
    """Whether the array holds what the index says."""
    return (folder / IMAGES).is_file() and kept_bytes(folder) >= count


def kept_bytes(folder: Path) -> int:
    """Bytes of the pixels that a cache folder holds already."""
    return (folder / IMAGES).stat().st_size if (folder / IMAGES).is_file() else 0


def row_bytes(size: int) -> int:
    """Bytes of one image."""
    return size * size * 3


def prepare_folder(folder: Path, root: Path, size: int, decode_version: int) -> None:
    """Make the cache folder with the file that tells what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {"format": FORMAT, "data_dir": os.path.realpath(root), "size": size, "decode_version": decode_version}
    unfinished = folder / f".{INFO}.{os.getpid()}"
    unfinished.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / INFO)


class Writer:
    """Appends images to a cache folder whose lock is held. Nothing counts before ``commit``."""

    def __init__(self, folder: Path, size: int, known: Known, keeps_pixels: bool) -> None:
        self.row = known.rows_used()
        self.lines = open(folder / LINES, "ab")  # noqa: SIM115
        self.images = open(folder / IMAGES, "ab") if keeps_pixels else None  # noqa: SIM115
        self.waiting: list[bytes] = []
        whole = whole_lines((folder / LINES).read_bytes()) if known.numbers else []
        self.lines.truncate(sum(len(line) + 1 for line in whole))
        if self.images:
            self.images.truncate(self.row * row_bytes(size))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.lines.close()
        if self.images:
            self.images.close()

    def add(self, path: str, state: tuple[int, int], pixels: np.ndarray, pixel_hash: str, facts: Facts) -> None:
        """Append one decoded image."""
        if self.images:
            self.images.write(pixels.tobytes())
        self.waiting.append(json.dumps([path, *state, self.row, pixel_hash, *facts]).encode() + b"\n")
        self.row += 1

    def commit(self) -> None:
        """Make all rows safe on disk, then the lines that name them."""
        for file, content in ((self.images, b""), (self.lines, b"".join(self.waiting))):
            if file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self.waiting.clear()
