"""The HTTP service answers as ``effnet predict``, refuses what it must, and ends cleanly."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from effnet_lit.cli import app
from effnet_lit.deploy import serve
from effnet_lit.deploy.export import to_onnx
from effnet_lit.model.modelfile import Header, ImageClassifier, write_model
from effnet_lit.model.zoo import create_model, last_layer

NAMES = ["blue", "green", "red"]
HOST = "127.0.0.1"
# Runs `effnet serve` where no import of torch succeeds.
SCRIPT = "import sys; sys.modules['torch'] = None; {before}from effnet_lit.cli import app; app()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file and its export."""
    torch.manual_seed(0)
    network = create_model("mobilenet_v3_small", 3).eval()
    with torch.no_grad():  # or every answer is the same
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(1, 3)
        last_layer(network).weight.mul_(10_000)
    header = Header(network.architecture, NAMES, 64, 64, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    header.calibration["abstain_below"] = 0.9
    classifier = ImageClassifier(network, header).eval()
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "model.safetensors", classifier)
    onnx.save(to_onnx(classifier), folder / "model.onnx")
    return folder


@contextmanager
def service(model: Path, *options: str, before: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service in a process of its own, and its port; ``before`` is code that runs in it first."""
    command = [sys.executable, "-c", SCRIPT.format(before=before), "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout
            line = next(line for line in running.stdout if line.startswith("Serve"))
            yield running, int(re.findall(r":(\d+) ", line)[0])
        finally:
            running.kill()


@pytest.fixture(scope="module")
def port(model: Path) -> Iterator[int]:
    with service(model) as (_, port):
        yield port


def connected(port: int) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(HOST, port, timeout=60))


def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    with connected(port) as connection:
        connection.request("GET" if body is None else "POST", path, body, headers)
        with connection.getresponse() as answer:
            return answer.status, json.loads(answer.read())


def image_file(size: tuple[int, int], kind: str = "PNG", seed: int = 0) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def test_answers_are_those_of_predict(model: Path, port: int, tmp_path: Path) -> None:
    for seed, kind in enumerate(["PNG", "JPEG", "GIF", "WEBP"]):
        file = tmp_path / f"photo.{kind.lower()}"
        file.write_bytes(image_file((130, 70), kind, seed))
        done = CliRunner().invoke(app, ["predict", str(model), str(file), "--json", "--top", "2"])
        expected = json.loads(done.stdout)
        status, found = ask(port, "/predict?top=2", file.read_bytes())
        assert status == 200 and list(found) == [key for key in expected if key != "path"]
        assert (found["class"], found["sure"], found["unlike"]) == (expected["class"], False, False)
        assert found["probability"] == pytest.approx(expected["probability"], abs=1e-4)
        assert [one["class"] for one in found["top"]] == [one["class"] for one in expected["top"]]


def test_many_at_once_get_their_own_answers(port: int) -> None:
    files = [image_file((64, 64), seed=seed) for seed in range(40)]
    single = [ask(port, "/predict", file)[1] for file in files]
    assert len({answer["probability"] for answer in single}) == 40
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda file: ask(port, "/predict", file)[1], files))
    assert [answer["class"] for answer in together] == [answer["class"] for answer in single]
    values = [[answer["probability"] for answer in answers] for answers in (together, single)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)  # other numbers of threads add in another order


def test_it_says_what_it_serves(port: int) -> None:
    assert ask(port, "/health") == (200, {"status": "ok"})
    status, facts = ask(port, "/model")
    assert status == 200 and facts["classes"] == NAMES and facts["eval_size"] == 64
    described = ask(port, "/openapi.json")[1]["paths"]["/predict"]["post"]
    assert "image/*" in described["requestBody"]["content"]


def wide(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "empty file"),
        (b"no image", {}, 400, "not an image"),
        (image_file((64, 64))[:2000], {}, 400, "truncated"),
        (wide(10_000, 5_001), {}, 400, "over 50 megapixels"),
        (wide(1, 70_000), {}, 400, "over 65,535 on a side"),
        (b"x" * (serve.LARGEST + 1), {}, 413, "larger than 20 MB"),
        (b"--x\r\n" * 10**6, {"Content-Type": "multipart/form-data; boundary=x"}, 415, "--data-binary"),
    ],
    ids=["empty", "text", "truncated", "pixels", "long", "bytes", "form"],
)
def test_what_is_no_image_gets_its_reason(
    port: int, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    found = ask(port, "/predict", body, **headers)
    assert found[0] == status and words in str(found[1]["detail"])
    assert ask(port, "/predict", image_file((64, 64)))[0] == 200


def test_a_body_without_a_length_is_cut_off_too(port: int) -> None:
    parts = [b"x" * 2**20] * (serve.LARGEST // 2**20 + 1)
    assert ask(port, "/predict", iter(parts))[0] == 413


def test_what_was_held_is_let_go(model: Path) -> None:
    """One image at once, and bytes for one and a half: answers, refusals and clients that leave may take no place."""
    image = image_file((64, 64))
    limits = f"serve.MOST_WAITING = 0; serve.MOST_HELD = {len(image) * 3 // 2}"
    before = f"from effnet_lit.deploy import serve; {limits}; "
    with service(model, "--threads", "1", before=before) as (_, port):
        for body in (image, b"no image", image, image[:2000], image):
            assert ask(port, "/predict", body)[0] == (200 if body == image else 400)
        with socket.create_connection((HOST, port)) as leaving:
            leaving.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + image)
            time.sleep(0.5)
            assert ask(port, "/predict", image)[0] == 503
        time.sleep(0.5)
        assert ask(port, "/predict", image)[0] == 200


@pytest.mark.parametrize(("limit", "value"), [("MOST_WAITING", -1000), ("MOST_HELD", 3), ("PATIENCE", 0.2)])
def test_too_much_at_once_is_told_to_come_back(model: Path, limit: str, value: float) -> None:
    """With a limit so low that one request meets it."""
    with service(model, before=f"from effnet_lit.deploy import serve; serve.{limit} = {value}; ") as (_, port):
        for _ in range(2):
            with connected(port) as connection:
                connection.putrequest("POST", "/predict")
                connection.putheader("Content-Length", "5")
                connection.endheaders(b"begu" if limit == "PATIENCE" else b"begun")
                with connection.getresponse() as answer:
                    assert answer.status == (408 if limit == "PATIENCE" else 503)
                    assert (answer.getheader("Retry-After") == "1") == (answer.status == 503)
        assert ask(port, "/health")[0] == 200


def test_fewer_pixels_may_be_allowed(model: Path) -> None:
    with service(model, "--megapixels", "0.01", "--threads", "1") as (_, port):
        assert ask(port, "/predict", image_file((100, 100)))[0] == 200
        assert ask(port, "/predict", image_file((101, 100)))[1] == {
            "detail": "too large: 101 x 100 pixels, over 0.01 megapixels"
        }


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_after_the_last_answer(model: Path, number: signal.Signals) -> None:
    body = image_file((64, 64))
    with service(model) as (running, port), connected(port) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:100])
        time.sleep(1)
        running.send_signal(number)
        time.sleep(0.5)
        connection.send(body[100:])
        with connection.getresponse() as answer:
            assert answer.status == 200
        assert running.wait(timeout=20) in (0, -signal.SIGTERM)


def test_mistakes_are_one_sentence(model: Path, tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
        return done.stderr

    assert "gone does not exist" in told(tmp_path / "gone")
    (tmp_path / "model.safetensors").touch()
    assert f"effnet export {tmp_path}" in told(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"text")
    assert "is no ONNX file" in told(tmp_path)
    other = onnx.load(model / "model.onnx")
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    assert "was not written by effnet export" in told(tmp_path / "other.onnx")
    with socket.create_server((HOST, 0)) as taken:
        assert "cannot be used" in told(model, "--port", taken.getsockname()[1])
    assert "cannot be used" in told(model, "--host", "no.such.host.invalid")


def test_without_the_extra_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(app, ["serve", str(model)])
    assert done.exit_code == 2
    assert done.stderr == 'Error: Serving needs fastapi: pip install "effnet_lit[serve]"\n'
