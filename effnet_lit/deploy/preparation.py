"""Making a photograph the network's input as an app does, and the network's output its answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from effnet_lit.data.decode import FORMATS, LONGEST_SIDE, PAD_COLOUR, DecodeError, formats, quiet_pillow, resized
from effnet_lit.deploy.mistakes import RIGHT, USUAL, Preparation
from effnet_lit.model.modelfile import Header, ImageClassifier

MARGIN = 7 / 8  # of the short side is what torchvision's and timm's evaluation keeps
PAD_COLOURS = {"pad": PAD_COLOUR, "pad_114": (114, 114, 114), "pad_black": (0, 0, 0)}
Resample = Callable[[Image.Image, int, int], Image.Image]

TURNS: dict[str, Callable[[Image.Image], Image.Image]] = {
    RIGHT: ImageOps.exif_transpose,
    "stored": lambda image: image,
    "left": lambda image: ImageOps.exif_transpose(image).transpose(Image.Transpose.ROTATE_90),
    "right": lambda image: ImageOps.exif_transpose(image).transpose(Image.Transpose.ROTATE_270),
    "half": lambda image: ImageOps.exif_transpose(image).transpose(Image.Transpose.ROTATE_180),
    "mirror": lambda image: ImageOps.mirror(ImageOps.exif_transpose(image)),
}


def opened(content: bytes, turn: str = RIGHT, kinds: tuple[str, ...] = FORMATS) -> Image.Image:
    """A file as an app opens it, in RGB; ``turn`` is one of TURNS, ``kinds`` are those of files that it can open.

    Raises:
        DecodeError: it cannot be opened so.
    """
    with quiet_pillow:
        try:
            with Image.open(io.BytesIO(content), formats=kinds) as image:
                return TURNS[turn](image).convert("RGB")
        except Exception as error:  # whatever a decoder trips over, as in data/decode.py
            raise DecodeError(str(error)) from error


def by_pillow(kind: Image.Resampling) -> Resample:
    """One of Pillow's filters, which are antialiased."""
    return lambda image, width, height: image.resize((width, height), kind)


def plainly(kind: str) -> Resample:
    """Not antialiased: of a photograph that is made smaller, most pixels count for nothing."""

    def resample(image: Image.Image, width: int, height: int) -> Image.Image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        scaled = interpolate(pixels, (height, width), mode=kind, align_corners=None if kind == "nearest" else False)
        return Image.fromarray(scaled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())

    return resample


def by_area(image: Image.Image, width: int, height: int) -> Image.Image:
    """Each pixel is the mean of what it covers, parts of pixels included (Pillow's box filter takes whole ones only);
    enlarged bilinearly."""
    if width > image.width or height > image.height:
        return plainly("bilinear")(image, width, height)
    pixels = torch.from_numpy(np.array(image)).float()  # (H, W, 3)
    pixels = shares(height, image.height) @ pixels.flatten(1)  # (height, W * 3)
    pixels = shares(width, image.width) @ pixels.unflatten(1, (image.width, 3))  # (height, width, 3)
    return Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())


def shares(after: int, before: int) -> Tensor:
    """Of a line that is made shorter, how much of each pixel lies in each new one: (after, before)."""
    old, scale = torch.arange(before), before / after
    new = torch.arange(after)[:, None] * scale
    covered = torch.minimum(new + scale, old + 1) - torch.maximum(new, old)
    return covered.clamp(min=0) / scale


RESAMPLE: dict[str, Resample] = {
    RIGHT: resized,
    "bilinear": by_pillow(Image.Resampling.BILINEAR),
    "lanczos": by_pillow(Image.Resampling.LANCZOS),
    "area": by_area,
    "bilinear_plain": plainly("bilinear"),
    "bicubic_plain": plainly("bicubic"),
    "nearest": plainly("nearest"),
}


def square(image: Image.Image, size: int, shape: str, resample: Resample) -> np.ndarray:
    """RGB image of any shape -> uint8 (size, size, 3).

    Raises:
        DecodeError: it would grow without bounds.
    """
    if shape in PAD_COLOURS:
        scale = size / max(image.size)
        inner = [max(1, round(length * scale)) for length in image.size]
        filled = Image.new("RGB", (size, size), PAD_COLOURS[shape])
        filled.paste(resample(image, *inner), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return np.asarray(filled)
    if shape in ("middle", "margin"):
        short = size if shape == "middle" else round(size / MARGIN)
        width, height = (short * length // min(image.size) for length in image.size)
        if max(width, height) > LONGEST_SIDE:
            raise DecodeError("too long for its short side to be resized")
        left, top = round((width - size) / 2), round((height - size) / 2)
        return np.asarray(resample(image, width, height).crop((left, top, left + size, top + size)))
    if shape == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(resample(image, size, size))


CHANNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # uint8 (S, S, 3)
    RIGHT: lambda pixels: pixels,
    "bgr": lambda pixels: pixels[:, :, ::-1],
    "grey": lambda pixels: np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")),
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # (S, S, 3) -> (3, S, S)
    RIGHT: lambda pixels: pixels.transpose(2, 0, 1),
    "reshaped": lambda pixels: pixels.reshape(3, *pixels.shape[:2]),
    "mirrored": lambda pixels: pixels.transpose(2, 1, 0),
}


def by_usual(pixels: Tensor, name: str) -> Tensor:
    """Normalised by a usual mean and std, (3, S, S)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in USUAL[name])
    return (pixels / 255 - mean) / std


VALUES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # 0 to 255, mean, std
    RIGHT: lambda pixels, mean, std: (pixels / 255 - mean) / std,
    "unit": lambda pixels, mean, std: by_usual(pixels, "unit"),
    "signed": lambda pixels, mean, std: by_usual(pixels, "signed"),
    "imagenet": lambda pixels, mean, std: by_usual(pixels, "imagenet"),
    "bytes": lambda pixels, mean, std: pixels,
    "undivided": lambda pixels, mean, std: (pixels - mean) / std,
    "divided_twice": lambda pixels, mean, std: (pixels / 255**2 - mean) / std,
    "cut": lambda pixels, mean, std: ((pixels / 255).floor() / 255 - mean) / std,
    "normalised_twice": lambda pixels, mean, std: ((pixels / 255 - mean) / std - mean) / std,
}


class Photograph:
    """An image file on its way through several preparations; squares that they share are made once."""

    def __init__(self, content: bytes, classifier: ImageClassifier) -> None:
        self.header = classifier.header
        self.mean, self.std = classifier.mean[0].cpu(), classifier.std[0].cpu()  # (3, 1, 1)
        self.opened = lru_cache(1)(partial(opened, content, kinds=formats()))  # a photograph may be large
        self.square = cache(self.fit)

    def fit(self, turn: str, shape: str, size: str, resample: str) -> np.ndarray:
        """uint8 (S, S, 3)."""
        pixels = self.header.image_size if size == "trained" else self.header.eval_size
        return square(self.opened(turn), pixels, shape or self.header.resize, RESAMPLE[resample])

    def network_input(self, way: Preparation) -> Tensor:
        """float32 (3, S, S).

        Raises:
            DecodeError: the file cannot be opened.
        """
        pixels = CHANNELS[way.channels](self.square(way.turn, way.shape, way.size, way.resample))
        pixels = LAYOUTS[way.layout](np.ascontiguousarray(pixels))
        return VALUES[way.values](torch.from_numpy(np.array(pixels)).float(), self.mean, self.std)


def probabilities(logits: Tensor, way: Preparation, header: Header) -> Tensor:
    """What the app makes of the network's output (classes)."""
    temperature = 1.0 if way.output == "uncalibrated" else header.calibration["temperature"]
    found = torch.softmax(logits / temperature, 0)
    found = torch.softmax(found, 0) if way.output == "softmax_twice" else found
    return found[list(way.order)] if way.order else found


@torch.inference_mode()
def answers(classifier: ImageClassifier, content: bytes, ways: Sequence[Preparation]) -> np.ndarray:
    """What each way answers to one file, (ways, classes).

    Raises:
        DecodeError: the file cannot be opened.
    """
    photograph, logits = Photograph(content, classifier), dict[Preparation, Tensor]()
    different = sorted({way.input for way in ways}, key=attrgetter("size", "turn"))
    for _, alike in groupby(different, attrgetter("size")):
        inputs = list(alike)
        for start in range(0, len(inputs), classifier.batch):
            some = inputs[start : start + classifier.batch]
            batch = torch.stack([photograph.network_input(way) for way in some]).to(classifier.mean.device)
            found = classifier.network(batch.to(memory_format=torch.channels_last)).float().cpu()
            logits |= dict(zip(some, found, strict=True))
    return torch.stack([probabilities(logits[way.input], way, classifier.header) for way in ways]).numpy()
