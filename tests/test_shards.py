"""A packed folder gives the same images, labels, splits and groups as the folder itself."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
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


def test_files_of_a_manifest_need_no_image_extension(root: Path, tmp_path: Path) -> None:
    for name in ("plain", "a.json", "v1.2/plain"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / "a" / "000.png", root / name)
    (root / "labels.csv").write_text("path,label,patient\nplain,x,p1\na.json,y,\nv1.2/plain,y,p2\n")
    index = read_images(root, root / "labels.csv", "patient")
    shards = packed(index, tmp_path / "out")
    assert (shards.paths, shards.labels, shards.groups) == (index.paths, index.labels, index.groups)
    assert [shards.read(i) for i in range(3)] == [(root / "a" / "000.png").read_bytes()] * 3


def test_a_person_can_open_them(root: Path, tmp_path: Path) -> None:
    index = read_images(root, None, None)
    shards = packed(index, tmp_path / "out")
    read = 0
    for name in shards.shards:
        with tarfile.open(tmp_path / "out" / name) as file:
            for key in sorted({own.partition(".")[0] for own in file.getnames()}):
                facts = json.load(file.extractfile(f"{key}.json") or pytest.fail(key))
                extension = facts["path"].rpartition(".")[2].lower()
                image = file.extractfile(f"{key}.{extension}") or pytest.fail(key)
                assert image.read() == (root / facts["path"]).read_bytes()
                assert facts["path"].startswith(facts["label"] + "/")
                read += 1
    assert read == len(index.paths)


@pytest.mark.parametrize("name", ["100%_done", "a:b", "100 %d"])
def test_odd_names_of_the_target(root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(packed(read_images(root, None, None), Path(name)).paths) == 27


def test_shards_are_as_large_as_asked_for(root: Path, tmp_path: Path) -> None:
    index = read_images(root, None, None)
    for size in (1, 20_000, 10**9):
        shards = packed(index, tmp_path / str(size), size)
        sizes = [(tmp_path / str(size) / name).stat().st_size for name in shards.shards]
        assert all(own >= size for own in sizes[:-1])
        assert all(own < size + 30_000 for own in sizes)  # a tar file is written in blocks of 10 kB
    assert len(shards.shards) == 1


def test_packing_twice_writes_the_same(root: Path, tmp_path: Path) -> None:
    index = read_images(root, None, None)
    names = packed(index, tmp_path / "one").shards
    packed(index, tmp_path / "two")
    for name in (*names, INDEX):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with tarfile.open(tmp_path / "one" / names[0]) as file:
        starts = [own.offset for own in file]
    assert min(np.diff(starts)) == 1024  # a header and a block of content, no further header


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


def test_a_shard_that_was_not_copied_to_its_end(root: Path, tmp_path: Path) -> None:
    index = packed(read_images(root, None, None), tmp_path / "out")
    shard = tmp_path / "out" / index.shards[1]
    shard.write_bytes(shard.read_bytes()[:-10_240])
    with pytest.raises(UserError, match=rf"{shard.name} has [\d,]+ bytes instead of [\d,]+; copy it again"):
        read_shards(tmp_path / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
from effnet_lit.data.folder import read_folder
from effnet_lit.data.shards import write_shards
index = read_folder(Path(sys.argv[1]))
write_shards(index, Path(sys.argv[2]), 20_000, lambda done, total: done == 25 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_half_a_pack_does_not_read_as_a_whole(root: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, root, tmp_path / "out"], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "out").glob("*.tar"))) > 1
    with pytest.raises(UserError, match=r"packing was not finished.*run effnet pack again, into a new folder"):
        read_images(tmp_path / "out", None, None)
    with pytest.raises(UserError, match="is not empty"):
        packed(read_images(root, None, None), tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": "of another program"}'])
def test_an_index_that_is_none_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=f"without a readable {INDEX}"):
        read_images(tmp_path, None, None)


def test_an_image_that_vanished_is_named(root: Path, tmp_path: Path) -> None:
    index = read_images(root, None, None)
    (root / "b" / "005.png").unlink()
    with pytest.raises(UserError, match=r"005\.png cannot be read \(No such file"):
        packed(index, tmp_path / "out")
    with pytest.raises(UserError, match="is a file; give a new folder"):
        packed(index, root / "notes.txt")


def test_without_the_library_it_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.writer", None)
    with pytest.raises(UserError, match=r"pip install effnet_lit\[shards\]"):
        packed(read_images(root, None, None), tmp_path / "out")
    assert not (tmp_path / "out").exists()
