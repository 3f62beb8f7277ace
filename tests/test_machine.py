"""Cores: what affinity and a container's limit leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from effnet_lit import machine

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_limit_of_a_container(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.quota() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.cores() == (expected or 8)


@pytest.mark.parametrize(("limit", "threads"), [("100000 100000", 1), ("max 100000", None)])
def test_torch_takes_no_more_threads_than_the_container_has_cores(limit: str, threads: int | None) -> None:
    script = (
        "import os, pathlib\n"
        f"pathlib.Path.read_text = lambda self, **_: {limit!r} if self.name == 'cpu.max' else ''\n"
        "os.cpu_count = lambda: 8\n"
        "import effnet_lit, torch\n"
        "print(os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads())"
    )
    there = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=there, capture_output=True, text=True)
    named, taken = done.stdout.split()
    assert named == str(threads)
    if threads:
        assert int(taken) == threads
