"""The benchmarks' arithmetic on known numbers, and that they stand without the libraries they compare with."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import batches, contenders, loader, many, peers, serving, timing

ROOT = Path(__file__).resolve().parent.parent


def test_spread_is_median_and_extremes() -> None:
    assert timing.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert timing.spread([1.0, 2.0]).median == 1.5
    assert timing.Spread(1234.4, 1200, 1300).text() == "1,234 (1,200-1,300)"


def test_ratio_is_taken_round_by_round() -> None:
    # a slow second round for both changes nothing; medians of both lists would give 2.0 with no spread
    assert timing.ratio([100, 30, 100], [50, 10, 50]) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="zip"):
        timing.ratio([1.0], [1.0, 2.0])


def test_rounds_are_interleaved_and_each_begins_with_another_task() -> None:
    order: list[str] = []
    samples = timing.interleave(
        {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}, rounds=4
    )
    assert "".join(order) == "abcbcacababc"
    assert samples["a"] == [1.0, 6.0, 8.0, 10.0]


def test_verdict_says_target_value_and_whether_it_is_met() -> None:
    assert timing.verdict(6.12, 4, "x") == "target >= 4x: 6.12x ok"
    assert timing.verdict(3.99, 4, "x") == "target >= 4x: 3.99x missed"
    assert timing.verdict(2.5, 3, " s", most=True) == "target <= 3 s: 2.50 s ok"
    assert timing.verdict(3.5, 3, " s", most=True).endswith("missed")


def test_machine_tells_what_was_installed() -> None:
    here = timing.machine()
    assert here["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert here["cores"] >= 1
    json.dumps(here)


def test_tuning_finds_the_best_variant_and_number_of_workers() -> None:
    speed = {(2, "slow"): 5.0, (2, "fast"): 7.0, (0, "fast"): 1.0, (1, "fast"): 2.0, (3, "fast"): 9.0, (4, "fast"): 8.0}
    choice = batches.tune(("slow", "fast"), lambda workers, variant: speed[workers, variant])
    assert (choice.workers, choice.variant) == (3, "fast")
    assert choice.tried["fast, 3 workers"] == 9.0
    assert len(choice.tried) == len(speed)


def test_ours_is_compared_with_the_best_peer() -> None:
    choice = batches.Choice(2, "", {})
    samples = {"ours": [80.0, 90.0, 100.0], "good": [20.0, 20.0, 20.0], "bad": [10.0, 10.0, 10.0]}
    names = dict.fromkeys(samples, "")
    result = batches.conclude(samples, dict.fromkeys(samples, choice), names, target=5.0)
    assert result["best_peer"] == "good"
    assert result["verdict"] == "target >= 5x: 4.50x missed"
    assert result["contenders"]["bad"]["ours_is_times"] == {"median": 9.0, "low": 8.0, "high": 10.0}


def test_a_library_that_is_absent_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("import what_it_needs", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert contenders.why_not("json") == ""
    assert contenders.why_not("no_such_library") == "not installed"
    assert "what_it_needs" in contenders.why_not("broken_library")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 images in class folders."""
    many.make_images(tmp_path / "images", 40)
    return tmp_path / "images"


def test_images_are_distinct_and_made_again_the_same(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.jpg"))
    assert len(list(folder.iterdir())) == many.CLASSES
    assert len({Image.open(file).convert("RGB").tobytes() for file in files}) == len(files) == 40
    many.make_images(tmp_path / "again", 40)
    assert all((tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes() for file in files)


def test_a_sample_is_spread_over_the_classes(folder: Path, tmp_path: Path) -> None:
    assert contenders.copy_images(folder, tmp_path / "sample", 20) == 20
    assert {len(list(part.iterdir())) for part in (tmp_path / "sample").iterdir()} == {2}


@pytest.mark.parametrize("backend", ["pil", "tensor"])
@pytest.mark.parametrize("scenario", list(batches.SCENARIOS))
def test_torchvision_gives_batches_of_the_size_that_is_trained_on(folder: Path, scenario: str, backend: str) -> None:
    (batch,) = peers.torchvision_epochs(folder, scenario, 0, backend)
    assert batch.shape == (peers.BATCH, 3, peers.SIZE, peers.SIZE)
    assert batch.dtype == (torch.uint8 if scenario == "decoded" else torch.float32)


def test_the_first_epoch_is_not_counted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds between looks at it
    seen: list[int] = []

    def epochs(*_: object) -> peers.Epochs:
        return peers.Epochs([torch.zeros(8, 3)] * 5, lambda batch: seen.append(1) or batch)

    monkeypatch.setattr(peers, "torchvision_epochs", epochs)
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: next(clock))
    measured = contenders.loader_rate("benchmarks.peers:torchvision_epochs", folder, "decoded", 0, "", 25.0)
    assert (len(seen), measured) == (15, (80 / 30, "(8, 3) float32"))


def test_growth_is_counted_above_what_the_imports_took() -> None:
    few = {"imported": 100, "prepared": 150, "epoch": 160}
    more = {"imported": 130, "prepared": 1180, "epoch": 2190}
    result = many.grown(few, more, more=1000)
    assert result["growth_bytes_per_image"] == {"prepared": 1, "epoch": 2}
    assert result["most_bytes_per_image"] == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_peak_sees_memory_that_was_held_for_a_moment() -> None:
    before = many.anonymous_bytes()
    with many.peak() as most:
        held = mmap.mmap(-1, 80_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not what tests before freed
        held.write(b"x" * len(held))
        time.sleep(0.1)
        held.close()
    assert most[0] - before > 40_000_000


def test_parts_of_the_results_keep_their_place(tmp_path: Path) -> None:
    file = tmp_path / "results" / "loader.json"
    loader.save(file, "peers", {"images": 5})
    loader.save(file, "many", {"images": 7})
    loader.save(file, "peers", {"images": 6})
    assert json.loads(file.read_text(encoding="utf-8")) == {"peers": {"images": 6}, "many": {"images": 7}}


def run_without_libraries(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where torch and every library that is compared cannot be imported."""
    for package in ("torch", "torchvision", "timm", "ultralytics", "cleanvision", "lightning"):
        (tmp_path / f"{package}.py").write_text("raise ImportError", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.loader", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_needs_no_other_library(tmp_path: Path) -> None:
    done = run_without_libraries(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(option in done.stdout for option in ("--peers", "--many", "--data", "--rounds", "--out"))


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        ([], "--many 60000"),
        (["--peers"], "--data FOLDER"),
        (["--peers", "--data", "no/such/folder"], "no/such/folder"),
        (["--many", "500"], "more than 1,000"),
        (["--many", "60000", "--rounds", "0"], "--rounds"),
    ],
)
def test_a_command_that_lacks_something_says_what(tmp_path: Path, arguments: list[str], instead: str) -> None:
    done = run_without_libraries(tmp_path, *arguments)
    assert done.returncode == 2
    assert instead in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_over_http_are_counted(tmp_path: Path) -> None:
    """Of the real service, for a fifth of a second each."""
    many.make_images(tmp_path / "images", 20)
    kinds = serving.photographs(tmp_path / "images")
    serving.write_b0(tmp_path)
    found = serving.measure(serving.CONTENDERS["effnet serve"], tmp_path, kinds, 0.2)
    rates = [part["answers_per_s"] for part in found.values() if isinstance(part, dict)]
    assert len(rates) == 4 and 0 < min(rates) < 1000
    assert found["start_s"] > 0
    if sys.platform == "linux":
        assert 0.05 < found["memory_gb"] < 2
