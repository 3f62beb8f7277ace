"""The wheel trains from another folder, without the checkout."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_trains_elsewhere(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"effnet_lit/conf/config.yaml", "effnet_lit/conf/preset/medium.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "runs", "conf"))]
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel)
    inside = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (inside / "dependencies.pth").write_text(site.getsitepackages()[0], encoding="utf-8")  # the heavy ones, as they are
    place = run(python, "-c", "import effnet_lit; print(effnet_lit.__file__)", cwd=tmp_path)
    assert str(inside) in place, "the checkout was imported, not the wheel"
    command = tmp_path / "venv" / "bin" / "effnet"
    out = run(command, "train", "epochs=1", "limits=off", "trainer.limit_train_batches=3", cwd=tmp_path)
    assert "held-out images" in out
    assert (tmp_path / "runs" / "latest" / "model.safetensors").is_file()
