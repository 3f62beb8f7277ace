"""A data folder packed into few large files: for network disks that crawl over small ones, and for several disks.

The shards are plain tar files in WebDataset's layout: for each image its own bytes, unchanged, and a .json with path,
label, split and group. An index beside them, written last, says where each image lies, so that reading needs the
standard library only. Shards may be links to other disks. See docs/decisions/shards.md.
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from effnet_lit.config import UserError
from effnet_lit.data.folder import Index, is_image_name

INDEX = "shards.json"
FORMAT = "effnet_lit shards 2"


@dataclass(frozen=True)
class ShardIndex(Index):
    """Images inside tar files. Image i is ``sizes[i]`` bytes at ``offsets[i]`` of ``shards[numbers[i]]``."""

    shards: tuple[str, ...] = ()
    numbers: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def read(self, i: int) -> bytes:
        """The bytes of one image; OSError passes through."""
        with open(self.shard(i), "rb") as file:
            file.seek(self.offsets[i])
            return file.read(self.sizes[i])

    def state(self, i: int) -> tuple[int, int]:
        """(bytes, mtime_ns of the shard) of one image, (-1, -1) if the shard vanished."""
        try:
            return self.sizes[i], os.stat(self.shard(i)).st_mtime_ns
        except OSError:
            return -1, -1

    def shard(self, i: int) -> str:
        """The file that holds an image."""
        return os.path.join(self.root, self.shards[self.numbers[i]])

    def select(self, chosen: Sequence[int]) -> ShardIndex:
        """The index with these images only."""
        selected = super().select(chosen)
        assert isinstance(selected, ShardIndex)
        columns = {name: getattr(self, name) for name in ("numbers", "offsets", "sizes")}
        own = {name: array(column.typecode, (column[i] for i in chosen)) for name, column in columns.items()}
        return replace(selected, **own)


def write_shards(index: Index, out: Path, shard_bytes: int, progress: Callable[[int, int], object]) -> int:
    """Pack the images of ``index`` into ``out``, which must be empty or new; returns how many shards there are.

    A shard is full when it holds ``shard_bytes``; its last image may lie across that line.

    Raises:
        UserError: webdataset is not installed, an image cannot be read, or ``out`` cannot be written or holds
            something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is {'not empty' if out.is_dir() else 'a file'}; give a new folder.")
    try:
        names = write_images(index, out, shard_bytes, progress)
        write_index(index, out, names)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give a folder on another disk.") from error
    return len(names)


def write_images(index: Index, out: Path, shard_bytes: int, progress: Callable[[int, int], object]) -> list[str]:
    """Fill one shard after another; returns their names."""
    try:  # not its ShardWriter, which takes a path with : or % for more than a path
        from webdataset.writer import TarWriter
    except ImportError as error:
        raise UserError("Packing needs webdataset: pip install effnet_lit[shards]") from error
    out.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    done, total = 0, len(index.paths)
    while done < total:
        names.append(f"shard-{len(names):06}.tar")
        with open(out / names[-1], "wb") as file, TarWriter(file, mtime=0) as shard:
            full = False  # mtime: the time now, a fraction, would cost a further header of 1 kB for every file
            while done < total and not full:
                shard.write(sample(index, done))
                done += 1
                progress(done, total)
                full = file.tell() >= shard_bytes
    return names


def sample(index: Index, i: int) -> dict[str, object]:
    """One image in WebDataset's terms."""
    path = index.paths[i]
    try:
        content = index.read(i)
    except OSError as error:
        raise UserError(
            f"{index.root / path} cannot be read ({error.strerror}); mend or remove it, then pack into a new folder."
        ) from error
    facts = {"path": path, "label": index.class_names[index.labels[i]], "split": index.splits[i]}
    return {
        "__key__": f"{i:08}",
        path.rpartition(".")[2].lower() if is_image_name(path) else "img": content,
        "json": facts | {"group": index.groups[i] if index.groups else None},
    }


def write_index(index: Index, out: Path, names: Sequence[str]) -> None:
    """Where each image lies, from the shards themselves; beside the target first, then renamed."""
    places: list[tuple[int, int, int]] = []
    for number, name in enumerate(names):
        with tarfile.open(out / name) as shard:
            places += [(number, own.offset_data, own.size) for own in shard if not own.name.endswith(".json")]
    assert len(places) == len(index.paths)
    content = {
        "format": FORMAT,
        "shards": [(name, os.stat(out / name).st_size) for name in names],
        "class_names": index.class_names,
        "images": [
            [path, label, split, group, *place]
            for path, label, split, group, place in zip(
                index.paths, index.labels, index.splits, index.groups or [None] * len(index.paths), places, strict=True
            )
        ],
        "ignored": index.ignored,
    }
    unfinished = out / f".{INDEX}.unfinished"
    unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, out / INDEX)


def is_sharded(folder: Path) -> bool:
    """Whether a folder was written by ``write_shards``, to the end or not."""
    return (folder / INDEX).is_file() or (folder / "shard-000000.tar").is_file()


def read_shards(folder: Path) -> ShardIndex:
    """The index of a packed folder: the same paths, labels, splits and groups as that of the folder it came from.

    Raises:
        UserError: packing was not finished, or a shard is missing or not as it was written.
    """
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds shards without a readable {INDEX}: packing was not finished, or another version did it; "
            "run effnet pack again, into a new folder."
        )
    check_shards(folder, content["shards"])
    paths, labels, splits, groups, numbers, offsets, sizes = zip(*content["images"], strict=True)
    return ShardIndex(
        folder,
        tuple(content["class_names"]),
        paths,
        labels,
        splits,
        tuple((path, reason) for path, reason in content["ignored"]),
        groups if any(group is not None for group in groups) else (),
        tuple(name for name, _ in content["shards"]),
        array("i", numbers),
        array("q", offsets),
        array("q", sizes),
    )


def check_shards(folder: Path, shards: Sequence[tuple[str, int]]) -> None:
    """Raise ``UserError`` where a shard is missing, or has another size (bytes) than when it was written."""
    missing = [name for name, _ in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing):,} of its {len(shards):,} shards, such as {missing[0]}; "
            "copy or link it there."
        )
    for name, size in shards:
        own = os.stat(folder / name).st_size
        if own != size:
            raise UserError(f"{folder / name} has {own:,} bytes instead of {size:,}; copy it again.")
