"""Multirun: every job, one table, a failing job alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_sweep_ends_in_a_table_and_a_failing_job_fails_alone(class_folder: Path, tmp_path: Path) -> None:
    settings = ["limits=off", "epochs=1", "batch_size=16", "data.image_size=32", "model.weights=none"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"data.dir={class_folder}", *settings, "seed=1,2,-5"]
    environment = os.environ | {"COLUMNS": "220"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    table = done.stdout[done.stdout.index("settings") :]
    rows = [line for line in table.splitlines() if "seed=" in line and "│" in line]
    assert sorted(row.split("seed=")[1].split()[0] for row in rows[:2]) == ["1", "2"]
    assert "seed=-5" in rows[2]
    assert "failed" in rows[2]
    assert table.count("-sweep/") == 2
    assert (tmp_path / "runs" / "latest" / "model.safetensors").is_file()
    assert "seed=-5 is impossible" in table
    (sweep,) = (path for path in (tmp_path / "runs").iterdir() if path.name.endswith("-sweep"))
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir() and not path.is_symlink()) == ["0", "1"]


def test_several_devices_are_refused(class_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        f"data.dir={class_folder}",
        "limits=off",
        "trainer.devices=2,3",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "trains on one device so far" in done.stdout
