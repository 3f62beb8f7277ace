"""Apps with known mistakes, for ``benchmarks.app_mistakes``. They prepare images by OpenCV, NumPy, Pillow and
torchvision, not by this project's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import v2

Mistakes = frozenset[tuple[str, str]]


class Told(NamedTuple):
    """What an app is told of a model: pixels a side of evaluation and of training, mean and std of 0 to 1."""

    side: int
    trained: int
    mean: np.ndarray
    std: np.ndarray


def by_opencv(content: bytes, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Blue first, turned upright."""
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags))


def rgb(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3), upright."""
    return cv2.cvtColor(by_opencv(content), cv2.COLOR_BGR2RGB)


def bicubic(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (side, side, 3), antialiased."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def normalised(image: np.ndarray, told: Told) -> np.ndarray:
    """uint8 (S, S, 3) -> float32 (3, S, S), as the model says."""
    return ((image.astype(np.float32) / 255 - told.mean) / told.std).transpose(2, 0, 1)


class App(NamedTuple):
    """What it does wrong, and its own way from a file to the network's input (3, S, S) and from logits (N, classes) to
    probabilities."""

    mistakes: Mistakes
    prepare: Callable[[bytes, Told], np.ndarray]
    finish: Callable[[np.ndarray, float], np.ndarray] = lambda logits, temperature: softmax(logits / temperature)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def pixels(prepare: Callable[[np.ndarray, int], np.ndarray], *mistakes: tuple[str, str]) -> App:
    """An app that prepares RGB pixels (H, W, 3) its own way, and then normalises as it should."""
    return App(frozenset(mistakes), lambda content, told: normalised(prepare(rgb(content), told.side), told))


def opened(open_file: Callable[[bytes], np.ndarray], *mistakes: tuple[str, str]) -> App:
    """An app that opens files its own way."""
    return App(frozenset(mistakes), lambda content, told: normalised(bicubic(open_file(content), told.side), told))


def values(scale: Callable[[np.ndarray, Told], np.ndarray], *mistakes: tuple[str, str]) -> App:
    """An app that brings bytes (S, S, 3) to the network's numbers its own way."""
    return App(
        frozenset(mistakes),
        lambda content, told: scale(bicubic(rgb(content), told.side).astype(np.float32), told).transpose(2, 0, 1),
    )


def right(content: bytes, told: Told) -> np.ndarray:
    return normalised(bicubic(rgb(content), told.side), told)


def by_torchvision(image: np.ndarray, short: int, side: int, kind: v2.InterpolationMode) -> np.ndarray:
    return np.asarray(v2.Compose([v2.Resize(short, kind), v2.CenterCrop(side)])(Image.fromarray(image)))


def letterbox(image: np.ndarray, side: int, colour: int) -> np.ndarray:
    """By OpenCV, as detectors do."""
    scale = side / max(image.shape[:2])
    height, width = (round(length * scale) for length in image.shape[:2])
    top, left = (side - height) // 2, (side - width) // 2
    inner = cv2.resize(image, (width, height))
    edges = (top, side - height - top, left, side - width - left)
    return cv2.copyMakeBorder(inner, *edges, cv2.BORDER_CONSTANT, value=(colour,) * 3)


def padded(image: np.ndarray, side: int, colour: int) -> np.ndarray:
    return np.asarray(ImageOps.pad(Image.fromarray(image), (side, side), Image.Resampling.BICUBIC, color=(colour,) * 3))


def filtered(kind: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda image, side: bicubic(np.asarray(Image.fromarray(image).filter(kind)), side)


def compressed(image: np.ndarray, side: int) -> np.ndarray:
    """Through a JPEG of quality 20."""
    stored = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    return bicubic(np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR)), side)


def noisy(image: np.ndarray, side: int) -> np.ndarray:
    noise = np.random.default_rng(image.size).normal(0, 15, image.shape)
    return bicubic(np.clip(image + noise, 0, 255).astype(np.uint8), side)


BILINEAR, BICUBIC = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC
PLAIN, BGR = ("resample", "bilinear_plain"), ("channels", "bgr")
ONE: dict[str, App] = {
    "blue first": opened(by_opencv, BGR),
    "grey": opened(
        lambda file: cv2.cvtColor(by_opencv(file, cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2RGB), ("channels", "grey")
    ),
    "not turned by EXIF": opened(
        lambda file: by_opencv(file, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[:, :, ::-1], ("turn", "stored")
    ),
    "a quarter turn": opened(lambda file: np.rot90(rgb(file)), ("turn", "left")),
    "upside down": opened(lambda file: np.rot90(rgb(file), 2), ("turn", "half")),
    "mirrored": opened(lambda file: np.fliplr(rgb(file)), ("turn", "mirror")),
    "OpenCV, linear": pixels(lambda image, side: cv2.resize(image, (side, side)), PLAIN),
    "OpenCV, cubic": pixels(
        lambda image, side: cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC),
        ("resample", "bicubic_plain"),
    ),
    "OpenCV, nearest": pixels(
        lambda image, side: cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST), ("resample", "nearest")
    ),
    "OpenCV, area": pixels(
        lambda image, side: cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), ("resample", "area")
    ),
    "torchvision's Resize((S, S))": pixels(
        lambda image, side: np.asarray(v2.Resize((side, side))(Image.fromarray(image))), ("resample", "bilinear")
    ),
    "Pillow, Lanczos": pixels(
        lambda image, side: np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)),
        ("resample", "lanczos"),
    ),
    "short side bicubic, middle": pixels(
        lambda image, side: by_torchvision(image, side, side, BICUBIC), ("shape", "middle")
    ),
    "short side x 8/7 bicubic, middle": pixels(
        lambda image, side: by_torchvision(image, round(side * 8 / 7), side, BICUBIC), ("shape", "margin")
    ),
    "letterbox, black": pixels(lambda image, side: padded(image, side, 0), ("shape", "pad_black")),
    "letterbox, grey of 114": pixels(lambda image, side: padded(image, side, 114), ("shape", "pad_114")),
    "size of training": App(
        frozenset({("size", "trained")}),
        lambda content, told: normalised(bicubic(rgb(content), told.trained), told),
    ),
    "no mean and std": values(lambda image, told: image / 255, ("values", "unit")),
    "ImageNet's mean and std": values(
        lambda image, told: (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], ("values", "imagenet")
    ),
    "-1 to 1": values(lambda image, told: image / 127.5 - 1, ("values", "signed")),
    "0 to 255": values(lambda image, told: image, ("values", "bytes")),
    "not divided by 255": values(lambda image, told: (image - told.mean) / told.std, ("values", "undivided")),
    "divided by 255 twice": values(
        lambda image, told: (image / 255 / 255 - told.mean) / told.std, ("values", "divided_twice")
    ),
    "0 to 1 as bytes": values(
        lambda image, told: ((image / 255).astype(np.uint8) / 255 - told.mean) / told.std, ("values", "cut")
    ),
    "normalised twice": values(
        lambda image, told: ((image / 255 - told.mean) / told.std - told.mean) / told.std,
        ("values", "normalised_twice"),
    ),
    "reshaped": App(
        frozenset({("layout", "reshaped")}),
        lambda content, told: (
            normalised(bicubic(rgb(content), told.side), told).transpose(1, 2, 0).reshape(3, told.side, -1)
        ),
    ),
    "rows for columns": App(
        frozenset({("layout", "mirrored")}), lambda content, told: right(content, told).transpose(0, 2, 1)
    ),
    "no temperature": App(frozenset({("output", "uncalibrated")}), right, lambda logits, temperature: softmax(logits)),
    "softmax twice": App(
        frozenset({("output", "softmax_twice")}),
        right,
        lambda logits, temperature: softmax(softmax(logits / temperature)),
    ),
    "classes in reverse order": App(
        frozenset({("order", "other")}), right, lambda logits, temperature: softmax(logits / temperature)[:, ::-1]
    ),
}
SEVERAL: dict[str, App] = {
    "OpenCV as it comes": opened(by_opencv, BGR)._replace(
        mistakes=frozenset({BGR, PLAIN}),
        prepare=lambda content, told: normalised(cv2.resize(by_opencv(content), (told.side, told.side)), told),
    ),
    "OpenCV as it comes, no mean and std": App(
        frozenset({BGR, PLAIN, ("values", "unit")}),
        lambda content, told: (
            cv2.resize(by_opencv(content), (told.side, told.side)).transpose(2, 0, 1) / np.float32(255)
        ),
    ),
    "blue first, ImageNet's mean and std": values(
        lambda image, told: (image[:, :, ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        BGR,
        ("values", "imagenet"),
    ),
    "torchvision's presets": pixels(
        lambda image, side: by_torchvision(image, round(side * 8 / 7), side, BILINEAR),
        ("shape", "margin"),
        ("resample", "bilinear"),
    ),
    "short side bilinear, middle, no mean and std": App(
        frozenset({("shape", "middle"), ("resample", "bilinear"), ("values", "unit")}),
        lambda content, told: (
            by_torchvision(rgb(content), told.side, told.side, BILINEAR).transpose(2, 0, 1) / np.float32(255)
        ),
    ),
    "OpenCV's letterbox, black": pixels(lambda image, side: letterbox(image, side, 0), ("shape", "pad_black"), PLAIN),
    "not turned by EXIF, OpenCV, linear": App(
        frozenset({("turn", "stored"), PLAIN}),
        lambda content, told: normalised(
            cv2.resize(
                by_opencv(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[:, :, ::-1], (told.side, told.side)
            ),
            told,
        ),
    ),
    "blue first, no temperature": App(
        frozenset({BGR, ("output", "uncalibrated")}),
        lambda content, told: normalised(bicubic(by_opencv(content), told.side), told),
        lambda logits, temperature: softmax(logits),
    ),
}
ANOTHER_MODEL = App(frozenset(), right)  # whoever asks it changes its weights
OTHER: dict[str, App] = {
    "nothing wrong": App(frozenset(), right),
    "JPEG of quality 20": pixels(compressed),
    "blurred": pixels(filtered(ImageFilter.GaussianBlur(2))),
    "sharpened": pixels(filtered(ImageFilter.SHARPEN)),
    "noise": pixels(noisy),
    "darker, by gamma": pixels(lambda image, side: (255 * (bicubic(image, side) / 255) ** 1.5).astype(np.uint8)),
    "more colour": pixels(
        lambda image, side: bicubic(np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(1.8)), side)
    ),
    "a negative": pixels(lambda image, side: 255 - bicubic(image, side)),
    "green first": pixels(lambda image, side: bicubic(image, side)[:, :, [1, 0, 2]]),
    "a corner": pixels(lambda image, side: bicubic(image[: len(image) // 2, : image.shape[1] // 2], side)),
    "moved by a tenth": pixels(lambda image, side: np.roll(bicubic(image, side), side // 10, axis=1)),
    "answers of the images before": App(
        frozenset(), right, lambda logits, temperature: np.roll(softmax(logits / temperature), 1, axis=0)
    ),
    "another model": ANOTHER_MODEL,
}
