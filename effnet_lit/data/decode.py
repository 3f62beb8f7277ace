"""One image file -> RGB uint8, or the reason why not. Training, prediction and serving all decode here.

EXIF turn, transparency on white, 16 bits to 8, first frame of an animation, antialiased resize to a square. Any
change of the pixels that come out must raise ``DECODE_VERSION``, which is part of the cache's key.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from effnet_lit.data.facts import Facts, measure

DECODE_VERSION = 3
RESIZE_RULES = ("squish", "crop", "pad")
PAD_COLOUR = (128, 128, 128)
LARGE_JPEG = 1024  # pixels of the short side that scaled decoding keeps: four times what a 256-pixel image needs
PIXEL_LIMIT = 200_000_000  # the largest phone cameras; 600 MB as RGB
LONGEST_SIDE = 65_535  # pixels, as of a JPEG; a longer one grows beyond any memory between the two steps of resizing
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")

TURNS = {  # EXIF orientation -> what sets the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112

SIGNATURES = (  # first bytes (after an offset) -> what the file is
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
)
OTHER_SIGNATURES = (
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"8BPS", "a Photoshop document"),
    (4, b"ftyp", "a video"),
)


class Header(NamedTuple):
    """What a file says of its image before a pixel is decoded, as in ``Facts``."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    alpha: bool
    animated: bool


class DecodeError(Exception):
    """A file that gives no image; the text is a short reason for people."""


def decode(file: Path | bytes, size: int, resize: str, most_pixels: int = PIXEL_LIMIT) -> np.ndarray:
    """The image as uint8 (size, size, 3); ``resize`` is one of RESIZE_RULES, ``most_pixels`` what is still decoded.

    Raises:
        DecodeError: the file cannot be read as an image, and why.
    """
    return fit_square(read_rgb(file, most_pixels)[0], size, resize)


def examine(file: Path | bytes, size: int, resize: str) -> tuple[np.ndarray, str, Facts]:
    """``decode``, a hash of the upright pixels before they are resized, and what is measured of them.

    The hash is equal for equal images in different encodings (very large JPEGs: in the same encoding). It does not
    depend on ``size`` or ``resize``.
    """
    image, header = read_rgb(file)
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size)
    return fit_square(image, size, resize), digest.hexdigest(), Facts(*header, *measure(image))


def fit_square(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """RGB image of any shape -> uint8 (size, size, 3), antialiased.

    squish keeps the whole image and not its shape; crop keeps the shape and the middle; pad keeps both, on grey.
    """
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif resize == "pad":
        scale = size / max(image.size)
        inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        square = Image.new("RGB", (size, size), PAD_COLOUR)
        square.paste(resized(image, *inner), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return np.asarray(square)
    return np.asarray(resized(image, size, size))


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, antialiased; columns before rows. Values are rounded in between, and which comes first in a single call
    depends on Pillow's version (from 13 on rows, of some tall images): up to a quarter of the values would differ."""
    columns = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return columns.resize((width, height), Image.Resampling.BICUBIC)


def read_rgb(file: Path | bytes, most_pixels: int = PIXEL_LIMIT) -> tuple[Image.Image, Header]:
    """The image upright, in RGB, and what its file says of it. JPEGs come at their own size, or at a half, quarter
    or eighth of it where the short side keeps ``LARGE_JPEG`` pixels: that costs a quarter of the time.

    Raises:
        DecodeError: the file cannot be read as an image, and why.
    """
    try:
        content = file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise DecodeError((error.strerror or str(error)).lower()) from error
    with quiet_pillow:
        try:
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                return upright_rgb(image, most_pixels)
        except DecodeError:
            raise
        except Exception as error:  # decoders raise whatever they trip over, not only OSError
            raise DecodeError(explain(content[:512], error)) from error


def upright_rgb(image: Image.Image, most_pixels: int) -> tuple[Image.Image, Header]:
    """Decode all pixels of an opened image and bring them to upright RGB."""
    if image.width * image.height > most_pixels:
        raise DecodeError(f"too large: {image.width} x {image.height} pixels, over {most_pixels / 1e6:g} megapixels")
    if max(image.size) > LONGEST_SIDE:
        raise DecodeError(f"too long: {image.width} x {image.height} pixels, over {LONGEST_SIDE:,} on a side")
    mode, size, animated = image.mode, image.size, is_animated(image)
    image.draft(None, (LARGE_JPEG, LARGE_JPEG))  # JPEG only; never below this size
    image.load()  # in full: only this finds a truncated file
    turned = orientation(image)
    header = Header(image.format or "", mode, *size, turned, image.has_transparency_data, animated)
    if image.mode.startswith(("I", "F")):
        image = to_eight_bits(image)
    if header.alpha:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    image = image.convert("RGB")
    return image if turned not in TURNS else image.transpose(TURNS[turned]), header


def is_animated(image: Image.Image) -> bool:
    """Whether there are more frames; the second image of a phone's JPEG (MPO) is no animation."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is no reason to lose the first
        return False


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none or EXIF is damaged."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to lose an image
        return 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> 8 bits by dropping the lower eight; Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DecodeError("32-bit pixels have no agreed range: save the image with 8 or 16 bits")
    return Image.fromarray((values.astype(np.int32) >> 8).astype(np.uint8))


def explain(head: bytes, error: Exception) -> str:
    """A short reason from a file's first bytes and what the decoder said."""
    if not head:
        return "empty file"
    kind = signature(head, SIGNATURES)
    if kind == "HEIC" and "HEIF" not in formats():
        return "HEIC image: reading it needs pip install effnet_lit[heif]"
    if isinstance(error, MemoryError):
        return "too large for the memory there is"
    if not isinstance(error, UnidentifiedImageError):
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        return "truncated" if truncated else f"damaged: {error}"
    if kind:
        return f"damaged: begins as {kind} and cannot be decoded"
    return f"not an image: looks like {other_kind(head)}"


def signature(head: bytes, known: tuple[tuple[int, bytes, str], ...]) -> str:
    """The name that belongs to a file's first bytes, or an empty text."""
    return next((name for start, magic, name in known if head[start:].startswith(magic)), "")


def other_kind(head: bytes) -> str:
    """What a file is that is no image."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if b"<svg" in start:
        return "an SVG drawing"
    text = all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    return signature(head, OTHER_SIGNATURES) or ("text" if text else "unknown data")


@cache
def formats() -> tuple[str, ...]:
    """What Pillow may try, HEIF among it where pillow_heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


class QuietPillow:
    """Silences Pillow's warnings and lifts its own pixel limit (ours is checked instead), in several threads at once.

    Both settings belong to the process: the first thread in changes them, the last one out changes them back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.settings = ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.settings.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self.settings.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                Image.MAX_IMAGE_PIXELS = None
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.settings.close()


quiet_pillow = QuietPillow()
