"""The embedded default: 1,797 real scanned digits (scikit-learn's copy of UCI's test set), written as class folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from effnet_lit.config import UserError

SIZE = 64  # pixels; the originals are 8 x 8 with values 0 to 16
MARKER = ".complete"


def digits_folder(cache_dir: Path) -> Path:
    """The digits below the cache folder, written there at the first call."""
    return write_digits(cache_dir / f"digits-{SIZE}")


def write_digits(folder: Path) -> Path:
    """Write ``folder``/CLASS/NUMBER.png, all or nothing; a folder that is there already stays as it is.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    if (folder / MARKER).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write_images(unfinished)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if not (folder / MARKER).is_file():  # else another run was faster
            raise UserError(
                f"The digits cannot be written to {folder} ({error.strerror}); "
                "set data.cache_dir to a folder that can be written."
            ) from error
    return folder


def write_images(folder: Path) -> None:
    """Enlarge every digit and save it by class."""
    from sklearn.datasets import load_digits  # a second of import, needed once

    pixels_of_all, labels = load_digits(return_X_y=True)  # (1797, 64) in 0-16, (1797,)
    for label in range(10):
        (folder / str(label)).mkdir()
    for number, (pixels, label) in enumerate(zip(pixels_of_all, labels, strict=True)):
        image = Image.fromarray(np.uint8(np.rint(pixels.reshape(8, 8) * 255 / 16)))
        image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number:04}.png")
    (folder / MARKER).touch()
