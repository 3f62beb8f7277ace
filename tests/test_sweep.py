"""Multirun: every job, one table, a failing job alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from effnet_lit.training.result import Result
from effnet_lit.training.sweep import by_error, by_setting, of_folds, verdict

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
    assert table.count("-sweep/") == 3  # two runs, and the page
    assert "nothing to choose" in table
    assert (tmp_path / "runs" / "latest" / "model.safetensors").is_file()
    assert "seed=-5 is impossible" in table
    assert "one setting" in table and "sweep.png" in table
    (sweep,) = (path for path in (tmp_path / "runs").iterdir() if path.name.endswith("-sweep"))
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir() and not path.is_symlink()) == ["0", "1"]
    page = (sweep / "sweep.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', page)
    assert sorted(links) == ["0/report.html", "1/report.html"] and all((sweep / link).is_file() for link in links)
    assert "ms an image" in table and "ms an image" in page
    assert "One setting" in page and "seed=-5 is impossible" in page


def test_a_prepared_sweep(class_folder: Path, tmp_path: Path) -> None:
    settings = ["limits=off", "epochs=1", "batch_size=16", "data.image_size=32", "model.weights=none"]
    settings += ["learning_rate=1e-3", "trainer.max_steps=1"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "sweep=rates", f"data.dir={class_folder}", *settings]
    environment = os.environ | {"COLUMNS": "220"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("Verdict  ") == 1
    rows = [line for line in done.stdout.splitlines() if "training.weight_decay=" in line and "│" in line]
    assert len(rows) == 2, "what is given on the command line is not swept"
    (sweep,) = (path for path in (tmp_path / "runs").iterdir() if path.name.endswith("-sweep"))
    assert (sweep / "sweep.png").is_file()


def test_a_prepared_sweep_without_m_is_told(class_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "sweep=rates", f"data.dir={class_folder}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "add -m" in done.stderr


def test_a_search_needs_its_extra_or_finds_the_best(class_folder: Path, tmp_path: Path) -> None:
    settings = ["limits=off", "epochs=1", "batch_size=16", "data.image_size=32", "model.weights=none"]
    settings += ["trainer.max_steps=1", "hydra.sweeper.n_trials=2"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "sweep=optuna", f"data.dir={class_folder}", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        assert done.returncode == 2 and 'pip install "effnet_lit[search]"' in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()
    else:
        assert done.returncode == 0 and re.search("^Verdict  .*learning_rate=", done.stdout, re.MULTILINE)


def result(
    accuracy: float, images: int = 400, test: dict[str, float] | None = None, cost: tuple[int, float] = (0, 0.0)
) -> Result:
    run = Result(Path("run"), Path("model"), test or {}, accuracy, 0.1, 1.0, 0.0, images)
    return replace(run, model_bytes=cost[0], image_seconds=cost[1])


def test_seeds_are_one_setting() -> None:
    settings = by_setting([("lr=1 seed=0", result(0.9)), ("lr=2 seed=0", result(0.7)), ("lr=1 seed=1", result(0.8))])
    assert [(s.name, s.right, s.images) for s in settings] == [("lr=1", 680, 800), ("lr=2", 280, 400)]


def test_the_verdict_knows_chance() -> None:
    clear = verdict(by_setting([("a=1", result(0.95)), ("a=2", result(0.80))]), 0.1)
    assert "take a=1: 95.0%" in clear and "better than every other by more than chance" in clear
    close = verdict(by_setting([("a=1", result(0.95)), ("a=2", result(0.94))]), 0.1)
    assert "not better by more than chance than: a=2" in close
    # two proportions of 400 images: 0.90 and 0.86 are 1.75 deviations apart, 0.90 and 0.85 are 2.14
    assert "not better" in verdict(by_setting([("a=1", result(0.90)), ("a=2", result(0.86))]), 0.1)
    assert "better than every other" in verdict(by_setting([("a=1", result(0.90)), ("a=2", result(0.85))]), 0.1)


def test_the_verdict_says_which_of_equals_costs_less() -> None:
    large, small, weak = (16_400_000, 0.020), (6_400_000, 0.005), (1_000_000, 0.001)
    runs = [
        ("model=b0", result(0.95, cost=large)),
        ("model=mobile", result(0.94, cost=small)),
        ("model=tiny", result(0.5, cost=weak)),
    ]
    told = "Of these model=mobile answers fastest: 5.0 ms an image and 6.4 MB in place of 20.0 and 16.4."
    assert verdict(by_setting(runs), 0.1).endswith(told)
    runs[1] = ("model=mobile", result(0.94, cost=(16_400_000, 0.015)))  # a network may be timed in a quiet moment
    assert "fastest" not in verdict(by_setting(runs), 0.1)
    runs[:2] = [("model=mobile", result(0.95, cost=small)), ("model=b0", result(0.94, cost=large))]
    assert "fastest" not in verdict(by_setting(runs), 0.1)


def test_the_verdict_knows_what_guessing_gets() -> None:
    settings = by_setting([("a=1", result(0.53)), ("a=2", result(0.2))])  # of 400: 48.1% to 57.8%
    assert verdict(settings, 0.48).startswith("take a=1")
    assert verdict(settings, 0.5).startswith("nothing to choose: the best, a=1, is 53.0% right")


def test_folds_are_counted_together() -> None:
    folds = [
        ("data.fold=1/2", result(0.9, test={"accuracy": 0.75, "images": 100})),
        ("data.fold=0/2", result(0.8, test={"accuracy": 0.9, "images": 50})),
    ]
    assert of_folds(folds) == (
        "2 folds together: 80.0% right on 150 images, each held out once (95% interval 72.9% to 85.6%)."
    )
    assert not of_folds(folds[:1]) and not of_folds([folds[0], ("data.fold=0/3", folds[1][1])])  # these overlap
    assert not of_folds([*folds, folds[0]])
    seeds = [(f"data.fold={fold}/2 seed={seed}", result(0.95 - 0.2 * fold)) for fold in (0, 1) for seed in (0, 1)]
    assert not of_folds(seeds) and "nothing to choose" in verdict(by_setting(seeds), 0.1)
    crossed = [(f"data.fold={fold}/2 lr={rate}", result(0.9 - 0.2 * rate)) for fold in (0, 1) for rate in (0, 1)]
    assert verdict(by_setting(crossed), 0.1).startswith("take lr=0: 90.0% right")


def test_a_mistake_that_many_jobs_make_is_told_once() -> None:
    failed = [(f"seed={i}", "no images") for i in range(5)] + [("seed=9", "too large")]
    assert by_error(failed) == [("seed=0, seed=1, seed=2 and 2 more", "no images"), ("seed=9", "too large")]


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
