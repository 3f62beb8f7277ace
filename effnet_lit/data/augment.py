"""Training images varied: a random crop, turned and mirrored, other colours, erasing.

Each sample's variation is a pure function of its row of random numbers, and these depend on (seed, epoch, position)
alone. Rotation, crop, aspect and flip are one theta per image, so pixels are interpolated once; brightness, contrast
and saturation are linear in the pixels and fold into one 3 x 3 matrix and an offset per image. An accelerator varies
the batch at once; a CPU one image after the other, each small enough for the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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

THREADS_PAY = 2**17  # values in an image (209 x 209) from which on handing it to a thread costs little
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def random_numbers(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Uniform numbers (count, NUMBERS) in [0, 1) of the samples at positions start, start + 1, ... of an epoch.

    They are a stretch of the Philox stream keyed by (seed, epoch): batch size and workers cannot matter.
    """
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64)).advance(start * NUMBERS // 4)
    return np.random.Generator(stream).random((count, NUMBERS))


def augment(
    images: Tensor, numbers: Tensor, strength: str, image_size: int, horizontal_flip: bool, rotation: bool
) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, T, T) in 0-1, channels_last, on the images' device.

    Strength "none" is the whole image resized, without randomness.
    """
    on_cpu = images.device.type == "cpu"
    if strength == "none":
        pixels = images.permute(0, 3, 1, 2)
        return resize(pixels if on_cpu else pixels.float(), image_size) / 255
    ranges = STRENGTHS[strength] if rotation else replace(STRENGTHS[strength], rotation=0)
    vary = vary_each if on_cpu else vary_batch
    return vary(images, numbers.to(images.device), ranges, image_size, horizontal_flip)


def vary_batch(images: Tensor, numbers: Tensor, ranges: Strength, size: int, horizontal_flip: bool) -> Tensor:
    """``augment`` for an accelerator: one operation for the whole batch."""
    u = numbers.float()  # (N, NUMBERS)
    pixels = images.permute(0, 3, 1, 2).float()  # (N, 3, S, S) in 0-255, channels_last
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round coordinates by up to half a pixel
        pixels = sample(pixels, crop_theta(u, ranges, horizontal_flip), size).div_(255)
        pixels = adjust_colour(pixels, *colour_factors(u, ranges)).clamp_(0, 1)
    if ranges.erasing:
        rows, columns = erased(u, ranges, size)
        pixels.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.5)
    return torch.stack(pixels.unbind(1), -1).permute(0, 3, 1, 2)  # channels_last


def vary_each(images: Tensor, numbers: Tensor, ranges: Strength, size: int, horizontal_flip: bool) -> Tensor:
    """``augment`` for a CPU: every image by itself, which also makes it independent of its batch to the last bit."""
    u = numbers.double()  # rounded to float32 later: how many are computed at once cannot be seen
    sampled = (turned if ranges.rotation else cropped)(images, crop_theta(u, ranges, horizontal_flip), size)
    matrix, shift = (x.float().div(255) for x in colour_matrix(*colour_factors(u, ranges)))
    matrix, shift = matrix.mT.unbind(), shift.unbind()
    hit = (u[:, ERASING] < ranges.erasing).tolist()
    rows, columns = erased(u, ranges, size) if any(hit) else ([], [])
    with torch.inference_mode(False):  # a mode that threads do not take over
        varied = torch.empty(len(images), size * size, 3)
    targets = varied.unbind()

    def vary(i: int) -> None:
        pixels = sampled(i)  # (T * T, 3) in 0-255
        if ranges.colour:
            offset = pixels.mean(0).dot(shift[i])
            torch.mm(pixels, matrix[i], out=targets[i]).add_(offset).clamp_(0, 1)
        else:
            torch.div(pixels, 255, out=targets[i])
        if hit[i]:
            targets[i].masked_fill_((rows[i].unsqueeze(1) & columns[i]).view(-1, 1), 0.5)

    in_threads(vary, len(images), 3 * size * size)
    return varied.view(-1, size, size, 3).permute(0, 3, 1, 2)


def in_threads(task: Callable[[int], None], count: int, elements: int) -> None:
    """Call task(0) to task(count - 1), tasks on many ``elements`` on as many threads as torch would use.

    Each of their operations runs on one thread: images need not wait for each other, parts of an operation would.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also those started below
    try:
        if threads == 1 or elements < THREADS_PAY:
            for i in range(count):
                task(i)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(task, range(count)))
    finally:
        torch.set_num_threads(threads)


def turned(images: Tensor, theta: Tensor, size: int) -> Callable[[int], Tensor]:
    """What ``sample`` makes of image i: float (size * size, 3) in 0-255."""
    x, y, centre = torch.view_as_complex(theta.transpose(1, 2).contiguous()).unsqueeze(2).unbind(1)  # (N, 1) each
    steps = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1  # pixel centres
    along_x = (x * steps).to(torch.complex64).view(-1, 1, 1, size).unbind()
    along_y = (y * steps + centre).to(torch.complex64).view(-1, 1, size, 1).unbind()
    pixels = images.permute(0, 3, 1, 2).split(1)  # N x (1, 3, S, S)

    def sampled(i: int) -> Tensor:
        grid = torch.view_as_real(along_x[i] + along_y[i])  # (1, T, T, 2)
        return grid_sample(pixels[i].float(), grid).view(3, -1).t()

    return sampled


def cropped(images: Tensor, theta: Tensor, size: int) -> Callable[[int], Tensor]:
    """As ``turned``, where theta does not turn: the crop in whole pixels, resized as uint8."""
    reach = torch.stack([theta[:, 0, 0].abs(), theta[:, 1, 1]], 1)  # (N, 2) half of the crop's width and height
    corners = torch.stack([theta[:, :, 2] - reach, theta[:, :, 2] + reach], 1)  # (N, 2, 2) in -1 to 1
    corners = ((corners + 1) * images.shape[1] / 2).round().int().tolist()
    mirrored = (theta[:, 0, 0] < 0).tolist()
    pixels = images.permute(0, 3, 1, 2).split(1)  # N x (1, 3, S, S)

    def sampled(i: int) -> Tensor:
        (left, top), (right, bottom) = corners[i]
        crop = functional.interpolate(pixels[i][..., top:bottom, left:right], (size, size), mode="bilinear")
        return (crop.flip(3) if mirrored[i] else crop).permute(0, 2, 3, 1).reshape(-1, 3).float()

    return sampled


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
    return grid_sample(pixels, functional.affine_grid(theta, [len(pixels), 3, size, size], align_corners=False))


def grid_sample(pixels: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def colour_factors(u: Tensor, ranges: Strength) -> tuple[Tensor, ...]:
    """Factors (N,) of brightness, contrast and saturation."""
    return between(u[:, BRIGHTNESS : SATURATION + 1], (1 - ranges.colour, 1 + ranges.colour)).unbind(1)


def adjust_colour(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Pixels (N, 3, T, T) by factors (N,), in this order, contrast about the image's mean grey; not clamped.

    Equals torchvision's adjust_brightness, adjust_contrast and adjust_saturation where these clamp nothing.
    """
    matrix, shift = colour_matrix(brightness, contrast, saturation)
    offset = (pixels.mean((2, 3)) * shift).sum(1).view(-1, 1, 1)  # (N, 1, 1)
    return torch.baddbmm(offset, matrix, pixels.flatten(2)).view_as(pixels)


def colour_matrix(brightness: Tensor, contrast: Tensor, saturation: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (N,) -> matrix (N, 3, 3) and shift (N, 3): a colour becomes matrix @ colour + shift @ mean colour."""
    grey = torch.tensor(GREY, device=brightness.device)
    brightness, contrast, saturation = (x.view(-1, 1, 1) for x in (brightness, contrast, saturation))
    saturate = saturation * torch.eye(3, device=grey.device) + (1 - saturation) * grey  # (N, 3, 3), rgb = it @ rgb
    shift = saturate[:, :1].sum(2) * ((1 - contrast) * brightness)[:, 0] * grey  # all rows have the same sum
    return saturate * contrast * brightness, shift


def erased(u: Tensor, ranges: Strength, size: int) -> tuple[Tensor, Tensor]:
    """Which rows and which columns, each (N, size), meet in a random rectangle; none in most of the images."""
    area = between(u[:, ERASED], ranges.erased) * (u[:, ERASING] < ranges.erasing)  # 0 where nothing is erased
    aspect = between(u[:, ERASED_ASPECT], (math.log(0.5), math.log(2.0))).exp()
    steps = (torch.arange(size, device=u.device) + 0.5) / size  # pixel centres, (T,)
    columns = within(steps, u[:, ERASED_X], (area * aspect).sqrt())
    rows = within(steps, u[:, ERASED_Y], (area / aspect).sqrt())
    return rows, columns


def within(steps: Tensor, place: Tensor, length: Tensor) -> Tensor:
    """(N, T): which of the steps lie in the stretch of ``length`` (N,) at ``place`` (N,) of the room left for it."""
    start = (place * (1 - length)).unsqueeze(1)
    return (steps >= start) & (steps < start + length.unsqueeze(1))
