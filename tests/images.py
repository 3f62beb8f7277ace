"""Real image files for tests, good and bad, written with Pillow or byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 20, 20), (20, 200, 20), (20, 20, 220), (255, 255, 255)
CORNERS = (RED, GREEN, BLUE, WHITE)  # of ``scene``: upper left, upper right, lower left, lower right
GREY_CORNERS = ((250,) * 3, (160,) * 3, (90,) * 3, (10,) * 3)  # of ``grey_scene``
STORED_AS = {  # EXIF orientation -> how an upright image is turned before it is stored with it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quarters(corners: tuple[tuple[int, ...], ...], width: int, height: int) -> np.ndarray:
    """(height, width, channels): four rectangles of one colour each."""
    square = np.array(corners, np.uint8).reshape(2, 2, -1)
    return square.repeat(height // 2, 0).repeat(width // 2, 1)


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """An RGB image that tells its colours and its orientation."""
    return Image.fromarray(quarters(CORNERS, width, height))


def grey_scene(width: int = 60, height: int = 40) -> Image.Image:
    """The same in grey."""
    return Image.fromarray(quarters(GREY_CORNERS, width, height)[..., 0])


def corners_of(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours in the middle of the four quarters of a decoded image."""
    low, high = pixels.shape[0] // 4, pixels.shape[0] * 3 // 4
    return [tuple(pixels[y, x].tolist()) for y in (low, high) for x in (low, high)]


def noise(path: Path, seed: int, size: int = 24) -> Path:
    """An image unlike every other seed's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_tree(root: Path, counts: dict[str, int], size: int = 24) -> Path:
    """``counts`` distinct images a class; a name may be a path, such as train/cat."""
    for i, (name, count) in enumerate(counts.items()):
        for number in range(count):
            noise(root / name / f"{number:03}.png", 10_000 * i + number, size)
    return root


def save_exif(path: Path, orientation: int, **options: Any) -> None:
    """``scene`` stored turned, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = scene()
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    image.save(path, exif=exif, **options)


def save_palette_with_alpha(path: Path) -> None:
    """The lower right quarter is transparent black, which must come out white."""
    indices = quarters(((0,), (1,), (2,), (3,)), 60, 40)[..., 0]
    image = Image.fromarray(indices)
    image.putpalette([*RED, *GREEN, *BLUE, 0, 0, 0])
    image.save(path, transparency=bytes([255, 255, 255, 0]))


def save_rgba(path: Path) -> None:
    """The lower right quarter is transparent black."""
    alpha = quarters(((255,), (255,), (255,), (0,)), 60, 40)
    colours = quarters((*CORNERS[:3], (0, 0, 0)), 60, 40)
    Image.fromarray(np.concatenate([colours, alpha], 2)).save(path)


def save_sixteen_bit(path: Path) -> None:
    """``grey_scene`` with 16 bits."""
    Image.fromarray(np.asarray(grey_scene()).astype(np.uint16) * 257).save(path)


def save_animated(path: Path) -> None:
    """``scene``, then a black frame."""
    scene().save(path, save_all=True, append_images=[Image.new("RGB", (60, 40))], duration=100)


READABLE: dict[str, Callable[[Path], object]] = {  # file name -> how it is written; each shows ``scene``
    "plain.jpg": lambda path: scene().save(path, quality=95),
    "plain.png": lambda path: scene().save(path),
    "plain.bmp": lambda path: scene().save(path),
    "plain.webp": lambda path: scene().save(path, quality=95),
    "plain.avif": lambda path: scene().save(path, quality=95),
    "plain.tif": lambda path: scene().save(path),
    "plain.ppm": lambda path: scene().save(path),
    "UPPER.JPEG": lambda path: scene().save(path, "JPEG", quality=95),
    "double.final.jpg": lambda path: scene().save(path, quality=95),
    "png inside.jpg": lambda path: scene().save(path, "PNG"),
    "ein schönes Bild 猫.png": lambda path: scene().save(path),
    "cmyk.jpg": lambda path: scene().convert("CMYK").save(path, quality=95),
    "cmyk.tif": lambda path: scene().convert("CMYK").save(path),
    "palette.png": lambda path: scene().quantize(8).save(path),
    "palette with alpha.png": save_palette_with_alpha,
    "rgba.png": save_rgba,
    "colour key.png": lambda path: scene().save(path, transparency=WHITE),
    "animated.gif": save_animated,
    "animated.webp": lambda path: save_animated(path),
    "broken exif.jpg": lambda path: scene().save(path, quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff"),
}
READABLE_GREY: dict[str, Callable[[Path], object]] = {
    "grey.jpg": lambda path: grey_scene().save(path, quality=95),
    "grey with alpha.png": lambda path: grey_scene().convert("LA").save(path),
    "sixteen bit.png": save_sixteen_bit,
    "sixteen bit.tif": save_sixteen_bit,
    "sixteen bit.pgm": save_sixteen_bit,
}


def save_bomb(path: Path) -> None:
    """A PNG of a few bytes whose header speaks of 2,500 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def save_truncated(path: Path, **options: Any) -> None:
    """The first half of an image file."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def save_corrupt(path: Path) -> None:
    """A PNG with wrong bytes in the middle."""
    noise(path, 0)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {  # file name -> how it is written, what is said of it
    "empty.jpg": (lambda path: path.touch(), "empty file"),
    "text.jpg": (lambda path: path.write_text("Not an image.\n"), "not an image: looks like text"),
    "page.jpg": (lambda path: path.write_text("<!DOCTYPE html>\n<html>404</html>"), "a web page (HTML)"),
    "drawing.png": (lambda path: path.write_text("<?xml version='1.0'?>\n<svg/>"), "an SVG drawing"),
    "document.png": (lambda path: path.write_bytes(b"%PDF-1.7\n\xff"), "a PDF"),
    "archive.jpg": (lambda path: path.write_bytes(b"PK\x03\x04\x14\0"), "a zip archive"),
    "film.jpg": (lambda path: path.write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0"), "a video"),
    "zeros.jpg": (lambda path: path.write_bytes(bytes(1000)), "unknown data"),
    "head only.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF"), "truncated"),
    "truncated.jpg": (save_truncated, "truncated"),
    "truncated.png": (save_truncated, "truncated"),
    "truncated.gif": (save_truncated, "truncated"),
    "truncated.bmp": (save_truncated, "truncated"),
    "truncated.webp": (save_truncated, "damaged"),
    "truncated.tif": (save_truncated, ""),
    "truncated.avif": (save_truncated, "damaged"),
    "corrupt.png": (save_corrupt, "damaged"),
    "bomb.png": (save_bomb, "too large: 50000 x 50000 pixels"),
    "float.tif": (lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "32-bit pixels"),
}
