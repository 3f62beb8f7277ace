"""The contact sheet, read back from its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from effnet_lit.data.augment import augment, random_numbers
from effnet_lit.data.augment_sheet import EPOCHS, write_augment_sheet

RED = np.array([255, 0, 0], np.uint8)
SIZE = 112  # drawn twice as large


def sheet(
    folder: Path, images: np.ndarray, captions: Sequence[str], strength: str, size: int = SIZE, rotation: bool = True
) -> np.ndarray:
    """The sheet's pixels, uint8 (height, width, 3)."""
    path = folder / "sheet.png"
    write_augment_sheet(path, images, captions, strength, size, True, rotation, 3)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def cells(folder: Path, count: int, size: int = SIZE) -> list[list[tuple[slice, slice]]]:
    """Where the sheet shows each image and its versions, found by drawing red ones."""
    pixels = sheet(folder, np.broadcast_to(RED, (count, SIZE, SIZE, 3)).copy(), ["red"] * count, "none", size)
    red = (pixels == RED).all(2)
    rows, columns = runs(red.any(1)), runs(red.any(0))
    assert (len(rows), len(columns)) == (count, 1 + EPOCHS)
    return [[(slice(*row), slice(*column)) for column in columns] for row in rows]


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_shows_the_images_and_what_augment_makes_of_them(tmp_path: Path) -> None:
    images = photos(2)
    pixels = sheet(tmp_path, images, ["a", "b"], "heavy")
    places = cells(tmp_path, 2)
    for row, image in zip(places, images, strict=True):
        assert np.array_equal(pixels[row[0]][::2, ::2], image)
        assert np.array_equal(pixels[row[0]][1::2, 1::2], image)
    for epoch in range(EPOCHS):
        u = torch.from_numpy(random_numbers(3, epoch, 0, 2))
        varied = augment(torch.from_numpy(images), u, "heavy", SIZE, True, True).permute(0, 2, 3, 1).numpy()
        for row, expected in zip(places, varied, strict=True):
            assert np.abs(pixels[row[1 + epoch]][::2, ::2] / 255 - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("size", [8, 32, 100, 112, 224, 300, 600])
def test_cells_are_square_large_enough_and_the_sheet_not_too_wide(tmp_path: Path, size: int) -> None:
    places = cells(tmp_path, 3, size)
    sides = {(place.stop - place.start) for row in places for pair in row for place in pair}
    assert len(sides) == 1
    assert 112 < min(sides) <= 224
    assert sheet(tmp_path, photos(3), ["a", "b", "c"], "light", size).shape[1] <= 2000


def test_captions_stand_above_their_images_and_inside_the_sheet(tmp_path: Path) -> None:
    white = np.full((3, SIZE, SIZE, 3), 255, np.uint8)
    long = "folder/" + "very_long_name_" * 40
    lines = [sheet(tmp_path, white, captions, "none") for captions in (["", "", ""], ["", long + "1.jpg", ""])]
    lines.append(sheet(tmp_path, white, ["", long + "2.jpg", ""], "none"))
    blank, first, second = lines
    row = cells(tmp_path, 3)[1][0][0]
    ink = (first != blank).any(2)
    top, bottom = np.flatnonzero(ink.any(1))[[0, -1]]
    assert row.start - 40 < top < bottom < row.start
    left, right = np.flatnonzero(ink.any(0))[[0, -1]]
    assert 10 < left < right < blank.shape[1] - 10
    assert (first != second).any()  # shortened at its start: file names differ at the end


def test_a_caption_may_hold_anything_a_file_name_may(tmp_path: Path) -> None:
    sheet(tmp_path, photos(1), ["tab\tnewline\nnot utf-8 \udcff 猫"], "light")


def test_rotation_switched_off_is_seen(tmp_path: Path) -> None:
    stripes = np.broadcast_to(np.arange(SIZE, dtype=np.uint8).reshape(1, SIZE, 1, 1) * 2, (1, SIZE, SIZE, 3)).copy()
    row = cells(tmp_path, 1)[0]
    for rotation in (True, False):
        pixels = sheet(tmp_path, stripes, ["stripes"], "standard", rotation=rotation)
        assert all((np.ptp(pixels[cell], axis=1).max() > 2) == rotation for cell in row[1:])
