"""The audit as one self-contained HTML page: what is wrong with the images, shown with them."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

SEVERITIES = {"error": "left out of training", "warning": "worth acting on", "note": "good to know"}
ITEMS_SHOWN = 24  # of one finding
PATHS_SHOWN = 4  # of one item: a group of duplicates may have hundreds
LINES_SHOWN = 500  # of the files left out or ignored
ROWS_SHOWN = 20  # classes; more are folded
THUMBNAIL_BYTES = 1_600_000  # of JPEG in one page, before base64 makes them a third more
# longest side in pixels, JPEG quality
THUMBNAILS = ((160, 80), (160, 60), (128, 50), (96, 45), (72, 40), (56, 30), (40, 20))


class Picture(NamedTuple):
    """One image as the cache holds it, and the size it had."""

    pixels: np.ndarray  # uint8 (S, S, 3), squished to a square
    width: int
    height: int


class Thumbnail(NamedTuple):
    """A JPEG as a data URI, the size to draw it at and the size of the original."""

    number: int
    uri: str
    size: tuple[int, int]
    original: tuple[int, int]


def write_audit_page(path: Path, findings: dict[str, Any], picture: Callable[[str], Picture | None]) -> None:
    """Write the page beside ``path`` first, then rename; ``picture`` gives None for an image that cannot be shown."""
    page = render(findings, picture)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    # a file name that is not UTF-8 reaches us as lone surrogates, which the page spells out
    unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


def render(findings: dict[str, Any], picture: Callable[[str], Picture | None]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = "{:,}".format
    largest_first = sorted(findings["classes"].items(), key=lambda row: -sum(row[1].values()))
    severities = [finding["severity"] for finding in findings["findings"]]
    return environment.get_template("audit_page.html.j2").render(
        audit=findings,
        verdict=verdict(findings["images"], severities),
        severities=[(name, severities.count(name), meaning) for name, meaning in SEVERITIES.items()],
        classes=[(name, counts, sum(counts.values())) for name, counts in largest_first],
        thumbnails=thumbnails(shown_paths(findings["findings"]), picture),
        items_shown=ITEMS_SHOWN,
        paths_shown=PATHS_SHOWN,
        lines_shown=LINES_SHOWN,
        rows_shown=ROWS_SHOWN,
    )


def verdict(images: dict[str, int], severities: Sequence[str]) -> tuple[str, str]:
    """Two sentences: how many images, and whether anything has to be done."""
    used = "all" if images["used"] == images["found"] else f"{images['used']:,}"
    counts = f"{images['found']:,} {'image' if images['found'] == 1 else 'images'} found, {used} used."
    needed = sum(severity != "note" for severity in severities)
    if not needed:
        return counts, "Nothing to do."
    return counts, "1 finding needs you." if needed == 1 else f"{needed} findings need you."


def shown_paths(findings: Sequence[dict[str, Any]]) -> list[str]:
    """Every path that the page shows with an image, once, in the order of the page."""
    items = (item for finding in findings for item in finding["items"][:ITEMS_SHOWN])
    return list(dict.fromkeys(path for item in items for path in item["paths"][:PATHS_SHOWN]))


def thumbnails(paths: Sequence[str], picture: Callable[[str], Picture | None]) -> dict[str, Thumbnail]:
    """Thumbnails of the images that can be shown, all within ``THUMBNAIL_BYTES``: the more there are, the coarser."""
    found = {}
    for number, path in enumerate(paths):
        shown = picture(path)
        if shown is not None:
            uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(shown, THUMBNAIL_BYTES // len(paths))).decode()
            original = (shown.width, shown.height)
            found[path] = Thumbnail(number, uri, fitted(*original, THUMBNAILS[0][0]), original)
    return found


def jpeg(picture: Picture, budget: int) -> bytes:
    """The best JPEG of at most ``budget`` bytes, or the coarsest there is."""
    image = Image.fromarray(picture.pixels)
    content = b""
    for side, quality in THUMBNAILS:
        stream = BytesIO()
        image = image.resize(fitted(picture.width, picture.height, side), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG", quality=quality, optimize=True)
        content = stream.getvalue()
        if len(content) <= budget:
            break
    return content


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with the longest side at ``side`` and the same proportions, at least one pixel each."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
