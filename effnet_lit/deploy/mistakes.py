"""What an app can do otherwise than ``effnet predict`` between an image file and its answer, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from effnet_lit.model.modelfile import Header
from effnet_lit.model.weights import IMAGENET_MEAN, IMAGENET_STD

USUAL = {  # mean and std that apps take whatever the model says
    "unit": ([0.0] * 3, [1.0] * 3),
    "signed": ([0.5] * 3, [0.5] * 3),
    "imagenet": (list(IMAGENET_MEAN), list(IMAGENET_STD)),
}
RIGHT = ""  # the value of a step that is done as it should be


@dataclass(frozen=True)
class Preparation:
    """What an app does at each step, in their order; an empty text is what ``effnet predict`` does."""

    turn: str = RIGHT
    shape: str = RIGHT
    size: str = RIGHT
    resample: str = RIGHT
    channels: str = RIGHT
    layout: str = RIGHT
    values: str = RIGHT
    output: str = RIGHT
    order: tuple[int, ...] = ()  # the model's class that the app takes each of its classes for; empty = itself

    @property
    def mistakes(self) -> list[tuple[str, str]]:
        """The steps that are done otherwise, as in ``MISTAKES``."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return [(step, "other" if step == "order" else value) for step, value in values.items() if value]

    @property
    def input(self) -> Preparation:
        """Its steps up to the network."""
        return replace(self, output=RIGHT, order=())


class Mistake(NamedTuple):
    """What the app does, as "the app ...", and what it should do instead."""

    says: str
    instead: str


RESIZE = "resize {square} with the antialiased bicubic filter, as Pillow's BICUBIC"
NORMALISE = "once: (values / 255 - {mean}) / {std}, of each channel"
CAMERA = "turn the camera's frames by the rotation that it tells with them"
OUTPUT = "once: softmax(logits / {temperature})"
SQUARES = {  # resize rule -> what is resized
    "squish": "the whole image to {size} x {size} pixels",
    "crop": "the middle square of the image to {size} x {size} pixels",
    "pad": "the long side to {size} pixels, on a square of grey (128),",
}
MISTAKES = {
    ("turn", "stored"): Mistake(
        "does not turn photographs upright by their EXIF orientation", "in Pillow: ImageOps.exif_transpose(image)"
    ),
    ("turn", "left"): Mistake("gives images that lie on their left side", CAMERA),
    ("turn", "right"): Mistake("gives images that lie on their right side", CAMERA),
    ("turn", "half"): Mistake("gives images upside down", CAMERA),
    ("turn", "mirror"): Mistake("gives images mirrored, as front cameras do", "mirror them back"),
    ("shape", "squish"): Mistake("squeezes the whole image into the square", RESIZE),
    ("shape", "crop"): Mistake("cuts the middle out of the whole image", RESIZE),
    ("shape", "middle"): Mistake("resizes the short side and cuts out the middle", RESIZE),
    ("shape", "margin"): Mistake(
        "resizes the short side and cuts out the middle, with a margin on each side (8/7)", RESIZE
    ),
    ("shape", "pad"): Mistake("fills the square up with grey", RESIZE),
    ("shape", "pad_114"): Mistake("fills the square up with darker grey (114), as detectors do", RESIZE),
    ("shape", "pad_black"): Mistake("fills the square up with black", RESIZE),
    ("size", "trained"): Mistake("gives the size of training crops, not the size of evaluation", RESIZE),
    ("resample", "bilinear"): Mistake("resizes by an antialiased bilinear filter, as torchvision does", RESIZE),
    ("resample", "lanczos"): Mistake("resizes by a Lanczos filter", RESIZE),
    ("resample", "area"): Mistake("resizes by averaging areas, as OpenCV's INTER_AREA", RESIZE),
    ("resample", "bilinear_plain"): Mistake(
        "resizes bilinearly without antialiasing, as OpenCV and the image classes of phones do", RESIZE
    ),
    ("resample", "bicubic_plain"): Mistake("resizes bicubically without antialiasing, as OpenCV's INTER_CUBIC", RESIZE),
    ("resample", "nearest"): Mistake("resizes by taking the nearest pixel", RESIZE),
    ("channels", "bgr"): Mistake(
        "gives the channels blue first, as OpenCV reads them", "in OpenCV: cv2.cvtColor(image, cv2.COLOR_BGR2RGB)"
    ),
    ("channels", "grey"): Mistake("gives the image without colours", "give red, green and blue"),
    ("layout", "reshaped"): Mistake(
        "reshapes (H, W, 3) to (3, H, W), which mixes pixels up", "in NumPy: image.transpose(2, 0, 1)"
    ),
    ("layout", "mirrored"): Mistake(
        "takes rows for columns: the image lies on its side, mirrored", "in NumPy: image.transpose(2, 0, 1)"
    ),
    ("values", "unit"): Mistake("leaves out mean and std (and does divide by 255)", NORMALISE),
    ("values", "signed"): Mistake("scales to -1 to 1, not by the model's mean and std", NORMALISE),
    ("values", "imagenet"): Mistake("normalises by ImageNet's mean and std; this model has others", NORMALISE),
    ("values", "bytes"): Mistake("gives 0 to 255, not normalised", NORMALISE),
    ("values", "undivided"): Mistake("subtracts mean and divides by std without dividing by 255 before", NORMALISE),
    ("values", "divided_twice"): Mistake("divides by 255 twice", NORMALISE),
    ("values", "cut"): Mistake(
        "turns 0 to 1 into whole numbers: nearly all become 0, so every image is black", NORMALISE
    ),
    ("values", "normalised_twice"): Mistake("normalises twice", NORMALISE),
    ("output", "uncalibrated"): Mistake("leaves out the model's temperature: probabilities are not calibrated", OUTPUT),
    ("output", "softmax_twice"): Mistake(
        "takes the softmax of probabilities, which brings them near to each other", OUTPUT
    ),
    ("order", "other"): Mistake(
        "has the classes in another order", "take their names from the exported file's metadata, key classes"
    ),
}


def instead(mistake: tuple[str, str], header: Header) -> str:
    """What the app should do, with this model's numbers."""
    return MISTAKES[mistake].instead.format(
        square=SQUARES[header.resize].format(size=header.eval_size),
        mean=numbers(header.mean),
        std=numbers(header.std),
        temperature=f"{header.calibration['temperature']:.4g}",
    )


def numbers(values: Sequence[float]) -> str:
    """One number where all channels have the same."""
    return f"{values[0]:g}" if len(set(values)) == 1 else str([float(f"{value:g}") for value in values])


def usual_mistakes(way: Preparation, header: Header, without: str = "") -> Iterator[Preparation]:
    """One more mistake, in each of the steps that are done right so far but one; those that change nothing left out."""
    absent = {("shape", header.resize)}
    if header.image_size == header.eval_size or header.architecture.get("name") == "vit_b_16":  # takes one size only
        absent.add(("size", "trained"))
    absent |= {("values", name) for name, values in USUAL.items() if values == (header.mean, header.std)}
    if header.calibration["temperature"] == 1:
        absent.add(("output", "uncalibrated"))
    for step, value in MISTAKES:
        if step not in ("order", without) and (step, value) not in absent and getattr(way, step) == RIGHT:
            yield replace(way, **{step: value})
