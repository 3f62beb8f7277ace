"""make setup: one clear sentence where it cannot work, pins without hosts that satisfy the bounds."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, python: str, answer: str) -> tuple[int, str]:
    """`make venv` with a stand-in for Python that answers its version, and fails at all else unless told."""
    shutil.copy(ROOT / "Makefile", folder)
    stub = folder / python
    stub.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    stub.chmod(0o755)
    done = subprocess.run(["make", "venv", f"PYTHON={stub}"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@NEEDS_MAKE
def test_too_old_a_python_is_one_sentence(tmp_path: Path) -> None:
    code, error = make(tmp_path, "python3", '[ "$1" = --version ] && echo Python 3.9.2 && exit 0; exit 1')
    assert code != 0
    assert "is Python 3.9.2, and 3.11 to 3.13 is needed" in error.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


@NEEDS_MAKE
def test_a_missing_venv_module_is_one_sentence(tmp_path: Path) -> None:
    code, error = make(tmp_path, "python3", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    assert code != 0
    assert "has no venv module" in error.splitlines()[0]
    assert "apt install" in error.splitlines()[0]


@NEEDS_MAKE
def test_a_python_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "venv", "PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("no-such-python is not a Python that runs, and 3.11 to 3.13 is needed")


WORKING = """
case "$*" in
  *"-m venv"*) echo made >> made.log; mkdir -p .venv/bin; ln -s "$0" .venv/bin/python;;
  *print*) echo 1;;
esac
"""


@NEEDS_MAKE
def test_an_environment_is_made_once_and_again_after_a_move(tmp_path: Path) -> None:
    first, second = tmp_path / "first place", tmp_path / "second place"
    first.mkdir()
    for _ in range(2):
        assert make(first, "python", WORKING)[0] == 0
    assert (first / "made.log").read_text(encoding="utf-8").split() == ["made"]
    (first / ".venv" / ".installed").touch()
    shutil.copytree(first, second, symlinks=True)
    assert make(second, "python", WORKING)[0] == 0
    assert (second / "made.log").read_text(encoding="utf-8").split() == ["made", "made"]
    assert not (second / ".venv" / ".installed").exists()


@NEEDS_MAKE
def test_an_environment_is_made_again_when_its_python_has_gone(tmp_path: Path) -> None:
    assert make(tmp_path, "python", WORKING)[0] == 0
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert make(tmp_path, "python", WORKING)[0] == 0
    assert (tmp_path / "made.log").read_text(encoding="utf-8").split() == ["made", "made"]


@NEEDS_MAKE
def test_an_environment_of_the_users_own_is_kept(tmp_path: Path) -> None:
    assert make(tmp_path, "python", WORKING)[0] == 0
    (tmp_path / ".venv" / ".made").unlink()
    (tmp_path / ".venv" / "torch").touch()
    assert make(tmp_path, "python", WORKING)[0] == 0
    assert (tmp_path / ".venv" / "torch").exists()


def pins() -> dict[str, str]:
    """name -> version for this platform, from requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    return {r.name.lower(): str(r.specifier).removeprefix("==") for r in here}


def test_pins_have_no_hosts() -> None:
    assert not re.search(r"https?:|--|@", (ROOT / "requirements.txt").read_text(encoding="utf-8"))


def test_cuda_packages_are_left_to_torch() -> None:
    """So that a CPU build of torch, installed first, brings none of them."""
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_pins_satisfy_the_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name in ("bench", "search"):  # other people's trainers, and Optuna: `make setup` does not install them
        del extras[name]
    for line in chain(project["dependencies"], *extras.values()):
        requirement = Requirement(line)
        if requirement.name != "effnet_lit":
            assert requirement.specifier.contains(pins()[requirement.name.lower()]), line


def test_the_version_is_said_once() -> None:
    import effnet_lit

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert effnet_lit.__version__ == project["version"]


def test_torch_and_torchvision_belong_together() -> None:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 29.0, 29.0]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
