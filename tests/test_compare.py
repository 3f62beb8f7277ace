"""An app's answers are compared with predict's, and its mistake is named; apps prepare images by other libraries."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import photos
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from typer.testing import CliRunner

from benchmarks.app_mistakes import answered, on_its_side, probabilities_of
from benchmarks.apps import ONE, OTHER, SEVERAL
from effnet_lit import load_model
from effnet_lit.cli import app
from effnet_lit.compare_command import sentences
from effnet_lit.data.decode import RESIZE_RULES, decode, fit_square
from effnet_lit.deploy.app_answers import AppAnswer, read_answers
from effnet_lit.deploy.compare import Asked, Cause, order_of
from effnet_lit.deploy.mistakes import MISTAKES, RIGHT, Preparation, instead
from effnet_lit.deploy.preparation import RESAMPLE, square
from effnet_lit.model.modelfile import Header, ImageClassifier, write_model
from effnet_lit.model.zoo import create_model, last_layer

NAMES = ["bee", "cat", "dog", "elk"]
QUICKLY = (  # the others in benchmarks.app_mistakes
    "blue first",
    "not turned by EXIF",
    "OpenCV, nearest",
    "short side x 8/7 bicubic, middle",
    "size of training",
    "ImageNet's mean and std",
    "reshaped",
    "no temperature",
    "classes in reverse order",
    "OpenCV as it comes",
    "blue first, ImageNet's mean and std",
)
CV2 = {
    "area": cv2.INTER_AREA,
    "bilinear_plain": cv2.INTER_LINEAR,
    "bicubic_plain": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tiles of photographs, not square, some stored on their side."""
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for i, tile in enumerate((*photos.tiles("china"), *photos.tiles("flower"))):
        paths.append(folder / f"{i:02}.jpg")
        tile.resize((240, 180)).save(paths[-1], quality=95)
        if i % 4 == 0:
            paths[-1].write_bytes(on_its_side(paths[-1].read_bytes()))
    return paths


@pytest.fixture(scope="module")
def model(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights whose logits have a mean of 0 and a deviation of 3 over the images."""
    torch.manual_seed(0)
    network = create_model("mobilenet_v3_small", len(NAMES)).eval()
    header = Header(network.architecture, NAMES, 64, 96, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    header.calibration["temperature"] = 1.5
    classifier = ImageClassifier(network, header).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(1, 3)
        images = np.stack([decode(path, header.eval_size, header.resize) for path in files])
        deviation, mean = torch.std_mean(classifier.logits(torch.from_numpy(images)), 0)
        layer = last_layer(network)
        layer.weight.mul_(3 / deviation[:, None])
        layer.bias.sub_(mean).mul_(3 / deviation)  # type: ignore[operator]
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, classifier)
    return path


def written(target: Path, paths: list[Path], columns: list[str], values: Any) -> Path:
    """A CSV file."""
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns])
        writer.writerows([path, *row] for path, row in zip(paths, values, strict=True))
    return target


def logits_of(classifier: ImageClassifier, files: list[Path]) -> list[list[float]]:
    header = classifier.header
    images = np.stack([decode(path, header.eval_size, header.resize) for path in files])
    return classifier.logits(torch.from_numpy(images)).tolist()


def compared(model: Path, given: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", str(model), str(given), *options])
    return done.exit_code, done.output


@pytest.mark.parametrize("form", ["predict --csv", "percent", "digits", "logits", "names", "numbers", "semicolons"])
def test_the_same_answers_are_called_the_same(model: Path, files: list[Path], tmp_path: Path, form: str) -> None:
    given = answered(load_model(model), [path.read_bytes() for path in files])
    labels = given.argmax(1)
    target = tmp_path / "app.csv"
    if form == "predict --csv":
        target.write_text(CliRunner().invoke(app, ["predict", str(model), *map(str, files), "--csv"]).stdout)
    elif form == "names":
        written(target, files, ["Label"], [[NAMES[label]] for label in labels])
    elif form == "semicolons":  # and commas in numbers, in percent
        rows = zip(files, given, strict=True)
        lines = [f"{path};{NAMES[row.argmax()]};" + f"{100 * row.max():.2f}".replace(".", ",") for path, row in rows]
        target.write_text("\n".join(["\ufeffFile;Class;Score", *lines]), encoding="utf-8")
    elif form == "numbers":
        written(target, files, ["class", "confidence"], [[label, given[i, label]] for i, label in enumerate(labels)])
    else:
        values = (100 * given).round(0 if form == "percent" else 2).tolist()
        if form == "logits":
            values = logits_of(load_model(model), files)
        written(target, files, [*NAMES, "more"], [[*row, "x"] for row in values])
    code, output = compared(model, target)
    assert code == 0 and "80 compared\n" in output and "the class of effnet predict on all" in output
    assert ("(logits)" in output) == (form == "logits") and ("for numbers" in output) == (form == "numbers")


@pytest.mark.parametrize("name", QUICKLY)
def test_a_mistake_is_named(model: Path, files: list[Path], tmp_path: Path, name: str) -> None:
    one = (ONE | SEVERAL)[name]
    given = probabilities_of(one, load_model(model), [path.read_bytes() for path in files])
    code, output = compared(model, written(tmp_path / "app.csv", files, NAMES, given))
    (cause,) = (line for line in output.splitlines() if line.startswith(("Cause", "Or")))
    assert code == 1 and "Instead  " in output
    assert all(MISTAKES[mistake].says in cause for mistake in one.mistakes), output
    assert cause.count(", and ") == len(one.mistakes) - 1


def test_a_picture_shows_what_the_app_seems_to_give(model: Path, files: list[Path], tmp_path: Path) -> None:
    given = probabilities_of(ONE["blue first"], load_model(model), [path.read_bytes() for path in files])
    app_file, target = written(tmp_path / "app.csv", files, NAMES, given), tmp_path / "app.png"
    assert f"Picture  {target}" in compared(model, app_file, "--picture", str(target))[1]
    upper, lower = (np.asarray(Image.open(target))[top : top + 192, 24:216] for top in (84, 84 + 192 + 84))
    assert upper.std() > 20 and (upper[:, :, ::-1] == lower).all()
    before = target.read_bytes()
    code, output = compared(model, app_file, "--picture", str(target))
    assert code == 2 and "is there already" in output and target.read_bytes() == before
    assert compared(model, app_file, "--picture", str(tmp_path / "none" / "app.png"))[0] == 2


@pytest.mark.parametrize("columns", [["class"], ["class", "probability"]])
def test_a_class_an_image_is_enough(model: Path, files: list[Path], tmp_path: Path, columns: list[str]) -> None:
    given = probabilities_of(ONE["blue first"], load_model(model), [path.read_bytes() for path in files])
    rows = [[NAMES[row.argmax()], row.max()][: len(columns)] for row in given]
    code, output = compared(model, written(tmp_path / "app.csv", files, columns, rows))
    assert code == 1 and f"Cause    the app {MISTAKES['channels', 'bgr'].says}\n" in output


@pytest.mark.parametrize("name", ["blurred", "answers of the images before"])
def test_of_other_mistakes_nothing_is_said(model: Path, files: list[Path], tmp_path: Path, name: str) -> None:
    given = probabilities_of(OTHER[name], load_model(model), [path.read_bytes() for path in files])
    code, output = compared(model, written(tmp_path / "app.csv", files, NAMES, given))
    assert code == 1 and "none of the usual mistakes" in output and "Instead" not in output


def test_a_single_other_answer_tells_nothing(model: Path, files: list[Path], tmp_path: Path) -> None:
    given = answered(load_model(model), [path.read_bytes() for path in files])
    given[7] = np.roll(given[7], 1)
    code, output = compared(model, written(tmp_path / "app.csv", files, NAMES, given))
    assert code == 1 and "another class on 1 (1.2%)" in output and "none of the usual mistakes" in output


def test_what_answers_cannot_tell_is_not_told() -> None:
    def ways(*given: dict[str, str]) -> Cause:
        return Cause([Preparation(**one) for one in given], 0.95, 50)

    header = Header({}, NAMES, 224, 256, [0.5] * 3, [0.5] * 3)
    alike = ways(*({"values": value} for value in ("bytes", "undivided", "divided_twice", "cut")))
    told = sentences(alike, header, Path("run"))
    assert told.startswith("Cause    one of 4 mistakes that these answers do not tell apart")
    assert told.count("Instead") == 1 and "(values / 255 - 0.5) / 0.5" in told  # for all four of them
    resizing = ({"channels": "bgr", "resample": value} for value in ("area", "lanczos", "nearest"))
    told = sentences(ways(*resizing, {"channels": "bgr", "turn": "half"}), header, Path("run"))
    assert told.startswith(f"Cause    the app {MISTAKES['channels', 'bgr'].says}\nAnd      one of 4 mistakes")
    assert told.count("Instead") == 1 and "COLOR_BGR2RGB" in told and "Easiest" not in told
    told = sentences(ways({"turn": "half"}, {"turn": "mirror"}), header, Path("run"))
    assert f"Or       the app {MISTAKES['turn', 'mirror'].says}\n" in told


def test_too_few_other_classes_tell_nothing(model: Path, files: list[Path], tmp_path: Path) -> None:
    labels = answered(load_model(model), [path.read_bytes() for path in files]).argmax(1)
    labels[:3] = (labels[:3] + 1) % len(NAMES)
    code, output = compared(model, written(tmp_path / "app.csv", files, ["class"], labels[:, None]))
    assert code == 1 and "another class on 3 (3.8%), such as" in output and "not looked for" in output


def test_what_is_done_instead_has_the_models_numbers() -> None:
    header = Header({}, NAMES, 224, 256, [0.485, 0.456, 0.406], [0.2, 0.2, 0.2], "pad", {"temperature": 1.23456})
    told = "\n".join(instead(mistake, header) for mistake in MISTAKES)
    assert "(values / 255 - [0.485, 0.456, 0.406]) / 0.2" in told
    assert "softmax(logits / 1.235)" in told
    assert "the long side to 256 pixels, on a square of grey (128), with" in told


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize("way", CV2)
def test_pixels_are_those_of_opencv(way: str, size: int) -> None:
    image = photos.tiles("china")[0]
    expected = cv2.resize(np.asarray(image), (size, size), interpolation=CV2[way])
    off = np.abs(np.asarray(RESAMPLE[way](image, size, size)).astype(int) - expected)
    assert off.max() <= 1 and off.mean() < 0.2


@pytest.mark.parametrize(("shape", "share"), [("middle", 1), ("margin", 8 / 7)])
@pytest.mark.parametrize("size", [64, 100])
def test_pixels_are_those_of_torchvision(shape: str, share: float, size: int) -> None:
    image = photos.tiles("flower")[0].resize((200, 130))
    expected = v2.Compose([v2.Resize(round(size * share)), v2.CenterCrop(size)])(image)
    assert (square(image, size, shape, RESAMPLE["bilinear"]) == np.asarray(expected)).all()


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_pixels_without_a_mistake_are_predicts(rule: str) -> None:
    image = photos.tiles("china")[0].resize((131, 90))
    assert (square(image, 64, rule, RESAMPLE[RIGHT]) == fit_square(image, 64, rule)).all()


def test_an_order_of_classes_is_told_where_it_is_clear() -> None:
    def asked(*pairs: tuple[int, int]) -> list[Asked]:
        return [Asked(AppAnswer("", app), np.eye(4)[ours], bytes) for app, ours in pairs]

    assert order_of(asked(*[(0, 1), (1, 0), (2, 2)] * 3), 4) == (1, 0, 2, 3)  # never answered: what is left
    assert order_of(asked(*[(0, 1), (1, 0)] * 3, (2, 3)), 4) == (1, 0, 3, 2)  # what it seems to be
    assert order_of(asked(*[(0, 1), (1, 0), (2, 2)] * 2), 4) == ()  # too few
    assert order_of(asked(*[(0, 0), (1, 1), (2, 2), (3, 3)] * 3), 4) == ()
    assert order_of(asked(*[(0, 1), (1, 1)] * 3), 4) == ()  # two for the same one
    assert order_of(asked(*[(0, 1), (0, 0), (1, 2), (1, 3)] * 3), 4) == ()  # none is clear


@given(st.integers(2, 60), st.integers(12, 120), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_an_order_that_fits_by_chance_does_not_fit_other_images(classes: int, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, (images, 2))
    some = [Asked(AppAnswer("", app), np.eye(classes)[ours], bytes) for app, ours in labels.tolist()]
    order = order_of(some, classes)
    others = random.integers(0, classes, (200, 2))
    assert not order or np.mean(np.array(order)[others[:, 0]] == others[:, 1]) < 0.9


def test_a_true_class_beside_the_answer_is_not_taken_for_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "app.csv").write_text(" path , label,prediction\n\na.jpg,bee, cat\n")
    (answer,) = read_answers(tmp_path / "app.csv", load_model(model).header).answers
    assert (answer.path, NAMES[answer.label]) == ("a.jpg", "cat")


def test_a_probability_of_slightly_more_than_one_is_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "app.csv").write_text("path,class,probability\na.jpg,bee,1.0000001\nb.jpg,bee,0.8\n")
    answers = read_answers(tmp_path / "app.csv", load_model(model).header).answers
    assert [answer.probability for answer in answers] == [1, 0.8]


def test_files_are_found_by_the_end_of_their_paths(model: Path, files: list[Path], tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "b/y.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(files[1].read_bytes())
    told = [Path("/sdcard/b/x.jpg"), Path("C:\\a\\x.jpg"), Path("y.jpg"), Path("gone.jpg")]
    given = written(tmp_path / "app.csv", told, ["class"], [["bee"]] * 4)
    assert "3 compared; 1 not found" in compared(model, given, "--images", str(tmp_path / "photos"))[1]
    written(given, [Path("x.jpg")], ["class"], [["bee"]])
    code, output = compared(model, given, "--images", str(tmp_path / "photos"))
    assert code == 2 and "'x.jpg' can be" in output
    assert "a/x.jpg or" in output.replace("\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no column path"),
        ("name,class\na.jpg,bee\n", "no column path"),
        ("path,bee\na.jpg,1\n", "neither a column 'cat' nor a column class"),
        ("path,class\na.jpg,bat\n", "line 2: 'bat' is no class of this model; they are: bee, cat, dog, elk."),
        ("path,class\na.jpg,4\n", "'4' is no class"),
        ("path,class,score\na.jpg,bee,high\n", "line 2: 'high' is no probability"),
        ("path,bee,cat,dog,elk\na.jpg,1,0,nan,0\n", "'nan' is no probability"),
        ("path,class,score\na.jpg,bee,9\nb.jpg,bee,200\n", "line 3: 200 is no probability"),
        ("path,class\na.jpg,bee\na.jpg,cat\n", "two answers for a.jpg"),
        ("path,class,score\na.jpg,bee,0,95\n", "line 2 has 4 values for 3 columns"),
        ("path,class\na.jpg,bee\nb.jpg,1\n", "line 3: '1' is no class"),
        ("path,class,score\na.jpg,bee,-0.5\n", "line 2: -0.5 is no probability"),
        ("path,class\na.jpg,\n", "holds no answers"),
        ("path,class\nnowhere.jpg,bee\n", "None of the 1 images"),
    ],
)
def test_a_file_that_cannot_be_meant_is_named(model: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "app.csv").write_text(text)
    code, output = compared(model, tmp_path / "app.csv")
    assert code == 2 and told in output and "Traceback" not in output


def test_a_file_that_is_not_there(model: Path, tmp_path: Path) -> None:
    code, output = compared(model, tmp_path / "app.csv")
    assert code == 2 and "cannot be read (No such file or directory)" in output
