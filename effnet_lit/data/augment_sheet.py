"""Images before and after augmentation side by side, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from effnet_lit.data.augment import augment, random_numbers

EPOCHS = 7  # augmented versions of each image
CELL = 224  # longest side at which an image is drawn, in pixels
GAP, MARGIN, LINE = 8, 24, 30  # between images, around all, of one line of text
APART = 24  # from the images as they are to the augmented ones
BLACK, GREY = "#1f2933", "#7b8794"


def write_augment_sheet(
    path: Path,
    images: np.ndarray,
    captions: Sequence[str],
    strength: str,
    image_size: int,
    horizontal_flip: bool,
    rotation: bool,
    seed: int,
) -> None:
    """Write a PNG with one row for each of the images uint8 (K, S, S, 3): as it is, then as epochs 0 to 6 vary it."""
    versions = augmented(images, strength, image_size, horizontal_flip, rotation, seed)
    side = drawn_side(image_size)
    columns = [MARGIN] + [MARGIN + APART + (side + GAP) * (1 + epoch) for epoch in range(EPOCHS)]
    head, row_height = MARGIN + 3 * LINE + GAP, LINE + side + 2 * GAP
    sheet = Image.new("RGB", (columns[-1] + side + MARGIN, head + row_height * len(images) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    flip, turn = ("on" if switch else "off" for switch in (horizontal_flip, rotation))
    settings = f"image_size={image_size}  horizontal_flip={flip}  rotation={turn}  seed={seed}"
    write(draw, columns[0], MARGIN, "as it is", BLACK, 24)
    write(draw, columns[1], MARGIN, f"as training sees it (augmentation={strength})", BLACK, 24)
    write(draw, columns[1], MARGIN + LINE, settings, GREY, 18)
    for epoch, left in enumerate(columns[1:]):
        write(draw, left, MARGIN + 2 * LINE, f"epoch {epoch}", GREY, 18)
    for i, (caption, image) in enumerate(zip(captions, images, strict=True)):
        top = head + i * row_height
        write(draw, columns[0], top, caption, BLACK, 18)
        for left, pixels in zip(columns, [image, *versions[:, i]], strict=True):
            sheet.paste(scaled(pixels, side), (left, top + LINE))
    sheet.save(path, "PNG")


def augmented(
    images: np.ndarray, strength: str, image_size: int, horizontal_flip: bool, rotation: bool, seed: int
) -> np.ndarray:
    """uint8 (K, S, S, 3) -> uint8 (EPOCHS, K, image_size, image_size, 3)."""
    batch = torch.tensor(images)
    numbers = [torch.from_numpy(random_numbers(seed, epoch, 0, len(batch))) for epoch in range(EPOCHS)]
    versions = [augment(batch, u, strength, image_size, horizontal_flip, rotation) for u in numbers]
    return (torch.stack(versions) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()


def drawn_side(image_size: int) -> int:
    """Small images are drawn several times as large, so that their pixels show; large ones at CELL."""
    return image_size * (CELL // image_size) if image_size <= CELL else CELL


def scaled(pixels: np.ndarray, side: int) -> Image.Image:
    """uint8 (S, S, 3) as a picture of this side."""
    enlarged = len(pixels) < side
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return picture.resize((side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, colour: str, size: int) -> None:
    """One line of text that ends at the sheet's margin; of a longer one, its end, where file names differ."""
    font = ImageFont.load_default(size)
    text = "".join(character if character.isprintable() else "?" for character in text)
    room, shown = draw.im.size[0] - MARGIN - left, text
    while draw.textlength(shown, font) > room:
        text = text[1:]
        shown = f"...{text}"
    draw.text((left, top), shown, colour, font)
