"""Real photographs for tests: the two that come with scikit-learn, cut into tiles."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

TILE, STEP = 120, 60
NAMES = ("china", "flower")


@cache
def tiles(name: str) -> tuple[Image.Image, ...]:
    """The 40 tiles of one photograph that show most; neighbours share half."""
    photo = Image.fromarray(load_sample_image(f"{name}.jpg"))  # 640 x 427
    corners = [(x, y) for y in range(0, 427 - TILE, STEP) for x in range(0, 640 - TILE, STEP)]
    all_tiles = [photo.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    return tuple(sorted(all_tiles, key=lambda tile: -np.asarray(tile.convert("L")).std())[:40])


def photo_folder(root: Path, quality: int = 90) -> Path:
    """Two classes of 40 tiles, root/china/00.jpg to root/flower/39.jpg."""
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number, tile in enumerate(tiles(name)):
            tile.save(root / name / f"{number:02}.jpg", quality=quality)
    return root
