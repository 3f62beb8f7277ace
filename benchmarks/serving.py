"""Answers per second of one B0 behind HTTP, ours and others': ``python -m benchmarks.serving --help``."""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import why_not
from benchmarks.timing import cores, interleave, machine, spread
from effnet_lit.deploy.export import to_onnx
from effnet_lit.deploy.predict import find_images
from effnet_lit.model.modelfile import Header, ImageClassifier, write_model
from effnet_lit.model.zoo import create_model

RESULTS = Path(__file__).parent / "results" / "serving.json"
FILES = 16  # photographs that clients send in turn
PHONE = (4032, 3024)
KINDS = ("as they are", "12 megapixels")
CLIENTS = (1, 8)
PATIENCE = 120  # seconds to start
# Faster parts that LitServe has installed here; who installs effnet_lit[serve] does not have them.
OURS = "import sys; sys.modules.update(uvloop=None, httptools=None); from effnet_lit.cli import app; app()"


class Contender(NamedTuple):
    """How a server is started, from a model's folder and a port, and how a photograph is sent to it."""

    command: Callable[[Path, int], list[str]]
    content_type: str
    body: Callable[[bytes], bytes]
    needs: str = "fastapi"


def ours(folder: Path, port: int) -> list[str]:
    """``effnet serve``, which writes a line for each request, as the others do not."""
    return ["-c", OURS, "serve", str(folder), "--port", str(port)]


def theirs(module: str, file: str, *more: str) -> Contender:
    """A module of this folder, given the model file, the port and more."""
    return Contender(
        lambda folder, port: ["-m", f"benchmarks.{module}", str(folder / file), str(port), *more], "image/jpeg", bytes
    )


def in_json(content: bytes) -> bytes:
    """As LitServe takes bytes."""
    return json.dumps({"image": b64encode(content).decode()}).encode()


CONTENDERS = {
    "effnet serve": Contender(ours, "image/jpeg", bytes),
    "FastAPI, model.onnx by the README's lines": theirs("serving_onnx", "model.onnx"),
    "FastAPI, PyTorch": theirs("serving_torch", "model.safetensors", str(cores())),
    "FastAPI, PyTorch with one thread an image": theirs("serving_torch", "model.safetensors", "1"),
    "LitServe, PyTorch": theirs("serving_litserve", "model.safetensors")._replace(
        content_type="application/json", body=in_json, needs="litserve"
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    here = machine()
    kinds = photographs(options.data)
    with tempfile.TemporaryDirectory(prefix="effnet-serving-") as place:
        folder = Path(place)
        write_b0(folder)
        absent = {name: why_not(contender.needs) for name, contender in CONTENDERS.items()}
        tasks = {
            name: partial(measure, contender, folder, kinds, options.seconds)
            for name, contender in CONTENDERS.items()
            if not absent[name]
        }
        found = interleave(tasks, options.rounds)
    result = {"machine": here, "data": options.data.name, "seconds": options.seconds, "rounds": found}
    result["absent"] = {name: reason for name, reason in absent.items() if reason}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Answers per second over HTTP.")
    of.add_argument("--data", type=Path, required=True, help="a folder of photographs; only read")
    of.add_argument("--rounds", type=int, default=3, help="repeats of everything, interleaved (default 3)")
    of.add_argument("--seconds", type=float, default=4, help="of asking, each time (default 4)")
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def photographs(data: Path) -> dict[str, list[bytes]]:
    """Files as they are, and the same enlarged to what a phone takes."""
    files = find_images([str(data)])
    kinds: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for file in files[:: max(1, len(files) // FILES)][:FILES]:
        kinds[KINDS[0]].append(file.read_bytes())
        content = io.BytesIO()
        Image.open(file).convert("RGB").resize(PHONE).save(content, "JPEG", quality=90)
        kinds[KINDS[1]].append(content.getvalue())
    return kinds


def write_b0(folder: Path) -> None:
    """A B0 of 6 classes at 256 px with random weights, as model file and exported."""
    network = create_model("efficientnet_b0", 6).eval()
    header = Header(network.architecture, list("abcdef"), 224, 256, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    classifier = ImageClassifier(network, header).eval()
    write_model(folder / "model.safetensors", classifier)
    onnx.save(to_onnx(classifier), folder / "model.onnx")


def measure(contender: Contender, folder: Path, kinds: dict[str, list[bytes]], seconds: float) -> dict[str, Any]:
    """One start of a server: seconds until its first answer, memory, and rates and waits for each kind and number of
    clients."""
    bodies = {kind: [contender.body(content) for content in contents] for kind, contents in kinds.items()}
    with started(contender, folder) as (port, group):
        begin = time.perf_counter()
        first = bodies[KINDS[0]][0]
        while not answered(port, contender.content_type, first):
            if time.perf_counter() - begin > PATIENCE:
                raise TimeoutError("the server did not start")
            time.sleep(0.1)
        result: dict[str, Any] = {"start_s": time.perf_counter() - begin}
        for kind, contents in bodies.items():
            for clients in CLIENTS:
                ask_for(port, contender.content_type, contents, clients, 1.0)
                waits, took = ask_for(port, contender.content_type, contents, clients, seconds)
                result[f"{kind}, {clients} at once"] = {
                    "answers_per_s": len(waits) / took,
                    "median_s": statistics.median(waits),
                    "p95_s": sorted(waits)[int(0.95 * (len(waits) - 1))],
                }
        result["memory_gb"] = memory(group) / 1e9
    return result


@contextmanager
def started(contender: Contender, folder: Path) -> Iterator[tuple[int, int]]:
    """A free port and the process group of the server that will listen there; it is killed afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [sys.executable, *contender.command(folder, port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield port, running.pid
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def answered(port: int, content_type: str, body: bytes) -> bool:
    """Whether the server is there and gives an answer."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            return ask(connection, content_type, body) == 200
    except OSError:
        return False


def ask(connection: http.client.HTTPConnection, content_type: str, body: bytes) -> int:
    """The status of one answer, read whole."""
    connection.request("POST", "/predict", body, {"Content-Type": content_type})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def ask_for(
    port: int, content_type: str, bodies: list[bytes], clients: int, seconds: float
) -> tuple[list[float], float]:
    """How long each answer took while so many clients asked for so long, and how long that was in the end."""
    begin = time.perf_counter()

    def client(number: int) -> list[float]:
        waits = []
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            while (start := time.perf_counter()) < begin + seconds:
                status = ask(connection, content_type, bodies[(number + len(waits)) % len(bodies)])
                assert status == 200, status
                waits.append(time.perf_counter() - start)
        return waits

    with ThreadPoolExecutor(clients) as pool:
        waits = [wait for found in pool.map(client, range(clients)) for wait in found]
    return waits, time.perf_counter() - begin


def memory(group: int) -> int:
    """Bytes that a process group has in memory, shared pages once; Linux only."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
                total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def show(result: dict[str, Any], console: Console) -> None:
    """Medians over the rounds."""
    asked = [f"{kind}, {clients} at once" for kind in KINDS for clients in CLIENTS]
    table = Table("answers/s (95% within, ms)", *asked, "memory, GB", "start, s")
    for name, rounds in result["rounds"].items():
        cells = []
        for key in asked:
            rate = spread([found[key]["answers_per_s"] for found in rounds])
            slow = statistics.median(found[key]["p95_s"] for found in rounds)
            cells.append(f"{rate.text('.1f')} ({1e3 * slow:.0f})")
        others = [spread([found[key] for found in rounds]) for key in ("memory_gb", "start_s")]
        table.add_row(name, *cells, others[0].text(".2f"), others[1].text(".1f"))
    for name, reason in result["absent"].items():
        table.add_row(name, reason)
    console.print(table)


if __name__ == "__main__":
    main()
