"""Training images varied in batches: one affine sampling, one colour matrix, erasing.

Each sample's variation is a pure function of its row of random numbers, and these depend on (seed, epoch, position)
alone. Rotation, crop, aspect and flip are one theta per image, so pixels are interpolated once; brightness, contrast
and saturation are linear in the pixels and fold into one 3 x 4 matrix per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Interval = tuple[float, float]


@dataclass(frozen=True)
class Strength:
    """Ranges that are drawn from. Crop and erased sizes are shares of the image's area, rotation is in degrees."""

    crop: Interval  # random resized crop, arXiv 1409.4842
    aspect: Interval  # of the crop, log-uniform
    rotation: float  # +-
    colour: float  # brightness, contrast and saturation: factors in 1 +- colour
    erasing: float  # chance, arXiv 1708.04896
    erased: Interval


STRENGTHS = {
    #                   crop         aspect        rotation  colour  erasing  erased
    "light": Strength((0.60, 1.0), (0.90, 1 / 0.90), 5, 0.1, 0.00, (0.0, 0.0)),
    "standard": Strength((0.50, 1.0), (0.80, 1 / 0.80), 10, 0.2, 0.00, (0.0, 0.0)),
    "heavy": Strength((0.35, 1.0), (0.75, 1 / 0.75), 15, 0.4, 0.25, (0.02, 0.2)),
}

# What each of a sample's random numbers decides. Philox gives four at a time, so their count is a multiple of four.
CROP, ASPECT, X, Y, ROTATION, FLIP, BRIGHTNESS, CONTRAST, SATURATION, ERASING, ERASED, ERASED_ASPECT = range(12)
ERASED_X, ERASED_Y = 12, 13
NUMBERS = 16

GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def random_numbers(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Uniform numbers (count, NUMBERS) in [0, 1) of the samples at positions start, start + 1, ... of an epoch.

    They are a stretch of the Philox stream keyed by (seed, epoch): batch size and workers cannot matter.
    """
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64)).advance(start * NUMBERS // 4)
    return np.random.Generator(stream).random((count, NUMBERS))


def augment(images: Tensor, numbers: Tensor, strength: str, image_size: int, horizontal_flip: bool) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, T, T) in 0-1, channels_last, on the images' device.

    Strength "none" is the whole image resized, without randomness.
    """
    pixels = images.permute(0, 3, 1, 2).float()  # (N, 3, S, S) in 0-255, channels_last
    if strength == "none":
        return resize(pixels, image_size).div_(255)
    ranges = STRENGTHS[strength]
    u = numbers.float().to(images.device)  # (N, NUMBERS)
    pixels = sample(pixels, crop_theta(u, ranges, horizontal_flip), image_size).div_(255)
    factors = 1 + ranges.colour * (2 * u[:, BRIGHTNESS : SATURATION + 1] - 1)
    pixels = adjust_colour(pixels, *factors.unbind(1)).clamp_(0, 1)
    if ranges.erasing:
        pixels.masked_fill_(erased(u, ranges, image_size), 0.5)
    # channels_last; .contiguous does the same four times slower on a CPU
    return torch.stack(pixels.unbind(1), -1).permute(0, 3, 1, 2)


def resize(pixels: Tensor, size: int) -> Tensor:
    """(N, 3, S, S) -> (N, 3, size, size), antialiased."""
    if pixels.shape[-1] == size:
        return pixels
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def crop_theta(u: Tensor, ranges: Strength, horizontal_flip: bool) -> Tensor:
    """Random numbers (N, NUMBERS) -> theta (N, 2, 3): a random resized crop, turned about its centre."""
    area = between(u[:, CROP], ranges.crop)
    aspect = between(u[:, ASPECT], (math.log(ranges.aspect[0]), math.log(ranges.aspect[1]))).exp()
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    centre = (1 - torch.stack([width, height], 1)) * (2 * u[:, X : Y + 1] - 1)
    angle = math.radians(ranges.rotation) * (2 * u[:, ROTATION] - 1)
    mirror = torch.where(u[:, FLIP] < 0.5, -1.0, 1.0) if horizontal_flip else torch.ones_like(angle)
    return affine_theta(centre, width * mirror, height, angle)


def between(u: Tensor, interval: Interval) -> Tensor:
    """Uniform numbers in 0-1 -> uniform numbers in the interval."""
    return interval[0] + (interval[1] - interval[0]) * u


def affine_theta(centre: Tensor, width: Tensor, height: Tensor, angle: Tensor) -> Tensor:
    """theta (N, 2, 3) for ``sample``, from output to input coordinates, both -1 to 1 across the image.

    The output shows the input's rectangle of ``width`` x ``height`` (shares of the side; a negative width mirrors)
    about ``centre`` (N, 2), turned by ``angle`` in radians, anticlockwise as seen.
    """
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([cos * width, -sin * height, centre[:, 0]], 1)
    y = torch.stack([sin * width, cos * height, centre[:, 1]], 1)
    return torch.stack([x, y], 1)


def sample(pixels: Tensor, theta: Tensor, size: int) -> Tensor:
    """(N, 3, S, S) -> (N, 3, size, size), bilinear; what lies outside is the image reflected."""
    grid = functional.affine_grid(theta, [len(pixels), 3, size, size], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def adjust_colour(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Pixels (N, 3, T, T) by factors (N,), in this order, contrast about the image's mean grey; not clamped.

    Equals torchvision's adjust_brightness, adjust_contrast and adjust_saturation where these clamp nothing.
    """
    grey = pixels.new_tensor(GREY)
    mean = pixels.mean((2, 3)) @ grey * brightness  # (N,) mean grey after the brightness
    brightness, contrast, saturation, mean = (x.view(-1, 1, 1) for x in (brightness, contrast, saturation, mean))
    saturate = saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * grey  # (N, 3, 3), rgb = it @ rgb
    offset = saturate.sum(2, keepdim=True) * (1 - contrast) * mean  # (N, 3, 1)
    coloured = torch.baddbmm(offset, saturate * contrast * brightness, pixels.flatten(2))  # (N, 3, T * T)
    return coloured.view_as(pixels)


def erased(u: Tensor, ranges: Strength, size: int) -> Tensor:
    """Mask (N, 1, size, size) of a random rectangle in some of the images."""
    area = between(u[:, ERASED], ranges.erased) * (u[:, ERASING] < ranges.erasing)  # 0 where nothing is erased
    aspect = between(u[:, ERASED_ASPECT], (math.log(0.5), math.log(2.0))).exp()
    steps = (torch.arange(size, device=u.device) + 0.5) / size  # pixel centres, (T,)
    columns = within(steps, u[:, ERASED_X], (area * aspect).sqrt())
    rows = within(steps, u[:, ERASED_Y], (area / aspect).sqrt())
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def within(steps: Tensor, place: Tensor, length: Tensor) -> Tensor:
    """(N, T): which of the steps lie in the stretch of ``length`` (N,) at ``place`` (N,) of the room left for it."""
    start = (place * (1 - length)).unsqueeze(1)
    return (steps >= start) & (steps < start + length.unsqueeze(1))
