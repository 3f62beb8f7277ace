"""`effnet try`: a page on this machine where one drops images and sees answers."""

from __future__ import annotations

import json
import webbrowser
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from effnet_lit.config import UserError
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.deploy.predict import answer, is_sure
from effnet_lit.deploy.ranking import likeliest
from effnet_lit.evaluation.gradcam import heat_maps, overlay
from effnet_lit.evaluation.report import encoded
from effnet_lit.model.modelfile import ImageClassifier, load_model

HOST = "127.0.0.1"  # nobody else's machine
LARGEST = 100 * 2**20  # bytes of an image
TOP = 5
PAGE = Path(__file__).parent / "deploy" / "try.html"


def try_model(model: Path, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    server = make_server(load_model(model), port)
    place = f"http://{HOST}:{server.server_address[1]}/"
    print(f"Open     {place} (only from this machine; Ctrl-C ends it)", flush=True)
    if browser:
        webbrowser.open(place)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def make_server(classifier: ImageClassifier, port: int) -> ThreadingHTTPServer:
    """Listening, not yet answering; port 0 takes any that is free."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(Requests, classifier, Lock()))
    except OSError as error:
        raise UserError(f"Port {port} cannot be used ({error.strerror}); give another with --port.") from error


class Requests(BaseHTTPRequestHandler):
    """GET / is the page; POST /predict takes an image file's bytes and gives JSON."""

    def __init__(self, classifier: ImageClassifier, one_at_a_time: Lock, *args: Any) -> None:
        self.classifier, self.one_at_a_time = classifier, one_at_a_time
        super().__init__(*args)

    def do_GET(self) -> None:
        if not self.from_here():
            return
        if self.path == "/":
            self.send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
        else:
            self.send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")

    def do_POST(self) -> None:
        if not self.from_here():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/predict" or not 0 < length <= LARGEST:
            self.send(HTTPStatus.BAD_REQUEST, "text/plain", b"POST an image of up to 100 MB to /predict")
            return
        content = self.rfile.read(length)
        with self.one_at_a_time:
            found = answer_to(self.classifier, content)
        self.send(HTTPStatus.OK, "application/json", json.dumps(found).encode())

    def from_here(self) -> bool:
        """Whether the page that asks is ours: another site's page may know this address, but not send this name."""
        port = self.server.server_address[1]  # type: ignore[index]
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self.send(HTTPStatus.FORBIDDEN, "text/plain", b"only from this machine")
        return False

    def send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the screen belongs to the user."""


def answer_to(classifier: ImageClassifier, content: bytes) -> dict[str, Any]:
    """What the page shows of an image file: classes, whether that is sure, the image with what spoke for the answer."""
    header = classifier.header
    try:
        image = decode(content, header.eval_size, header.resize)
    except DecodeError as error:
        return {"error": str(error)}
    ((probabilities, unlike),) = answer(classifier, [image])
    try:
        (heat,) = heat_maps(classifier, image[None], np.array([probabilities.argmax()]))
        shown = encoded(overlay(image, heat))
    except UserError:
        shown = ""
    return {
        "top": [
            {"class": name, "probability": value} for name, value in likeliest(probabilities, header.class_names, TOP)
        ],
        "unlike": unlike,
        "sure": is_sure(float(probabilities.max()), header),
        "image": encoded(image),
        "heat": shown,
    }
