"""Predictions from the model file alone, equal to training's own."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from effnet_lit import compose, fit, load_model
from effnet_lit.cli import app
from effnet_lit.config import UserError
from effnet_lit.data.split_file import read_split
from effnet_lit.deploy.predict import find_images, predict


@pytest.fixture(scope="module")
def run_dir(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("limits=off", "epochs=2", "batch_size=16", "data.image_size=32", "model.weights=none")
    return fit(compose(f"data.dir={class_folder}", *settings), tmp_path_factory.mktemp("runs") / "run").run_dir


@pytest.fixture
def model(run_dir: Path, tmp_path: Path) -> Path:
    """The model file alone, away from its run."""
    return Path(shutil.copy(run_dir / "model.safetensors", tmp_path / "model.safetensors"))


def stored(run_dir: Path) -> list[dict[str, str]]:
    """The run's own test predictions."""
    with open(run_dir / "test_predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_are_trainings_own_bit_for_bit(run_dir: Path, model: Path, class_folder: Path) -> None:
    classifier, rows = load_model(model), stored(run_dir)
    names = classifier.header.class_names
    answers = list(predict(classifier, [class_folder / row["path"] for row in rows]))
    for row, answer in zip(rows, answers, strict=True):
        assert answer.top(names, 1)[0][0] == row["class"]
        assert [float(value) for value in answer.probabilities] == [float(row[name]) for name in names]


def test_one_at_a_time_agrees_within_a_millionth(run_dir: Path, model: Path, class_folder: Path) -> None:
    classifier = load_model(model)
    for row in stored(run_dir)[:6]:
        (answer,) = predict(classifier, [class_folder / row["path"]])
        expected = [float(row[name]) for name in classifier.header.class_names]
        assert answer.probabilities == pytest.approx(np.array(expected), abs=1e-6)


def test_a_bad_file_gets_its_line_and_the_rest_go_on(model: Path, class_folder: Path, tmp_path: Path) -> None:
    good = next((class_folder / "red").iterdir())
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image", encoding="utf-8")
    done = CliRunner().invoke(app, ["predict", str(model), str(bad), str(good), "--json"])
    assert done.exit_code == 1
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["path"] == str(bad)
    assert first["error"]
    assert second["class"] in {"red", "green", "blue"}
    assert sum(item["probability"] for item in second["top"]) == pytest.approx(1, abs=1e-5)


def test_heat_maps_are_written_and_none_is_lost(model: Path, class_folder: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "heat", str(class_folder / "red" / "00.png")
    for _ in range(2):
        done = CliRunner().invoke(app, ["predict", str(model), image, "--explain", str(out)])
        assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["00000-00-2.png", "00000-00.png"]
    with Image.open(out / "00000-00.png") as picture:
        assert picture.size == (64, 32)


def test_pictures_do_not_lie_among_the_images(model: Path, class_folder: Path) -> None:
    folder = class_folder / "red"
    before = sorted(folder.iterdir())
    done = CliRunner().invoke(app, ["predict", str(model), str(folder), "--explain", str(folder)])
    assert done.exit_code == 2 and "among the images" in done.stderr
    assert sorted(folder.iterdir()) == before


def test_not_sure_and_sets(model: Path, class_folder: Path) -> None:
    header = load_model(model).header
    done = CliRunner().invoke(app, ["predict", str(model), str(class_folder), "--json", "--set", "0.9"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 120
    for row in rows:
        assert row["sure"] == (row["probability"] >= header.calibration["abstain_below"])
        assert all(one["probability"] >= header.calibration["set_0.9"] for one in row["top"][1:])
    done = CliRunner().invoke(app, ["predict", str(model), str(class_folder / "red"), "--set", "0.99"])
    assert "only more validation images could show 99%" in done.stderr  # there were 12
    assert all(
        sum(name in line.split("  ", 1)[1] for name in header.class_names) == 3 for line in done.stdout.splitlines()
    )
    done = CliRunner().invoke(app, ["predict", str(model), str(class_folder), "--set", "0.7"])
    assert done.exit_code == 2 and "it has: 0.8, 0.9, 0.95, 0.99" in done.output


def test_rows_for_the_eye_stand_in_columns(
    model: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a longer name.png"):
        shutil.copy(class_folder / "red" / "00.png", name)
    Path("bad.jpg").write_bytes(b"no image")
    done = CliRunner().invoke(app, ["predict", str(model), "a.png", "a longer name.png", "bad.jpg"])
    first, second, third = done.stdout.splitlines()
    column = len("a longer name.png") + 2
    assert first[column:] == second[column:]  # the same image
    assert first[column:].split()[0] in {"red", "green", "blue"} and third[column:].startswith("not read: ")


def test_many_files_stay_in_order(model: Path, class_folder: Path) -> None:
    """More than two batches, one file in the middle that cannot be read; images are decoded ahead of the network."""
    classifier = load_model(model)
    everything, reds = sorted(class_folder.glob("*/*.png")), sorted(class_folder.glob("red/*.png"))
    paths = [*everything, class_folder / "gone.png", *reds]
    found = list(predict(classifier, paths))
    assert [item.path for item in found] == [str(path) for path in paths]
    assert [bool(item.error) for item in found] == [path.name == "gone.png" for path in paths]


def test_patterns(class_folder: Path) -> None:
    assert len(find_images([f"{class_folder}/red/0*.png"])) == 10
    assert len(find_images([f"{class_folder}/**/1?.png"])) == 30
    with pytest.raises(UserError, match="does not exist"):
        find_images([f"{class_folder}/*.tiff"])


def test_csv_has_a_column_a_class(model: Path, class_folder: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(model), str(class_folder / "red"), "--csv"])
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert done.exit_code == 0
    assert len(rows) == 40
    for row in rows:
        assert sum(float(row[name]) for name in ("red", "green", "blue")) == pytest.approx(1, abs=1e-5)


def test_evaluate_measures_a_folder_and_warns_of_the_training_one(model: Path, class_folder: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(model), str(class_folder), "--json"])
    figures = json.loads(done.stdout)
    assert figures["images"] == 120
    assert any("too good" in note for note in figures["notes"])


def test_evaluate_counts_the_runs_training_images(run_dir: Path, class_folder: Path, tmp_path: Path) -> None:
    training = sum(part == "train" for part in read_split(run_dir / "split.csv").values())
    done = CliRunner().invoke(app, ["evaluate", str(run_dir), str(class_folder)])
    assert f"{training} of these 120 images have paths of training images" in done.stdout
    for row in stored(run_dir):
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        shutil.copy(class_folder / row["path"], tmp_path / row["path"])
    done = CliRunner().invoke(app, ["evaluate", str(run_dir), str(tmp_path)])
    assert done.exit_code == 0 and "on 24 images" in done.stdout and "training images" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.safetensors", "x.png"], "nowhere.safetensors"),
        (["predict", "{model}", "nowhere.png"], "nowhere.png does not exist"),
        (["predict", "{model}", "{empty}"], "no image files"),
        (["predict", "{empty}", "x.png"], "is not a run folder"),
        (["predict", "{model}", "{model}", "--json", "--csv"], "exclude each other"),
        (["evaluate", "{model}", "{other}"], "was not trained on"),
    ],
)
def test_mistakes_are_one_sentence(
    model: Path, class_folder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    for name in ("red", "violet"):
        shutil.copytree(class_folder / "red", other / name)
    places = {"model": str(model), "empty": str(empty), "other": str(other)}
    done = CliRunner().invoke(app, [argument.format(**places) for argument in arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_find_images_looks_into_folders_and_skips_the_rest(tmp_path: Path) -> None:
    for name in ("a/2.JPG", "a/1.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == ["1.png", "2.JPG"]
    with pytest.raises(UserError):
        find_images([str(tmp_path / "b")])


def test_cache_command_shows_and_clears(tmp_path: Path, class_folder: Path) -> None:
    from effnet_lit.data.cache import cache_sizes, open_cache
    from effnet_lit.data.folder import read_folder

    open_cache(read_folder(class_folder), 32, "squish", "disk", tmp_path / "kept", 0, lambda done, total: None)
    shown = CliRunner().invoke(app, ["cache", "--folder", str(tmp_path / "kept")])
    assert str(class_folder) in shown.stdout
    cleared = CliRunner().invoke(app, ["cache", "--clear", "--folder", str(tmp_path / "kept")])
    assert "deleted" in cleared.stdout
    assert cache_sizes(tmp_path / "kept") == []
