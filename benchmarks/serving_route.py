"""A route in a thread of Starlette's pool, as FastAPI's documentation has it for work that blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import Body, FastAPI


def serve(answer: Callable[[bytes], dict[str, Any]], port: int) -> None:
    """POST /predict until the process ends."""
    app = FastAPI()

    @app.post("/predict")
    def predict(content: bytes = Body(media_type="image/jpeg")) -> dict[str, Any]:
        return answer(content)

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False)
