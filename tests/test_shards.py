"""A packed folder gives the same images, labels, splits and groups as the folder itself."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import images
import numpy as np
import pytest

from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.folder import Index
from effnet_lit.data.prepare import prepare
from effnet_lit.data.shards import INDEX, ShardIndex, read_shards, write_shards
from effnet_lit.data.source import read_images

pytest.importorskip("webdataset", reason="packing needs the extra 'shards'")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = images.class_tree(tmp_path / "data", {"a": 12, "b": 12})
    images.noise(root / "a" / "ein schönes 猫.final.PNG", 77)
    shutil.copy(root / "a" / "000.png", root / "b" / "deep.jpg")
    (root / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "notes.txt").touch()
    return root


def packed(index: Index, out: Path, shard_bytes: int = 20_000) -> ShardIndex:
    write_shards(index, out, shard_bytes, lambda done, total: None)
    return read_shards(out)


@pytest.mark.parametrize("group", [None, r"(\d)\.|[^\d]\."])
def test_round_trip(root: Path, tmp_path: Path, group: str | None) -> None:
    index = read_images(root, None, group)
    shards = packed(index, tmp_path / "out")
    assert len(shards.shards) > 1
    for field in ("class_names", "paths", "labels", "splits", "ignored", "groups"):
        assert getattr(shards, field) == getattr(index, field), field
    for own in (shards, pickle.loads(pickle.dumps(shards))):
        assert [own.read(i) for i in range(len(own.paths))] == [(root / path).read_bytes() for path in index.paths]
    chosen = [3, 17, 5]
    assert [shards.select(chosen).read(i) for i in range(3)] == [index.read(i) for i in chosen]
    assert shards.select(chosen).paths == index.select(chosen).paths


def test_given_parts_survive(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {f"{part}/{name}": 3 for part in ("train", "valid") for name in "ab"})
    index = read_images(root, None, None)
    assert packed(index, tmp_path / "out").splits == index.splits


def test_a_run_on_shards_is_the_run_on_the_folder(root: Path, tmp_path: Path) -> None:
    packed(read_images(root, None, None), tmp_path / "out")
    prepared = [
        prepare(DataConfig(dir=str(folder), cache_dir=str(tmp_path / "cache")), 0, False, 16, lambda done, total: None)
        for folder in (root, tmp_path / "out")
    ]
    folder, shards = prepared
    assert folder.fingerprint == shards.fingerprint
    assert list(folder.splits) == list(shards.splits)
    assert np.array_equal(folder.images[folder.rows], shards.images[shards.rows])
    assert [f["kind"] for f in folder.audit["findings"]] == [f["kind"] for f in shards.audit["findings"]]


def test_shards_may_lie_on_another_disk(root: Path, tmp_path: Path) -> None:
    index = packed(read_images(root, None, None), tmp_path / "out")
    (tmp_path / "other").mkdir()
    last = tmp_path / "out" / index.shards[-1]
    shutil.move(last, tmp_path / "other" / last.name)
    with pytest.raises(UserError, match=f"lacks 1 of its {len(index.shards)} shards, such as {last.name}"):
        read_shards(tmp_path / "out")
    last.symlink_to(tmp_path / "other" / last.name)
    assert read_shards(tmp_path / "out").read(len(index.paths) - 1) == index.read(len(index.paths) - 1)


def test_half_a_pack_does_not_read_as_a_whole(root: Path, tmp_path: Path) -> None:
    packed(read_images(root, None, None), tmp_path / "out")
    (tmp_path / "out" / INDEX).unlink()
    with pytest.raises(UserError, match="run effnet pack again"):
        read_images(tmp_path / "out", None, None)
    with pytest.raises(UserError, match="is not empty"):
        packed(read_images(root, None, None), tmp_path / "out")


def test_without_the_library_it_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.writer", None)
    with pytest.raises(UserError, match=r"pip install effnet_lit\[shards\]"):
        packed(read_images(root, None, None), tmp_path / "out")
    assert not (tmp_path / "out").exists()
