"""The exported file answers as training's own path does, from whole photographs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import COLOURS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from onnx.parser import parse_model
from PIL import Image, ImageOps
from typer.testing import CliRunner

from effnet_lit import compose, fit, load_model
from effnet_lit.cli import app
from effnet_lit.config import UserError
from effnet_lit.data.decode import EXIF_ORIENTATION, RESIZE_RULES, fit_square, formats
from effnet_lit.deploy.agreement import Agreement, compare
from effnet_lit.deploy.eight_bits import in_eight_bits, rounded
from effnet_lit.deploy.export import square_of, to_onnx
from effnet_lit.deploy.onnx_file import HEADER
from effnet_lit.deploy.predict import predict
from effnet_lit.export_command import divided, must_agree
from effnet_lit.model.modelfile import Header, ImageClassifier
from effnet_lit.model.zoo import create_model

SIZE = 64


@pytest.fixture(scope="module")
def run_dir(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, exported."""
    given = ("limits=off", "epochs=10", "batch_size=16", "data.image_size=32", "model.weights=none")
    run = fit(compose(f"data.dir={class_folder}", *given), tmp_path_factory.mktemp("runs") / "run").run_dir
    done = CliRunner().invoke(app, ["export", str(run)])
    assert done.exit_code == 0, done.output
    assert "the class and the doubts of effnet predict on 24 of 24 held-out images" in done.stdout
    return run


@pytest.fixture(scope="module")
def session(run_dir: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(run_dir / "model.onnx")


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Coarse shapes under fine noise."""
    noise = np.random.default_rng(seed)
    coarse = Image.fromarray(noise.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(pixels + noise.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def squares() -> dict[str, onnxruntime.InferenceSession]:
    return {rule: onnxruntime.InferenceSession(square_of(rule, SIZE).SerializeToString()) for rule in RESIZE_RULES}


@pytest.mark.parametrize("rule", RESIZE_RULES)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 9))
def test_the_graph_resizes_as_pillow_does(
    squares: dict[str, onnxruntime.InferenceSession], rule: str, width: int, height: int, seed: int
) -> None:
    image = photograph(width, height, seed)
    (square,) = squares[rule].run(None, {"image": np.asarray(image)[None]})
    expected = fit_square(image, SIZE, rule)
    off = np.abs(square[0].astype(int) - expected)
    assert off.max() <= 2 and (off > 0).mean() < 0.01


def test_answers_are_the_runs_own(run_dir: Path, session: onnxruntime.InferenceSession, class_folder: Path) -> None:
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    with open(run_dir / "test_predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        pixels = np.asarray(Image.open(class_folder / row["path"]).convert("RGB"))
        probabilities = session.run(["probabilities"], {"image": pixels[None]})[0][0]
        assert probabilities == pytest.approx([float(row[name]) for name in names], abs=1e-3)


def test_doubts_are_those_of_predict(session: onnxruntime.InferenceSession, run_dir: Path, tmp_path: Path) -> None:
    """Photographs of another kind, some turned by EXIF; a batch gives what single images give."""
    paths = []
    for seed in range(6):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 1 + seed
        paths.append(tmp_path / f"{seed}.png")
        photograph(90, 70, seed).save(paths[-1], exif=exif)
    done = CliRunner().invoke(app, ["predict", str(run_dir), *map(str, paths), "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    upright = [np.asarray(ImageOps.exif_transpose(Image.open(path))) for path in paths]
    for pixels, row in zip(upright, rows, strict=True):
        probabilities, sure, unlike = session.run(None, {"image": pixels[None]})
        assert (bool(sure[0]), bool(unlike[0])) == (row["sure"], row["unlike"])
        assert probabilities[0].max() == pytest.approx(row["probability"], abs=1e-3)
    assert any(row["unlike"] for row in rows)  # or nothing was shown of it
    alike = np.stack([pixels for pixels in upright if pixels.shape == upright[0].shape])
    together = session.run(["probabilities"], {"image": alike})[0]
    single = [session.run(["probabilities"], {"image": pixels[None]})[0][0] for pixels in alike]
    assert len(alike) == 4 and together == pytest.approx(np.stack(single), abs=1e-5)


def test_the_file_explains_itself_and_tells_nothing_of_the_machine(run_dir: Path) -> None:
    model = onnx.load(run_dir / "model.onnx")
    texts = {item.key: item.value for item in model.metadata_props}
    assert len(model.opset_import) == 1  # tools of ONNX Runtime refuse the same one twice
    header = load_model(run_dir).header
    assert json.loads(texts["classes"]) == header.class_names
    assert json.loads(texts[HEADER])["calibration"] == header.calibration
    assert str(Path(__file__).parent.parent).encode() not in (run_dir / "model.onnx").read_bytes()


def test_another_network_in_the_file_is_found(run_dir: Path, class_folder: Path) -> None:
    classifier = load_model(run_dir)
    exported = onnx.load(run_dir / "model.onnx")
    files = [(path.name, path.read_bytes) for path in sorted(class_folder.glob("*/0*.png"))]
    assert compare(classifier, exported, files).images == 30
    with torch.no_grad():
        next(classifier.network.parameters()).mul_(1.2)
    with pytest.raises(UserError, match="Nothing was written"):
        compare(classifier, exported, files)
    with torch.no_grad():
        next(classifier.network.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="Nothing was written"):
        compare(classifier, exported, files, math.inf)


def test_photographs_that_apps_see_otherwise_are_named(run_dir: Path) -> None:
    """Transparency is white here; a bare ``convert`` shows the colours under it."""
    classifier, exported = load_model(run_dir), onnx.load(run_dir / "model.onnx")
    files = []
    for name, colour in COLOURS.items():
        content = io.BytesIO()
        Image.fromarray(np.full((48, 48, 4), (*colour, 0), np.uint8)).save(content, "PNG")
        files.append((name, content.getvalue))
    found = compare(classifier, exported, [*files, ("no image", lambda: b"text")])
    assert found.images == 3 and len(found.others) >= 2  # white is one of the three
    assert f"; not on {', '.join(found.others)}" in found.sentence("images")


@pytest.mark.skipif("HEIF" not in formats(), reason="pillow_heif is not installed")
def test_what_plain_pillow_does_not_open_is_left_out(run_dir: Path) -> None:
    content = io.BytesIO()
    photograph(90, 70, 0).save(content, "HEIF")
    files = [("photo.heic", content.getvalue)]
    assert compare(load_model(run_dir), onnx.load(run_dir / "model.onnx"), files).images == 0


def test_the_readme_shows_how(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run_dir, tmp_path / "runs" / "latest")
    photograph(90, 70, 0).save("photo.jpg")
    told: list[tuple[object, ...]] = []
    exec(code, {"print": lambda *words: told.append(words)})
    (answer,) = predict(load_model(run_dir), [Path("photo.jpg")])
    ((name, probability),) = answer.top(load_model(run_dir).header.class_names, 1)
    assert told[0][0] == name and told[0][1] == pytest.approx(probability, abs=1e-3)


def test_a_model_file_alone_is_compared_on_noise_and_other_files_are_left_alone(run_dir: Path, tmp_path: Path) -> None:
    model = shutil.copy(run_dir / "model.safetensors", tmp_path / "leaves.safetensors")
    other = tmp_path / "notes.onnx"
    other.write_text("mine", encoding="utf-8")
    done = CliRunner().invoke(app, ["export", str(model), "--out", str(other)])
    assert done.exit_code == 2 and "left alone" in done.stderr
    assert other.read_text(encoding="utf-8") == "mine"
    done = CliRunner().invoke(app, ["export", str(model), "--out", str(tmp_path / "gone" / "model.onnx")])
    assert done.exit_code == 2 and "gone is no folder" in done.stderr
    done = CliRunner().invoke(app, ["export", str(model), "--out", str(tmp_path / "new")])
    assert done.exit_code == 2 and "neither a folder nor the name of an .onnx file" in done.stderr
    shutil.copy(run_dir / "model.onnx", tmp_path / "leaves.onnx")  # an earlier export
    done = CliRunner().invoke(app, ["export", str(model)])
    assert done.exit_code == 0 and "on 4 of 4 images of noise" in done.stdout
    done = CliRunner().invoke(app, ["export", str(model), "--small"])
    assert done.exit_code == 2 and "0 held-out images are here. Give a folder of them" in done.stderr
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = CliRunner().invoke(app, ["export", str(model), "--check", str(tmp_path / "broken.jpg")])
    assert done.exit_code == 2 and "no image to compare on can be opened" in done.stderr
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = CliRunner().invoke(app, ["export", str(model), "--small", "--check", str(tmp_path)])
    assert done.exit_code == 2 and "no image to compare on can be opened" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken.jpg",
        "broken.png",
        "leaves.onnx",
        "leaves.safetensors",
        "notes.onnx",
    ]


def test_weights_in_eight_bits_take_a_third_and_answer_the_same(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run_dir), "--small"])
    assert done.exit_code == 0 and "on 21 of 21 held-out images" in done.stdout, done.output
    sizes = [(run_dir / name).stat().st_size for name in ("model-small.onnx", "model.onnx")]
    assert sizes[0] < sizes[1] / 3
    known = load_model(run_dir).familiarity
    kept = [numpy_helper.to_array(tensor) for tensor in onnx.load(run_dir / "model-small.onnx").graph.initializer]
    assert known is not None
    assert any(np.array_equal(tensor, known.directions.T) for tensor in kept)  # by which "unlike" is told


@settings(deadline=None)
@given(arrays(np.float32, (3, 2, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_rounding_is_off_by_half_a_step(weights: np.ndarray) -> None:
    integers, scale = rounded(weights)
    assert integers.dtype == np.int8 and scale.shape == (3, 1, 1)
    assert (np.abs(integers * scale - weights) <= scale * 0.501).all()


def layer_of(body: str, image: tuple[int, ...], tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    """``body`` gives y of a float image (N, ...)."""
    shape = ", ".join("nchw"[: 1 + len(image)])
    model = parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> layer (float[{shape}] image) => (float y) {{ {body} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "drawn"),
    [
        ("Conv (image, weight{})", (1024, 64, 1, 1), (64, 7, 7)),
        ("Conv <group = 4> (image, weight{})", (1024, 16, 1, 1), (64, 7, 7)),
        ("Conv <group = 64> (image, weight{})", (1024, 1, 5, 5), (64, 1, 1)),  # windows see borders less often
        ("Gemm <transB = 1> (image, weight{})", (1024, 64), (64,)),
    ],
)
def test_rounding_leaves_the_mean_of_each_channel_alone(
    layer: str, shape: tuple[int, ...], drawn: tuple[int, ...], bias: bool
) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=shape).astype(np.float32) ** 3
    whole = (64, *(7 for _ in drawn[1:]))
    images = [np.array(np.broadcast_to(random.random(drawn), whole), np.float32) for _ in range(3)]
    added = {"b": random.normal(size=1024).astype(np.float32)} if bias else {}
    model, plain = (
        layer_of("y = " + layer.format(", b" if bias else ""), whole, {"weight": values} | added)
        for values in (weight, np.multiply(*rounded(weight)))
    )

    def means(of: onnx.ModelProto) -> np.ndarray:
        ask = onnxruntime.InferenceSession(of.SerializeToString())
        outputs = [np.asarray(ask.run(None, {"image": image[None]})[0]) for image in images]
        return np.mean([output.reshape(1024, -1).mean(1) for output in outputs], axis=0)

    off, now_off = (np.abs(means(of) - means(model)).max() for of in (plain, in_eight_bits(model, images, None)))
    assert off > 0.1 and now_off < 1e-4


def test_a_matrix_stays_whatever_its_size_and_shared_weights_are_rounded_once() -> None:
    random = np.random.default_rng(0)
    few, shared = random.random((128, 12), np.float32), random.random((128, 128), np.float32)
    body = "once = MatMul (image, shared) twice = MatMul (once, shared) y = MatMul (twice, few)"
    model = layer_of(body, (128,), {"few": few, "shared": shared})
    image = random.random(128, np.float32)
    small = in_eight_bits(model, [image], few)
    onnx.checker.check_model(small)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    assert np.array_equal(kept["few"], few) and kept["shared_int8"].dtype == np.int8 and "shared" not in kept
    expected, found = (
        onnxruntime.InferenceSession(of.SerializeToString()).run(None, {"image": image[None]})[0]
        for of in (model, small)
    )
    assert np.allclose(expected, found, rtol=0.01)


def test_photographs_to_round_by_are_such_as_can_be_opened(run_dir: Path) -> None:
    content = io.BytesIO()
    photograph(40, 30, 0).save(content, "PNG")
    files = [(str(number), content.getvalue if number else lambda: b"no image") for number in range(9)]
    typical, others = divided(files, load_model(run_dir).header)
    assert len(typical) == 2 and [name for name, _ in others] == ["0", *map(str, range(2, 8))]


def test_eight_bits_that_change_answers_are_refused() -> None:
    must_agree(Agreement(100, ["see-through.png"] * 50, others_on_squares=2), small=True)
    must_agree(Agreement(10, others_on_squares=1), small=True)
    with pytest.raises(UserError, match="change the class or the doubts of 1 of 1 images"):
        must_agree(Agreement(1, others_on_squares=1), small=True)
    with pytest.raises(UserError, match="change the class or the doubts of 3 of 100 images"):
        must_agree(Agreement(100, others_on_squares=3), small=True)


def test_without_the_extra_it_says_what_to_install(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = CliRunner().invoke(app, ["export", str(run_dir)])
    assert done.exit_code == 2
    assert done.stderr == 'Error: Exporting needs onnxscript: pip install "effnet_lit[export]"\n'


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("mobilenet_v3_small", "pad"),
        pytest.param("efficientnet_b2", "crop", marks=pytest.mark.slow),
        pytest.param("resnet50", "pad", marks=pytest.mark.slow),
        pytest.param("vit_b_16", "crop", marks=pytest.mark.slow),
    ],
)
def test_every_network_answers_the_same(name: str, rule: str) -> None:
    """Also where the model file knows nothing of what is unlike training, and for any number of images."""
    torch.manual_seed(0)
    network = create_model(name, 5, image_size=SIZE).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 1, 3)  # or every answer is the same
    header = Header({}, list("abcde"), SIZE, SIZE, network.mean, network.std, resize=rule)
    classifier = ImageClassifier(network, header).eval()
    session = onnxruntime.InferenceSession(to_onnx(classifier).SerializeToString())
    typical = [np.asarray(photograph(SIZE, SIZE, 9))]
    small = onnxruntime.InferenceSession(to_onnx(classifier, typical).SerializeToString())
    for seed, shape in enumerate([(300, 200), (64, 64), (50, 171)]):
        image = photograph(*shape, seed)
        with torch.inference_mode():
            expected = classifier(torch.tensor(fit_square(image, SIZE, rule))[None])
        probabilities, sure, unlike = session.run(None, {"image": np.asarray(image)[None]})
        assert probabilities == pytest.approx(expected.numpy(), abs=2e-3)
        assert sure[0] and not unlike[0]
        if name != "efficientnet_b2":  # whose logits are in the hundreds here
            in_8_bits = small.run(["probabilities"], {"image": np.asarray(image)[None]})[0]
            assert in_8_bits == pytest.approx(probabilities, abs=0.02)
        three = session.run(["probabilities"], {"image": np.stack([np.asarray(image)] * 3)})[0]
        assert three == pytest.approx(np.repeat(probabilities, 3, axis=0), abs=1e-5)
