"""`effnet audit` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import images
import photos
import pytest
from typer.testing import CliRunner

from effnet_lit.cli import app
from effnet_lit.config import UserError
from effnet_lit.data.split_file import read_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = photos.photo_folder(tmp_path / "my photos, all")
    shutil.copy(root / "china/07.jpg", root / "flower/wrong.jpg")
    images.save_truncated(root / "flower" / "half.jpg", format="JPEG")
    return root


def test_it_prints_the_worst_and_writes_both_files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    done = CliRunner().invoke(app, ["audit", str(root), "data.image_size=64"], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    for words in (
        "82 images in 2 classes, 79 can be used",
        "flower/half.jpg (truncated)",
        "china/07.jpg = flower/wrong.jpg",
    ):
        assert words in " ".join(done.output.split()), words
    out = tmp_path / "audits" / root.name
    audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert audit["exclude"] == ["china/07.jpg", "flower/half.jpg", "flower/wrong.jpg"]
    assert "flower/wrong.jpg" in (out / "audit.html").read_text(encoding="utf-8")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert not (out / "augmentation.png").exists()


def test_the_sheet_shows_augmented_images(root: Path, tmp_path: Path) -> None:
    arguments = [
        "audit",
        str(root),
        "data.image_size=64",
        "augmentation=heavy",
        "--augment",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "augmentation.png").stat().st_size > 10_000


def test_what_cannot_be_trained_on_is_audited_all_the_same(root: Path, tmp_path: Path) -> None:
    twice, out = tmp_path / "twice", tmp_path / "out"
    for name in ("a", "b"):
        shutil.copytree(root / "china", twice / name)
    done = CliRunner().invoke(app, ["audit", str(twice), "data.image_size=64", "--augment", "--out", str(out)])
    assert done.exit_code == 2
    assert "Same pixels under different classes" in done.stdout and "has no usable image" in done.stderr
    assert "a/07.jpg" in (out / "audit.html").read_text(encoding="utf-8")
    assert "Next" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "does not exist"), (["photos", "data.image_sizes=64"], "data.image_sizes"), (["."], "--out")],
)
def test_mistakes_are_one_sentence(
    root: Path, tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root.rename("photos")
    done = CliRunner().invoke(app, ["audit", *arguments])
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_the_ranges_of_training_do_not_matter(root: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["audit", str(root), "data.image_size=64", "epochs=1000", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output


def test_reading_a_split_back(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,label,split\na.png,a,train\nb.png,a,test\n")
    assert read_split(tmp_path / "split.csv") == {"a.png": "train", "b.png": "test"}
    with pytest.raises(UserError):
        read_split(tmp_path)
