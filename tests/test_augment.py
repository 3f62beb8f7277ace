"""Augmentation against torchvision on the same parameters, and as a function of (seed, epoch, position)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from effnet_lit.data.augment import (
    NUMBERS,
    STRENGTHS,
    Strength,
    adjust_colour,
    affine_theta,
    augment,
    colour_factors,
    crop_theta,
    cropped,
    random_numbers,
    sample,
    vary_batch,
    vary_each,
)
from effnet_lit.data.datamodule import epoch_order

SIZE = 64


def smooth_images(count: int = 4) -> Tensor:
    """(N, 3, 64, 64) in 0-1 without sharp edges, so that ways of interpolating differ little."""
    rough = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(rough, (SIZE, SIZE), mode="bicubic").clamp(0, 1)


def theta(
    x: float = 0, y: float = 0, width: float = 1, height: float = 1, degrees: float = 0, count: int = 4
) -> Tensor:
    """The same rectangle for every image; centre and sizes as in ``affine_theta``."""
    one = torch.ones(count)
    return affine_theta(torch.tensor([[x, y]] * count), width * one, height * one, math.radians(degrees) * one)


def crop_as_theta(top: int, left: int, height: int, width: int) -> Tensor:
    """torchvision's crop in pixels as theta."""
    x, y = (2 * left + width) / SIZE - 1, (2 * top + height) / SIZE - 1
    return theta(x, y, width / SIZE, height / SIZE)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (5, 17), (32, 32)])
def test_crop_without_resizing_is_torchvisions(top: int, left: int) -> None:
    images = torch.rand(4, 3, SIZE, SIZE)
    ours = sample(images, crop_as_theta(top, left, 32, 32), 32)
    assert torch.allclose(ours, tv.crop(images, top, left, 32, 32), atol=1e-5)


@pytest.mark.parametrize("box", [(3, 9, 40, 40), (10, 0, 30, 50), (0, 20, 48, 36)])
def test_crop_with_resizing_is_torchvisions(box: tuple[int, int, int, int]) -> None:
    images = smooth_images()
    ours = sample(images, crop_as_theta(*box), SIZE)
    theirs = tv.resized_crop(images, *box, [SIZE, SIZE], InterpolationMode.BILINEAR, antialias=False)
    inner = slice(2, -2)  # at its border a crop knows no neighbours outside; one sampling of the whole does
    assert torch.allclose(ours[..., inner, inner], theirs[..., inner, inner], atol=1e-5)
    assert torch.allclose(ours, theirs, atol=0.06)


@pytest.mark.parametrize("size", [40, 48, 65])
@pytest.mark.parametrize("box", [(3, 9, 40, 40), (10, 0, 30, 51), (0, 20, 48, 37), (0, 0, 64, 64)])
def test_uint8_crop_is_torchvisions(box: tuple[int, int, int, int], size: int) -> None:
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    ours, mirrored = (cropped(images, turn, size) for turn in (crop_as_theta(*box), mirror(crop_as_theta(*box))))
    for i, image in enumerate(images.permute(0, 3, 1, 2)):
        theirs = tv.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR, antialias=False).float()
        pair = torch.stack([ours(i), mirrored(i)]).view(2, size, size, 3).permute(0, 3, 1, 2)
        assert (pair - torch.stack([theirs, theirs.flip(2)])).abs().max() <= 1  # rounding, on some processors


def mirror(theta: Tensor) -> Tensor:
    return theta * torch.tensor([-1.0, 1.0, 1.0])


def test_mirroring_is_torchvisions() -> None:
    images = torch.rand(4, 3, SIZE, SIZE)
    assert torch.allclose(sample(images, theta(width=-1), SIZE), tv.horizontal_flip(images), atol=1e-5)


@pytest.mark.parametrize("degrees", [-90, -12.5, 7, 45])
def test_rotation_is_torchvisions(degrees: float) -> None:
    images = smooth_images()
    ours = sample(images, theta(degrees=degrees), SIZE)
    theirs = tv.rotate(images, degrees, InterpolationMode.BILINEAR)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = (x - 31.5).square() + (y - 31.5).square() < 30**2  # outside it torchvision fills with black
    assert torch.allclose(ours[..., disc], theirs[..., disc], atol=1e-4)


def test_outside_is_the_image_reflected_not_black() -> None:
    bright = torch.full((1, 3, SIZE, SIZE), 0.8)
    assert torch.allclose(sample(bright, theta(degrees=45, count=1), SIZE), bright, atol=1e-5)


@pytest.mark.parametrize(
    ("brightness", "contrast", "saturation"), [(1.2, 1, 1), (1, 0.7, 1), (1, 1, 1.4), (0.8, 1.1, 0.6)]
)
def test_colours_are_torchvisions_where_nothing_is_clamped(
    brightness: float, contrast: float, saturation: float
) -> None:
    images = 0.35 + 0.3 * torch.rand(4, 3, SIZE, SIZE)
    theirs = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(images, brightness), contrast), saturation)
    ours = adjust_colour(images, *(torch.full((4,), factor) for factor in (brightness, contrast, saturation)))
    assert 0 < theirs.min() < theirs.max() < 1
    assert torch.allclose(ours, theirs, atol=2e-6)


def test_colours_on_a_cpu_are_torchvisions_where_nothing_is_clamped() -> None:
    whole = Strength((1, 1), (1, 1), 0, 0.2, 0, (0, 0))
    images = torch.randint(100, 140, (8, SIZE, SIZE, 3), dtype=torch.uint8)
    u = numbers(0, 8)
    ours = vary_each(images, u, whole, SIZE, False)
    for own, image, factors in zip(ours, images, zip(*colour_factors(u, whole), strict=True), strict=True):
        theirs = image.permute(2, 0, 1) / 255
        brightness, contrast, saturation = map(float, factors)
        theirs = tv.adjust_contrast(tv.adjust_brightness(theirs, brightness), contrast)
        theirs = tv.adjust_saturation(theirs, saturation)
        assert 0 < theirs.min() < theirs.max() < 1
        assert torch.allclose(own, theirs, atol=2e-6)


def test_colours_are_each_images_own() -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    factors = torch.tensor([1.0, 0.5])
    ours = adjust_colour(images, factors, torch.ones(2), torch.ones(2))
    assert torch.allclose(ours, images * factors.view(2, 1, 1, 1), atol=1e-6)


def stored(count: int) -> Tensor:
    """Cached images, uint8 (N, 64, 64, 3)."""
    return (smooth_images(count) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def numbers(start: int, count: int, seed: int = 1, epoch: int = 2) -> Tensor:
    return torch.from_numpy(random_numbers(seed, epoch, start, count))


@pytest.mark.parametrize("strength", ["none", *STRENGTHS])
@pytest.mark.parametrize("size", [48, 64])
def test_form_and_range(strength: str, size: int) -> None:
    pixels = augment(stored(6), numbers(0, 6), strength, size, True, True)
    assert pixels.shape == (6, 3, size, size)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_none_is_the_image_itself() -> None:
    images = stored(4)
    same = augment(images, numbers(0, 4), "none", SIZE, True, True)
    assert torch.equal(same, images.permute(0, 3, 1, 2) / 255)
    smaller = augment(images, numbers(0, 4), "none", 48, True, True)
    theirs = tv.resize(images.permute(0, 3, 1, 2) / 255, [48, 48], antialias=True)
    assert torch.allclose(smaller, theirs, atol=1 / 255)  # a CPU resizes uint8


def test_numbers_do_not_depend_on_batches() -> None:
    whole = random_numbers(3, 5, 0, 100)
    assert whole.shape == (100, NUMBERS)
    assert np.array_equal(whole[37:41], random_numbers(3, 5, 37, 4))
    assert np.array_equal(np.concatenate([random_numbers(3, 5, i, 7) for i in range(0, 98, 7)]), whole[:98])


def test_numbers_differ_by_seed_epoch_position_and_column() -> None:
    drawn = np.concatenate([random_numbers(s, e, 0, 50) for s in (0, 1) for e in (0, 1)])
    assert len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean() - 0.5) < 0.02
    assert random_numbers(2**31 - 1, 10**6, 10**9, 1).shape == (1, NUMBERS)


def test_numbers_are_what_they_were_in_the_first_release() -> None:
    assert random_numbers(7, 3, 11, 1)[0, :2].tolist() == [0.42661749306565, 0.8969101817005789]
    assert epoch_order(8, 7, 3).tolist() == [6, 4, 0, 2, 5, 3, 1, 7]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch uses, until the test's end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("size", [48, 211])  # images below and above the size where threads are used; odd
@pytest.mark.parametrize("strength", ["none", *STRENGTHS])
def test_a_sample_is_the_same_in_any_batch_and_on_any_threads(
    strength: str, size: int, rotation: bool, threads: Callable[[int], None]
) -> None:
    images = stored(7)
    threads(3)
    whole = augment(images, numbers(16, 7), strength, size, True, rotation)
    assert torch.get_num_threads() == 3
    threads(1)
    for start, end in ((0, 1), (1, 4), (4, 7)):
        part = augment(images[start:end], numbers(16 + start, end - start), strength, size, True, rotation)
        assert torch.equal(part, whole[start:end])
    other = augment(images, numbers(24, 7), strength, size, True, rotation)
    assert torch.equal(whole, other) if strength == "none" else not torch.allclose(whole, other, atol=0.05)


@pytest.mark.parametrize("around", [partial(torch.autocast, "cpu", torch.bfloat16), torch.inference_mode])
def test_nothing_around_changes_a_sample(
    around: Callable[[], AbstractContextManager[None]], threads: Callable[[int], None]
) -> None:
    images, u, heavy = stored(3), numbers(0, 3), STRENGTHS["heavy"]
    plain = [augment(images, u, "heavy", 211, True, True), vary_batch(images, u, heavy, 211, True)]
    for count in (1, 2):
        threads(count)
        with around():
            pixels = [augment(images, u, "heavy", 211, True, True), vary_batch(images, u, heavy, 211, True)]
        assert torch.equal(pixels[0], plain[0])
        assert torch.allclose(pixels[1], plain[1], atol=1e-5)


@pytest.mark.parametrize("size", [48, 64, 71])
@pytest.mark.parametrize("horizontal_flip", [True, False])
@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_cpu_shows_what_an_accelerator_shows(strength: str, rotation: bool, horizontal_flip: bool, size: int) -> None:
    images, u = stored(16), numbers(0, 16)
    ranges = STRENGTHS[strength] if rotation else replace(STRENGTHS[strength], rotation=0)
    ours = augment(images, u, strength, size, horizontal_flip, rotation)
    theirs = vary_batch(images, u, ranges, size, horizontal_flip)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    difference = (ours - theirs).abs()
    if rotation:
        assert difference.max() < 1e-4
    else:  # crops of whole pixels, moved by up to half of one
        assert difference.mean() < 0.015
        assert difference.quantile(0.999) < 0.1


@pytest.mark.parametrize("strength", STRENGTHS)
def test_rotation_can_be_switched_off(strength: str) -> None:
    stripes = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, SIZE, 1, 1).expand(8, SIZE, SIZE, 3).contiguous()
    no_erasing = numbers(0, 8).index_fill(1, torch.tensor([9]), 1.0)
    level = augment(stripes, no_erasing, strength, SIZE, True, False)
    assert (level.amax(3) - level.amin(3)).max() == 0  # along a stripe
    turned = augment(stripes, no_erasing, strength, SIZE, True, True)
    assert (turned.amax(3) - turned.amin(3)).amax((1, 2)).median() > 0.02


@pytest.mark.parametrize("strength", STRENGTHS)
def test_crops_stay_inside_and_in_their_range(strength: str) -> None:
    ranges = STRENGTHS[strength]
    thetas = crop_theta(numbers(0, 4000).float(), ranges, True)  # (N, 2, 3)
    matrix, centre = thetas[:, :, :2], thetas[:, :, 2].abs()
    area = matrix.det().abs()
    assert area.max() <= ranges.crop[1] + 1e-4
    assert area.quantile(0.01) > ranges.crop[0] * 0.95  # a narrow one may be cut at the image's side
    width, height = matrix[:, :, 0].norm(dim=1), matrix[:, :, 1].norm(dim=1)
    assert (width + centre[:, 0]).max() <= 1 + 1e-5
    assert (height + centre[:, 1]).max() <= 1 + 1e-5
    angle = torch.rad2deg(torch.atan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    assert 0.95 * ranges.rotation < angle.abs().max() <= ranges.rotation + 1e-3
    mirrored = (matrix.det() < 0).float().mean()
    assert 0.45 < mirrored < 0.55
    assert (crop_theta(numbers(0, 400).float(), ranges, False)[:, :, :2].det() > 0).all()


def test_erasing_takes_its_share_of_images_and_of_pixels() -> None:
    ranges = STRENGTHS["heavy"]
    white = torch.full((400, 32, 32, 3), 255, dtype=torch.uint8)
    pixels = augment(white, numbers(0, 400), "heavy", 32, True, True)
    share = (pixels == 0.5).all(1).float().mean((1, 2))
    hit = share > 0
    assert abs(hit.float().mean() - ranges.erasing) < 0.06
    assert ranges.erased[0] * 0.5 < share[hit].min()
    assert share[hit].max() < ranges.erased[1] * 1.25
    assert not (augment(white[:50], numbers(0, 50), "light", 32, True, True) == 0.5).all(1).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_the_same() -> None:
    images = stored(8)
    for strength in ("none", *STRENGTHS):
        on_gpu = augment(images.cuda(), numbers(0, 8), strength, 48, True, True)
        assert on_gpu.is_cuda
        assert torch.allclose(on_gpu.cpu(), augment(images, numbers(0, 8), strength, 48, True, True), atol=1 / 255)
