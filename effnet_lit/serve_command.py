"""`effnet serve`: an exported model as an HTTP service."""

from __future__ import annotations

import socket
from pathlib import Path

from effnet_lit.commands import must_be_installed
from effnet_lit.config import UserError
from effnet_lit.machine import cores

GRACE = 10  # seconds that requests have to end after SIGTERM


def serve_model(model: Path, host: str, port: int, threads: int, megapixels: float) -> None:
    """Answer until Ctrl-C or SIGTERM; ``threads`` 0 are as many as there are cores.

    Raises:
        UserError: no exported model, the extra is not installed, or the address cannot be used.
    """
    must_be_installed("Serving", "serve", "fastapi", "uvicorn", "onnxruntime")
    import uvicorn

    from effnet_lit.deploy.onnx_file import OnnxModel, exported_file
    from effnet_lit.deploy.serve import make_app

    path, threads = exported_file(model), threads or cores()
    loaded = OnnxModel(path, threads)
    with listening(host, port) as place:
        shown = f"http://{f'[{host}]' if ':' in host else host}:{place.getsockname()[1]}"
        print(f"Model    {path}, {len(loaded.class_names)} classes, {threads} images at once")
        print(f"Serve    {shown} (Ctrl-C ends it)\nAsk      curl --data-binary @photo.jpg {shown}/predict", flush=True)
        application = make_app(loaded, threads, round(megapixels * 1e6))
        server = uvicorn.Server(uvicorn.Config(application, timeout_graceful_shutdown=GRACE))
        try:
            server.run(sockets=[place])
        except KeyboardInterrupt:  # after the last answer
            print()


def listening(host: str, port: int) -> socket.socket:
    """A socket whose answers leave at once: asyncio sees to that only where it has made the socket itself, and clients
    would wait 40 ms for each.

    Raises:
        UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"{host}, port {port} cannot be used ({error.strerror}); give others with --host and --port."
        ) from error
    place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return place
