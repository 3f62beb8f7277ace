"""Fixtures that several files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


# Before torch is imported, and for child processes: tiny networks gain nothing from threads, and threads that wait for
# a busy core make them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images of tests never touch the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFNET_LIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40 noisy PNG images, 48 x 48, told apart by colour."""
    root = tmp_path_factory.mktemp("data") / "colours"
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.clip(np.array(colour) + noise.normal(0, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root
