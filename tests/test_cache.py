"""The cache never gives a wrong image: not after a kill, a full disk, a changed file or two runs at once."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import images
import numpy as np
import pytest

from effnet_lit.config import UserError
from effnet_lit.data import cache as cache_module
from effnet_lit.data import cache_choice
from effnet_lit.data.cache import (
    Cache,
    cache_sizes,
    clear_cache,
    default_cache_dir,
    open_cache,
)
from effnet_lit.data.cache_choice import choose_cache
from effnet_lit.data.decode import examine
from effnet_lit.data.folder import read_folder
from effnet_lit.data.store import IMAGES, INFO, LINES

ROOT = Path(__file__).resolve().parent.parent
SIZE = 32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images.class_tree(tmp_path / "data", {"a": 60, "b": 60}, size=48)


def opened(data: Path, cache_dir: Path, workers: int = 2, keep: str = "disk") -> tuple[Cache, int]:
    """The cache, and how many images were decoded for it."""
    decoded = [0]
    progress = lambda done, total: decoded.append(done)  # noqa: E731
    cache = open_cache(read_folder(data), SIZE, "squish", keep, cache_dir, workers, progress)
    return cache, decoded[-1]


def assert_true(cache: Cache, data: Path) -> None:
    """Every image and hash equals a fresh decode."""
    index = read_folder(data)
    assert len(cache.rows) == len(index.paths)
    for path, row, record in zip(index.paths, cache.rows, cache.records, strict=True):
        pixels, fresh_hash, facts = examine(data / path, SIZE, "squish")
        assert np.array_equal(cache.images[np.array([row])][0], pixels), path
        assert record["hash"].decode() == fresh_hash
        assert record["look"] == facts.look
        assert (record["format"].decode(), record["width"], record["height"]) == (
            facts.format,
            facts.width,
            facts.height,
        )


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_images_equal_a_fresh_decode_and_are_decoded_once(data: Path, tmp_path: Path, workers: int) -> None:
    cache, decoded = opened(data, tmp_path / "cache", workers)
    assert decoded == 120
    assert cache.images.shape == (120, SIZE, SIZE, 3)
    assert list(cache.rows) == list(range(120))  # in order, whatever thread was first
    assert_true(cache, data)
    again, decoded = opened(data, tmp_path / "cache", workers)
    assert decoded == 0
    assert_true(again, data)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0] = 0


def test_only_what_changed_is_decoded_again(data: Path, tmp_path: Path) -> None:
    opened(data, tmp_path / "cache")
    images.noise(data / "a" / "007.png", 999, size=48)
    images.noise(data / "b" / "new.png", 998, size=48)
    (data / "b" / "003.png").unlink()
    cache, decoded = opened(data, tmp_path / "cache")
    assert decoded == 2
    assert_true(cache, data)


def test_an_unreadable_image_has_a_reason_and_is_tried_again(data: Path, tmp_path: Path) -> None:
    path = data / "a" / "005.png"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    cache, _ = opened(data, tmp_path / "cache")
    assert cache.problems == (("a/005.png", "truncated"),)
    assert (cache.rows[5], cache.records["hash"][5]) == (-1, b"")
    assert sorted(cache.rows)[1:] == list(range(119))
    path.write_bytes(content)
    cache, decoded = opened(data, tmp_path / "cache")
    assert (decoded, cache.problems) == (1, ())
    assert_true(cache, data)


def test_a_file_that_breaks_later_does_not_keep_its_old_image(data: Path, tmp_path: Path) -> None:
    opened(data, tmp_path / "cache")
    (data / "a" / "005.png").write_bytes(b"")
    cache, _ = opened(data, tmp_path / "cache")
    assert cache.rows[5] == -1


FILL = f"""
import sys, time
from pathlib import Path
from effnet_lit.data import cache
from effnet_lit.data.folder import read_folder
from effnet_lit.data.store import IMAGES, INFO, LINES
cache.COMMIT_EVERY = 10
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.004)  # else it is done before it is killed
index = read_folder(Path(sys.argv[1]))
cache.open_cache(index, {SIZE}, "squish", "disk", Path(sys.argv[2]), 2, progress)
"""


def start(data: Path, cache_dir: Path, before: str = "") -> subprocess.Popen[str]:
    """A process that fills the cache and prints how far it is."""
    command = [sys.executable, "-c", before + FILL, str(data), str(cache_dir)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_killed_at_thirty_random_moments(data: Path, tmp_path: Path) -> None:
    committed = 0
    moments = np.random.default_rng(0).uniform(0.0, 0.1, 30)
    for moment in moments.tolist():
        child = multiprocessing.get_context("forkserver").Process(target=fill_slowly, args=(data, tmp_path / "cache"))
        (tmp_path / "cache" / "started").unlink(missing_ok=True)
        child.start()
        while child.is_alive() and not (tmp_path / "cache" / "started").exists():
            time.sleep(0.002)
        time.sleep(moment)
        child.kill()
        child.join()
        lines = list((tmp_path / "cache").glob(f"*/{LINES}"))
        before, committed = committed, lines[0].read_bytes().count(b"\n") if lines else 0
        assert committed >= before  # nothing that was safe is lost
    assert 0 < committed < 120
    cache, decoded = opened(data, tmp_path / "cache")
    assert decoded == 120 - committed  # nothing that was finished is done again
    assert_true(cache, data)


def fill_slowly(data: Path, cache_dir: Path) -> None:
    """Fill the cache, some milliseconds an image, so that it is killed before it is done."""
    cache_module.COMMIT_EVERY = 3

    def progress(done: int, total: int) -> None:
        (cache_dir / "started").touch()
        time.sleep(0.02)

    open_cache(read_folder(data), SIZE, "squish", "disk", cache_dir, 2, progress)


def test_torn_ends_of_both_files_are_cut_off(data: Path, tmp_path: Path) -> None:
    cache, _ = opened(data, tmp_path / "cache")
    with open(cache.folder / IMAGES, "ab") as file:
        file.write(b"half a row")
    for torn in (b'["a/000.png", 12', b"\0" * 50, b'["a/000.png", 1, 2, 3, "x"', b"\0\0\n[]"):
        with open(cache.folder / LINES, "ab") as file:
            file.write(torn)
        images.noise(data / "b" / "new.png", len(torn), size=48)
        cache, decoded = opened(data, tmp_path / "cache")
        assert decoded == 1
        assert_true(cache, data)


def test_lines_without_their_images_are_not_believed(data: Path, tmp_path: Path) -> None:
    cache, _ = opened(data, tmp_path / "cache")
    with open(cache.folder / IMAGES, "r+b") as file:
        file.truncate(50 * SIZE * SIZE * 3)
    cache, decoded = opened(data, tmp_path / "cache")
    assert decoded == 120
    assert_true(cache, data)


def test_two_runs_at_once_share_the_work(data: Path, tmp_path: Path) -> None:
    both = [start(data, tmp_path / "cache") for _ in range(2)]
    done = [len(process.communicate()[0].splitlines()) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(done) == [0, 120]
    cache, decoded = opened(data, tmp_path / "cache")
    assert decoded == 0
    assert_true(cache, data)


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size belong to Unix")
def test_a_full_disk_is_one_sentence_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({70 * SIZE * SIZE * 3},) * 2)\n"
    with start(data, tmp_path / "cache", limit) as process:
        _, errors = process.communicate()
    assert "UserError: The cache" in errors
    assert "cannot be written (File too large); make room there, or set data.cache_dir" in errors
    cache, decoded = opened(data, tmp_path / "cache")
    assert 40 < decoded < 80
    assert_true(cache, data)


def test_a_full_file_system_is_one_sentence_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        filler = disk / "filler"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache_module, "check_room", lambda folder, need: filler.write_bytes(bytes(50_000)))
            patch.setattr(cache_module, "COMMIT_EVERY", 10)
            with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
                opened(data, disk / "cache")
        with pytest.raises(UserError, match=r"make room there, .*data\.cache_dir"):
            opened(data, disk / "cache")
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        cache, decoded = opened(data, disk / "cache")
        assert 0 < decoded < 80
        assert_true(cache, data)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_too_little_room_is_told_before_the_work(data: Path, tmp_path: Path) -> None:
    decoded = [0]
    with pytest.raises(UserError, match=r"needs [\d.]+ GB and its disk has"):
        open_cache(
            read_folder(data), 10_000_000, "squish", "disk", tmp_path, 1, lambda done, total: decoded.append(done)
        )
    assert decoded == [0]


def test_sizes_and_data_folders_have_their_own_place(data: Path, tmp_path: Path) -> None:
    other = images.class_tree(tmp_path / "other" / "data", {"a": 2, "b": 2})
    for folder in (data, other):
        opened(folder, tmp_path / "cache")
    open_cache(read_folder(other), 16, "squish", "disk", tmp_path / "cache", 0, lambda done, total: None)
    sizes = cache_sizes(tmp_path / "cache")
    assert sorted(path for path, _ in sizes) == sorted([str(data), str(other), str(other)])
    assert all(size > 0 for _, size in sizes)


def test_clearing_deletes_caches_and_nothing_else(data: Path, tmp_path: Path) -> None:
    opened(data, tmp_path / "cache")
    mine = tmp_path / "cache" / "mine"
    mine.mkdir()
    (mine / INFO).write_text(json.dumps({"format": "something else"}))
    (tmp_path / "cache" / "notes.txt").touch()
    clear_cache(tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["mine", "notes.txt"]
    assert cache_sizes(tmp_path / "cache") == []
    assert cache_sizes(tmp_path / "nowhere") == []
    clear_cache(tmp_path / "nowhere")


def test_a_cache_that_is_being_written_is_not_cleared(tmp_path: Path) -> None:
    data = images.class_tree(tmp_path / "data", {"a": 150, "b": 150}, size=48)
    with start(data, tmp_path / "cache") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match="being written by another run"):
                clear_cache(tmp_path / "cache")
        finally:
            process.kill()


def test_where_it_lies_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFNET_LIT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("EFFNET_LIT_CACHE")
    assert default_cache_dir().name.lower() in {"effnet_lit", "cache"}


def test_images_in_memory_are_decoded_at_each_start_and_their_facts_once(data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        cache, decoded = opened(data, tmp_path / "cache", keep="ram")
        assert decoded == 120
        assert isinstance(cache.images, np.ndarray) and not isinstance(cache.images, np.memmap)
        assert_true(cache, data)
    assert cache.bytes < 60_000
    images.noise(data / "a" / "007.png", 999, size=48)
    (data / "a" / "008.png").write_bytes(b"")
    cache, _ = opened(data, tmp_path / "cache", keep="ram")
    assert cache.problems == (("a/008.png", "empty file"),)
    assert cache.rows[8] == -1


def test_without_a_cache_images_are_decoded_when_asked_for(data: Path, tmp_path: Path) -> None:
    cache, decoded = opened(data, tmp_path / "cache", keep="off")
    assert decoded == 120
    assert_true(cache, data)
    cache, decoded = opened(data, tmp_path / "cache", keep="off")
    assert decoded == 0
    assert_true(cache, data)
    assert cache.bytes < 60_000
    assert not list((tmp_path / "cache").glob(f"*/{IMAGES}"))
    again = pickle.loads(pickle.dumps(cache.images))  # as loader processes that are started afresh get it
    assert np.array_equal(again[np.array([3, 50])], cache.images[np.array([3, 50])])
    (data / "a" / "003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/003\.png could be read when the run began and now not \(empty file\)"):
        cache.images[np.array([3])]


@pytest.mark.parametrize(
    ("asked", "need", "kept", "device", "expected"),
    [
        ("auto", 1000, 0, 0, "disk"),
        ("auto", 1000, 0, 4000, "device"),
        ("auto", 1001, 0, 4000, "disk"),
        ("auto", 10**15, 10**15, 0, "disk"),  # it is there already
        ("auto", 10**15, 0, 10**17, "off"),
        ("disk", 10**15, 0, 0, "disk"),
        ("off", 1000, 0, 0, "off"),
    ],
)
def test_where_images_are_kept(tmp_path: Path, asked: str, need: int, kept: int, device: int, expected: str) -> None:
    keep, sentences = choose_cache(asked, need, kept, tmp_path / "not yet", device)
    assert keep == expected
    assert bool(sentences) == (asked == "auto" and expected == "off")


def test_memory_is_taken_where_the_disk_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_choice, "free_disk", lambda folder: 10_000)
    keep, (sentence,) = choose_cache("auto", 20_000, 0, tmp_path, 0)
    assert keep == "ram"
    assert "kept in memory" in sentence


@pytest.mark.parametrize(("device", "words"), [(0, "needs a GPU"), (1000, "data.cache=disk")])
def test_a_device_that_cannot_keep_them_is_refused(tmp_path: Path, device: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_cache("device", 2000, 0, tmp_path, device)
