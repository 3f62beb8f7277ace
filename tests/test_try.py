"""The local page: answers, refuses what is not from here, and survives bad files."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from effnet_lit.config import UserError
from effnet_lit.deploy.predict import predict
from effnet_lit.model.modelfile import Header, ImageClassifier
from effnet_lit.model.zoo import create_model
from effnet_lit.try_command import HOST, make_server


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    network = create_model("efficientnet_b0", 3)
    header = Header(network.architecture, ["blue", "green", "red"], 64, 64, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    header.calibration["abstain_below"] = 0.9
    return ImageClassifier(network, header).eval()


@pytest.fixture(scope="module")
def server(classifier: ImageClassifier) -> Iterator[ThreadingHTTPServer]:
    found = make_server(classifier, 0)
    Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def ask(server: ThreadingHTTPServer, method: str, path: str, body: bytes = b"", host: str = "") -> tuple[int, bytes]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, body or None, {"Host": host or f"{HOST}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_an_image(server: ThreadingHTTPServer, classifier: ImageClassifier, class_folder: Path) -> None:
    image = class_folder / "red" / "00.png"
    status, content = ask(server, "POST", "/predict", image.read_bytes())
    found = json.loads(content)
    (expected,) = predict(classifier, [image])
    assert status == 200 and found["sure"] is False
    assert [(one["class"], one["probability"]) for one in found["top"]] == expected.top(["blue", "green", "red"], 3)
    assert found["image"].startswith("data:image/jpeg") and found["heat"].startswith("data:image/jpeg")


def test_the_page_is_self_contained(server: ThreadingHTTPServer) -> None:
    status, content = ask(server, "GET", "/")
    assert (
        status == 200 and b"default-src 'none'" in content and b"http://" not in content and b"https://" not in content
    )


def test_what_is_refused(server: ThreadingHTTPServer) -> None:
    assert "not" in json.loads(ask(server, "POST", "/predict", b"no image")[1])["error"]
    assert ask(server, "POST", "/predict")[0] == 400
    assert ask(server, "GET", "/../config.py")[0] == 404
    assert ask(server, "POST", "/predict", b"x", host="evil.example")[0] == 403
    assert ask(server, "GET", "/", host="evil.example")[0] == 403
    assert ask(server, "GET", "/")[0] == 200


def test_a_taken_port(server: ThreadingHTTPServer, classifier: ImageClassifier) -> None:
    with pytest.raises(UserError, match="--port"):
        make_server(classifier, server.server_address[1])
