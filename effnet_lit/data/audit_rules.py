"""What is judged of single images, from their facts alone: one row a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

EXTENSIONS = {  # format -> the extensions it goes by; others are not judged
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
    "HEIF": ("heic", "heif"),
}
BLANK_CONTRAST = 3.0  # of 255
GREY_COLOUR = 1.0  # of 255, between the strongest and the weakest channel


@dataclass(frozen=True)
class Rule:
    """A judgement of single images from their facts: which, with what figure."""

    kind: str
    severity: str
    title: str
    next: str
    applies: Callable[[np.ndarray], np.ndarray]  # records (N,) -> bool (N,)
    detail: Callable[[Any], str]  # of one record
    badness: Callable[[np.ndarray], np.ndarray] = lambda records: np.zeros(len(records))


def area(records: np.ndarray) -> np.ndarray:
    """Pixels of each image."""
    return records["width"].astype(np.int64) * records["height"]


def aspect(records: np.ndarray) -> np.ndarray:
    """Long side by short side."""
    sides = np.stack([records["width"], records["height"]]).astype(float)
    return sides.max(0) / sides.min(0)


def not_blank(records: np.ndarray) -> np.ndarray:
    """Images that show something."""
    return records["contrast"] >= BLANK_CONTRAST


def is_blurred(records: np.ndarray) -> np.ndarray:
    """Far less sharp than usual in this set; a set that is smooth throughout has no blurred images."""
    usual = np.median(records["sharpness"])
    return not_blank(records) & (records["sharpness"] < min(0.06, usual / 4))


def grey_among_colour(records: np.ndarray) -> np.ndarray:
    """Images without colour, where most have some."""
    grey = not_blank(records) & (records["colour"] < GREY_COLOUR)
    return grey & (grey.mean() < 0.5)


def size_text(record: Any) -> str:
    """Width and height."""
    return f"{record['width']} x {record['height']} pixels"


def mode_text(record: Any) -> str:
    """The mode of the pixels as stored."""
    return record["mode"].decode()


RULES = (
    Rule(
        "blank",
        "warning",
        "Blank",
        "One colour all over teaches nothing. Delete them, or list them under 'exclude' in audit.json.",
        lambda records: ~not_blank(records),
        lambda record: f"contrast {record['contrast']:.1f} of 255",
        lambda records: -records["contrast"],
    ),
    Rule(
        "tiny",
        "warning",
        "Very small",
        "They are enlarged to the training size and stay vague. Use the originals if there are larger ones.",
        lambda records: np.minimum(records["width"], records["height"]) < 32,
        size_text,
        lambda records: -area(records),
    ),
    Rule(
        "dark",
        "note",
        "Very dark",
        "Used as they are. Keep them if such light is met in practice.",
        lambda records: not_blank(records) & (records["brightness"] < 20),
        lambda record: f"brightness {record['brightness']:.0f} of 255",
        lambda records: -records["brightness"],
    ),
    Rule(
        "blurred",
        "note",
        "Very blurred",
        "Used as they are. Keep them if such blur is met in practice.",
        is_blurred,
        lambda record: f"sharpness {record['sharpness']:.3f}",
        lambda records: -records["sharpness"],
    ),
    Rule(
        "extreme_aspect",
        "note",
        "Very long or tall",
        "Made square by data.resize (squish, crop or pad). Cut them into pieces if their parts are the objects.",
        lambda records: aspect(records) >= 4,
        size_text,
        aspect,
    ),
    Rule(
        "huge",
        "note",
        "Much larger than the others",
        "Decoded once and made small. Check that they show the same kind of thing.",
        lambda records: area(records) >= np.minimum(50e6, 100 * np.median(area(records))),
        size_text,
        area,
    ),
    Rule(
        "exif_rotated",
        "note",
        "Turned by EXIF",
        "Set upright here, in training and prediction alike. A program that ignores EXIF would see them turned.",
        lambda records: (records["orientation"] >= 2) & (records["orientation"] <= 8),
        lambda record: f"EXIF orientation {record['orientation']}, {size_text(record)}",
    ),
    Rule(
        "grayscale",
        "note",
        "Grey among colour",
        "Used as they are. If grey goes with one class, the network learns that instead of the object.",
        grey_among_colour,
        mode_text,
    ),
    Rule(
        "cmyk",
        "note",
        "Print colours (CMYK)",
        "Converted to RGB without a colour profile, so colours may be off. Save them as RGB if colour matters.",
        lambda records: records["mode"] == b"CMYK",
        mode_text,
    ),
    Rule(
        "sixteen_bit",
        "note",
        "16 bits a channel",
        "The upper 8 bits are used. If all is dark, spread the values before saving.",
        lambda records: np.char.startswith(records["mode"], b"I"),
        mode_text,
    ),
    Rule(
        "palette",
        "note",
        "Palette images",
        "Converted to RGB. Nothing to do.",
        lambda records: (records["mode"] == b"P") & (records["format"] != b"GIF"),
        mode_text,
    ),
    Rule(
        "alpha",
        "note",
        "Transparent",
        "Laid on white. Save them on another background if that hides the object.",
        lambda records: records["alpha"],
        mode_text,
    ),
    Rule(
        "animated",
        "note",
        "Animated",
        "The first frame is used. Save other frames as images of their own.",
        lambda records: records["animated"],
        lambda record: record["format"].decode(),
    ),
)


def misnomer(path: str, record: Any) -> str:
    """The format of a file whose extension speaks of another, else an empty text."""
    kind = record["format"].decode()
    extension = path.rpartition(".")[2].lower()
    return kind if kind in EXTENSIONS and extension not in EXTENSIONS[kind] else ""
