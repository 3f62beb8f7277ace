"""The same network behind LitServe, with a worker a core: ``python -m benchmarks.serving_litserve MODEL PORT``."""

import sys
from base64 import b64decode
from typing import Any

from litserve import LitAPI, LitServer  # pyright: ignore[reportMissingImports]

from benchmarks.serving_torch import Usual
from benchmarks.timing import cores


class Api(LitAPI):
    """Bytes in, the class out."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    def setup(self, device: str) -> None:
        """In each worker."""
        self.usual = Usual(self.model, 1)

    def decode_request(self, request, **_: Any) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """LitServe takes JSON; bytes stand in it in base64."""
        return b64decode(request["image"])

    def predict(self, x: bytes, **_: Any) -> dict[str, Any]:
        """One image."""
        return self.usual.answer(x)

    def encode_response(self, output: dict[str, Any], **_: Any) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    server = LitServer(Api(sys.argv[1]), accelerator="cpu", workers_per_device=cores())
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
