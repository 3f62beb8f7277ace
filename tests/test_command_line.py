"""What a person types: help, typos and range errors come at once, without torch, with the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Runs train.py and reports on stderr's last line whether torch had been imported.
PROBE = """
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.path.insert(0, {root!r})
sys.argv = ["train.py", *{arguments!r}]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def run(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, stderr lines of train.py in a folder."""
    code = PROBE.format(root=str(ROOT), arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_help_is_a_page_for_newcomers(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--help")
    assert (code, err) == (0, ["False"])
    for words in ("data.dir=photos", "learning_rate", "0.0001 to 0.005", "limits=off", "-m preset=small,medium"):
        assert words in out


def test_cfg_job_shows_the_chosen_preset(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--cfg", "job")
    assert (code, err) == (0, ["False"])
    assert "epochs: 18" in out


def test_settings_may_follow_a_flag(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "--cfg", "job", "seed=3", r"data.group=patient\d+", "data.fold=1/5")
    assert code == 0
    assert "seed: 3" in out and r"group: patient\d+" in out and "fold: 1/5" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["batchsize=3"], "did you mean batch_size?"),
        (["batch_size=128"], "limits=off"),
        (["data.dir=nowhere"], "nowhere"),
        (["--fast"], "--fast"),
        (["-m", "batchsize=1,2"], "did you mean batch_size?"),
        (["preset=huge"], "use one of"),
    ],
)
def test_a_mistake_is_one_sentence_exit_2_and_leaves_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, out, err = run(tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert len(err) == 2, err
    assert err[0].startswith("Error: ")
    assert words in err[0]
    assert err[1] == "False", "torch was imported"
    assert list(tmp_path.iterdir()) == []


def test_hydras_own_help_and_the_home_folder(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "--hydra-help")
    assert code == 0
    assert "Hydra" in out
    code, _, err = run(tmp_path, "data.dir=~/no-such-folder-of-images")
    assert code == 2
    assert str(Path.home() / "no-such-folder-of-images") in err[0]


def test_importing_the_package_stays_light() -> None:
    code = "import sys, effnet_lit; print(any(name in sys.modules for name in ('torch', 'hydra', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_share_the_cores_unless_told_otherwise(given: dict[str, str], found: str) -> None:
    code = "import os, sys, effnet_lit; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=usual | given, capture_output=True, check=True)
    assert done.stdout.decode().split() == [found, "False"]
