"""The pages as a browser shows them: no complaint, no request, nothing wider than the screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import photos
import pytest
from PIL import Image

from effnet_lit import compose, fit
from effnet_lit.model.modelfile import load_model
from effnet_lit.try_command import HOST, make_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LONG = "a_class_with_a_name_that_no_narrow_screen_can_hold_in_one_line"
NASTY = "<b onclick=alert(1)>&\"' $x^$"
WIDTHS = {"desktop": 1280, "phone": 360}
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in the dev extra)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with planted problems: uneven classes, copies, a wrong label, names that are markup or very long."""
    folder = tmp_path_factory.mktemp("data") / "images"
    photos.photo_folder(folder)
    (folder / "china").rename(folder / NASTY)
    (folder / "flower").rename(folder / LONG)
    (folder / "rare").mkdir()
    for number, tile in enumerate(photos.tiles("china")[:12]):
        tile.rotate(180).save(folder / "rare" / f"{number}.jpg", quality=90)
    for path in sorted((folder / NASTY).iterdir())[:6]:
        Image.open(path).save(path.with_name(f"{path.stem} again.jpg"), quality=60)
    shutil.copy(folder / "rare" / "0.jpg", folder / LONG / "wrong.jpg")
    settings = ("limits=off", "epochs=3", "batch_size=16", "data.image_size=32", "model.weights=none")
    return fit(
        compose(f"data.dir={folder}", "augmentation=none", *settings), tmp_path_factory.mktemp("runs") / "run"
    ).run_dir


class Watched:
    """A page, everything it complained of, and every address it asked for."""

    def __init__(self, browser: Any, width: int, scheme: str) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str) -> Any:
        self.page.goto(address, wait_until="load")
        self.asked.remove(address)
        return self.page

    @property
    def wider(self) -> int:
        """Pixels that stick out to the right."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    @property
    def outside(self) -> list[str]:
        return [address for address in self.asked if not address.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report.html", "audit.html"])
def test_a_page_of_a_run_with_problems(browser: Any, run_dir: Path, name: str, width: str, scheme: str) -> None:
    watched = Watched(browser, WIDTHS[width], scheme)
    page = watched.open((run_dir / name).as_uri())
    for details in page.query_selector_all("details"):
        details.evaluate("one => one.open = true")
    assert watched.complaints == [] and watched.outside == []
    assert watched.wider <= 0
    every = "[...document.querySelectorAll('img, svg image')]"
    pictures = page.evaluate(f"{every}.map(one => one.naturalWidth ?? one.getAttribute('href').length)")
    assert len(pictures) > 10 and all(pictures)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(value) for value in back.strip("rgb()").split(",")[:3]]) > 128
    assert light == (scheme == "light")
    page.close()


def test_a_report_prints(browser: Any, run_dir: Path) -> None:
    page = Watched(browser, 1280, "dark").open((run_dir / "report.html").as_uri())
    assert len(page.pdf(format="A4").split(b"/Type /Page\n")) > 1
    page.close()


@pytest.fixture(scope="module")
def address(run_dir: Path) -> Iterator[str]:
    server: ThreadingHTTPServer = make_server(load_model(run_dir / "model.safetensors"), 0)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("width", WIDTHS)
def test_images_are_tried(browser: Any, run_dir: Path, address: str, tmp_path: Path, width: str) -> None:
    photos.tiles("flower")[0].save(tmp_path / "flower.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    watched = Watched(browser, WIDTHS[width], "light")
    page = watched.open(address)
    page.set_input_files("#files", [str(tmp_path / "flower.jpg"), str(tmp_path / "broken.jpg")])
    page.wait_for_selector("article:nth-of-type(2) h2")
    page.wait_for_selector("article:nth-of-type(1) h2")
    titles = [title.inner_text() for title in page.query_selector_all("article h2")]
    assert titles[0] == "Not read"
    assert len(page.query_selector_all(".row")) == 3 and len(page.query_selector_all("article img")) == 2
    shares = [float(span.inner_text().rstrip("%")) for span in page.query_selector_all(".row span")]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
    assert watched.complaints == [] and watched.wider <= 0
    assert {one for one in watched.outside if one.startswith(address)} == set(watched.outside)
    page.close()
