"""Images as ``effnet predict`` sees them beside the same ones as an app seems to give them, for the eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from effnet_lit.data.augment_sheet import APART, BLACK, GAP, GREY, LINE, MARGIN, drawn_side, scaled, write
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.deploy.compare import Asked
from effnet_lit.deploy.mistakes import Preparation
from effnet_lit.deploy.preparation import Photograph
from effnet_lit.model.modelfile import ImageClassifier

COLUMNS = 6  # images: those whose answers are furthest apart
LETTERS = 20  # of a class name


def write_compare_sheet(path: Path, classifier: ImageClassifier, asked: Sequence[Asked], way: Preparation) -> None:
    """Write a PNG: above some images as they should be, below as ``way`` makes them. OSError passes through."""
    header = classifier.header
    shown = list(islice(prepared(classifier, asked, way), COLUMNS))
    side = drawn_side(header.eval_size)
    tops = [MARGIN, MARGIN + 2 * LINE + side + APART]
    width, height = 2 * MARGIN + (side + GAP) * len(shown) - GAP, tops[1] + 2 * LINE + side + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for top, text in zip(tops, ("effnet predict", "the app, as it seems"), strict=True):
        write(draw, MARGIN, top, text, BLACK, 18)
    for column, (item, right, given) in enumerate(shown):
        left = MARGIN + (side + GAP) * column
        for top, pixels, label in zip(tops, (right, given), (int(item.ours.argmax()), item.app.label), strict=True):
            write(draw, left, top + LINE, shortened(header.class_names[label]), GREY, 18)
            sheet.paste(scaled(pixels, side), (left, top + 2 * LINE))
    sheet.save(path, "PNG")


def prepared(
    classifier: ImageClassifier, asked: Sequence[Asked], way: Preparation
) -> Iterator[tuple[Asked, np.ndarray, np.ndarray]]:
    """Images as they should be and as ``way`` makes them, those furthest apart first; what cannot be opened is left
    out."""
    size, resize = classifier.header.eval_size, classifier.header.resize
    for item in sorted(asked, key=lambda item: -item.apart):
        try:
            content = item.read()
            yield item, decode(content, size, resize), seen(Photograph(content, classifier), way)
        except (DecodeError, OSError):
            continue


def shortened(name: str) -> str:
    """To a column's width."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."


def seen(photograph: Photograph, way: Preparation) -> np.ndarray:
    """The image that the network takes such an input for, uint8 (S, S, 3)."""
    pixels = (photograph.network_input(way) * photograph.std + photograph.mean).clamp(0, 1)
    return (pixels * 255).round().byte().permute(1, 2, 0).numpy()
