"""What is measured of an image while it is decoded; the audit judges from these numbers alone.

The figures come from small copies whose size is always the same, so they depend neither on ``data.image_size``
nor on the size of the file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

GREY_SIZE, COLOUR_SIZE = 128, 32  # of the copies that are measured
LOOK_SIZE = 8
LOOK_MARGIN = 2  # of 255


class Facts(NamedTuple):
    """One image's facts; sizes in pixels as stored, before an EXIF turn; light in 0-255."""

    format: str  # as found in the file, not in its name
    mode: str  # Pillow's: RGB, L, P, CMYK, I;16 ...
    width: int
    height: int
    orientation: int  # EXIF, 1 = upright
    alpha: bool
    animated: bool
    brightness: float  # mean of grey
    contrast: float  # standard deviation of grey
    sharpness: float  # mean |Laplacian| of grey, as a share of its contrast
    colour: float  # mean difference between the strongest and the weakest channel
    look: int  # 64 bits: is a pixel darker than its right neighbour? (difference hash)


FACTS = [  # the same as columns of an array
    ("format", "S8"),
    ("mode", "S8"),
    ("width", "u4"),
    ("height", "u4"),
    ("orientation", "u2"),
    ("alpha", "?"),
    ("animated", "?"),
    ("brightness", "f4"),
    ("contrast", "f4"),
    ("sharpness", "f4"),
    ("colour", "f4"),
    ("look", "u8"),
]


def measure(image: Image.Image) -> tuple[float, float, float, float, int]:
    """The last five facts of an upright RGB image.

    The Laplacian as a measure of focus: Pertuz et al. 2013, "Analysis of focus measure operators", LAP2.
    """
    grey_image = image.convert("L").resize((GREY_SIZE, GREY_SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey = np.asarray(grey_image, np.float32)  # (128, 128)
    centre = grey[1:-1, 1:-1]
    across, down = grey[1:-1, :-2] + grey[1:-1, 2:], grey[:-2, 1:-1] + grey[2:, 1:-1]
    laplacian = np.abs(2 * centre - across) + np.abs(2 * centre - down)
    contrast = float(grey.std())
    tiny = image.resize((COLOUR_SIZE, COLOUR_SIZE), Image.Resampling.BOX, reducing_gap=2.0)
    channels = np.asarray(tiny, np.int16)  # (32, 32, 3)
    colour = float((channels.max(2) - channels.min(2)).mean())
    figures = float(grey.mean()), contrast, float(laplacian.mean()) / max(contrast, 1.0), colour
    brightness, contrast, sharpness, colour = (round(figure, 3) for figure in figures)
    return brightness, contrast, sharpness, colour, look(grey_image)


def look(grey: Image.Image) -> int:
    """Difference hash of 8 x 8 bits: equal or close for images that look the same at a glance.

    The margin keeps even areas, such as sky or a white background, from flickering between copies.
    """
    tiny = np.asarray(grey.resize((LOOK_SIZE + 1, LOOK_SIZE), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(tiny[:, 1:] > tiny[:, :-1] + LOOK_MARGIN).tobytes(), "big")
