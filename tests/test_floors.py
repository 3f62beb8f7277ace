"""The import contracts hold, and crossing a floor breaks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and report of import-linter on the package in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to be broken."""
    shutil.copytree(ROOT / "effnet_lit", tmp_path / "effnet_lit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    code, report = lint(copy)
    assert (code, "0 broken" in report) == (0, True), report


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data/decode.py", "import effnet_lit.model.scaling"),
        ("model/scaling.py", "import effnet_lit.data.folder"),
        ("evaluation/plots.py", "import effnet_lit.training.optim"),
        ("evaluation/plots.py", "import effnet_lit.deploy.predict"),
        ("model/zoo.py", "import hydra"),
        ("data/cache.py", "import lightning"),
        ("data/folder.py", "import numpy"),
        ("data/datamodule.py", "import wandb"),
        ("composition.py", "import lightning"),
        ("config.py", "import yaml"),
        ("data/unheard_of.py", "import lightning"),
        ("on_no_floor.py", "import json"),
    ],
)
def test_crossing_a_floor_is_found(copy: Path, module: str, line: str) -> None:
    path = copy / "effnet_lit" / module
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    code, report = lint(copy)
    assert code != 0
    assert module.removesuffix(".py").replace("/", ".") in report


def test_wandb_is_imported_only_when_asked_for() -> None:
    code = "import sys, effnet_lit.training.fit; print('wandb' in sys.modules, 'tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
