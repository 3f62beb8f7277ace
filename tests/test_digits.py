"""The embedded digits, written once and whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from effnet_lit.config import EMBEDDED_DATA_IMAGES, DataConfig, UserError
from effnet_lit.data.digits import MARKER, digits_folder, write_digits
from effnet_lit.data.folder import read_folder
from effnet_lit.data.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_folder(tmp_path_factory.mktemp("cache"))


def test_all_digits_under_their_class(digits: Path) -> None:
    index = read_folder(digits)
    assert len(index.paths) == EMBEDDED_DATA_IMAGES
    assert index.class_names == tuple("0123456789")
    assert index.ignored == ()
    numbers = {int(Path(path).stem): label for path, label in zip(index.paths, index.labels, strict=True)}
    assert [numbers[i] for i in range(EMBEDDED_DATA_IMAGES)] == load_digits(return_X_y=True)[1].tolist()


def test_images_are_the_scans_enlarged(digits: Path) -> None:
    scans, _ = load_digits(return_X_y=True)
    for number in (0, 700, 1796):
        (path,) = digits.glob(f"*/{number:04}.png")
        image = Image.open(path)
        assert image.size == (64, 64)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
        assert np.corrcoef(small.ravel(), scans[number].ravel())[0, 1] > 0.98


def test_a_second_call_writes_nothing_and_another_place_gets_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert digits_folder(digits.parent) == digits
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    again = write_digits(tmp_path / "again")
    for path in digits.rglob("*.png"):
        assert (again / path.relative_to(digits)).read_bytes() == path.read_bytes()


def test_two_at_once_and_a_killed_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from effnet_lit.data.digits import write_digits\n"
        "write_digits(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "d")]
    killed = subprocess.Popen(command, cwd=ROOT)
    while not list(tmp_path.glob(".d-*/3")):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert not (tmp_path / "d").exists()
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list((tmp_path / "d").glob("*/*.png"))) == EMBEDDED_DATA_IMAGES


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_digits(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    assert not (tmp_path / MARKER).exists()


def test_they_are_what_a_run_without_data_dir_takes(digits: Path) -> None:
    config = DataConfig(cache_dir=str(digits.parent))
    data = prepare(config, 0, True, 32, lambda done, total: None)
    assert len(data.paths) == EMBEDDED_DATA_IMAGES
    assert {part: len(data.part(part)) for part in ("train", "val", "test")} == pytest.approx(
        {"train": 1258, "val": 180, "test": 359}, abs=6
    )
    assert data.notes == ()
    assert not {"duplicates", "label_conflict"} & {finding["kind"] for finding in data.audit["findings"]}
