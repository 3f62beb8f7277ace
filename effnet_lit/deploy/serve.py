"""An exported model behind HTTP: an image file in, an answer out, and a limit to all that a stranger may send.

Nothing here imports PyTorch: the process takes a quarter of the memory, and a server needs only a few small packages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from onnxruntime import InferenceSession
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from effnet_lit import __version__
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.deploy.onnx_file import OnnxModel, ask
from effnet_lit.deploy.ranking import likeliest

LARGEST = 20 * 2**20  # bytes of an image file
MOST_HELD = 512 * 2**20  # bytes of all image files that are here at once
MOST_WAITING = 64  # images that have arrived; others are told to come back
PATIENCE = 30.0  # seconds that an image may take to arrive
FORM = "multipart/form-data"  # what HTML forms send, the image wrapped in text
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Class(BaseModel):
    """A class and its probability."""

    name: str = Field(serialization_alias="class")
    probability: float


class Answer(Class):
    """What the image shows: as ``effnet predict --json``."""

    sure: bool
    unlike: bool
    top: list[Class]


class Facts(BaseModel):
    """What is served."""

    classes: list[str]
    eval_size: int
    metrics: dict[str, Any]
    versions: dict[str, str]


class Load:
    """What the requests of this moment hold."""

    def __init__(self, threads: int) -> None:
        self.bytes = self.images = 0
        self.most_images = threads + MOST_WAITING

    async def receive(self, request: Request, content: bytearray) -> None:
        """Add the body to ``content`` and count it; whoever called this subtracts it.

        Raises:
            HTTPException: it is a form, too large, does not come to an end, or too much is here.
        """
        must_fit(int(request.headers.get("content-length", 0)))
        try:
            async with asyncio.timeout(PATIENCE):
                async for part in request.stream():
                    content += part
                    self.bytes += len(part)
                    must_fit(len(content))
                    come_back_if(self.bytes > MOST_HELD)
        except TimeoutError as error:
            raise HTTPException(408, f"the image did not arrive within {PATIENCE:.0f} s") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the image did not arrive") from error
        if request.headers.get("content-type", "").startswith(FORM):  # not before: whoever still sends reads no answer
            raise HTTPException(415, "send the image file itself as the body: curl --data-binary @photo.jpg")

    @contextmanager
    def image(self) -> Iterator[None]:
        """One more that waits or is computed.

        Raises:
            HTTPException: too many are.
        """
        come_back_if(self.images >= self.most_images)
        self.images += 1
        try:
            yield
        finally:
            self.images -= 1


def make_app(model: OnnxModel, threads: int, most_pixels: int) -> FastAPI:
    """POST /predict, GET /model and GET /health; ``threads`` images of at most so many pixels are decoded and computed
    at once."""
    app = FastAPI(title="effnet_lit", version=__version__, redoc_url=None)
    pool, load = ThreadPoolExecutor(threads), Load(threads)

    @app.post("/predict", openapi_extra=BODY)
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 3) -> Answer:
        """Name what an image shows; the body is the image file."""
        content = bytearray()
        try:
            await load.receive(request, content)
            with load.image():
                session = model.alone if load.images == 1 else model.beside
                work = answer_to, model, session, bytes(content), most_pixels, top
                return await asyncio.get_running_loop().run_in_executor(pool, *work)
        finally:
            load.bytes -= len(content)

    @app.get("/model")
    async def facts() -> Facts:
        """Classes, size, held-out figures and versions, as the model file tells them."""
        told = {key: model.header[key] for key in ("eval_size", "metrics", "versions")}
        return Facts(classes=model.class_names, **told)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it is there."""
        return {"status": "ok"}

    return app


def come_back_if(busy: bool) -> None:
    """Refuse what cannot be held beside all else.

    Raises:
        HTTPException: it is busy.
    """
    if busy:
        raise HTTPException(503, "too many requests at once; come back", {"Retry-After": "1"})


def must_fit(size: int) -> None:
    """No file over the limit.

    Raises:
        HTTPException: it is.
    """
    if size > LARGEST:
        raise HTTPException(413, f"the file is larger than {LARGEST // 2**20} MB")


def answer_to(model: OnnxModel, session: InferenceSession, content: bytes, most_pixels: int, top: int) -> Answer:
    """About an image file.

    Raises:
        HTTPException: it cannot be read as an image, and why.
    """
    try:
        image = decode(content, model.size, model.resize, most_pixels)
    except DecodeError as error:
        raise HTTPException(400, str(error)) from error
    found = ask(session, image)
    best = likeliest(found.probabilities, model.class_names, top)
    classes = [Class(name=name, probability=probability) for name, probability in best]
    return Answer(**classes[0].model_dump(), sure=found.sure, unlike=found.unlike, top=classes)
