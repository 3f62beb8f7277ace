"""Predictions from a model file and image files, by the decode that training used."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
import torch

from effnet_lit.config import UserError
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.data.folder import is_hidden, is_image_name
from effnet_lit.deploy.ranking import likeliest
from effnet_lit.machine import cores
from effnet_lit.model.modelfile import Header, ImageClassifier


@dataclass(frozen=True)
class Prediction:
    """One image's answer: probabilities in the order of the model's classes, whether it is unlike the training images,
    and the image as the model saw it, uint8 (S, S, 3); or why there are none."""

    path: str
    probabilities: np.ndarray | None
    error: str = ""
    image: np.ndarray | None = None
    unlike: bool = False

    def top(self, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The likeliest classes, best first."""
        assert self.probabilities is not None
        return likeliest(self.probabilities, class_names, count)


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files as given, folders as the image files below them, sorted; patterns as the files that match.

    Raises:
        UserError: a path does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
            found += sorted(file for file in inside if is_image_name(file.name) and not is_hidden(file.name))
        elif path.is_file():
            found.append(path)
        elif matching := sorted(match for match in glob(str(path), recursive=True) if is_image_name(match)):
            found += map(Path, matching)
        else:
            raise UserError(f"{path} does not exist; give image files or folders of images.")
    if not found:
        raise UserError(f"{', '.join(map(str, paths))} holds no image files; give image files or folders of images.")
    return found


def predict(classifier: ImageClassifier, paths: Sequence[Path]) -> Iterator[Prediction]:
    """Yield one prediction a path, in order; a file that cannot be read gets its reason and the rest go on."""
    size, resize = classifier.header.eval_size, classifier.header.resize

    def read(path: Path) -> np.ndarray | str:
        try:
            return decode(path, size, resize)
        except DecodeError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        groups = [paths[start : start + classifier.batch] for start in range(0, len(paths), classifier.batch)]
        coming = pool.map(read, groups[0]) if groups else iter(())
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            images = list(coming)
            coming = pool.map(read, following)  # decoded while the network computes
            readable = [image for image in images if isinstance(image, np.ndarray)]
            answers = iter(answer(classifier, readable))
            for path, image in zip(group, images, strict=True):
                if isinstance(image, str):
                    yield Prediction(str(path), None, image)
                else:
                    probabilities, unlike = next(answers)
                    yield Prediction(str(path), probabilities, image=image, unlike=unlike)


def is_sure(probability: float, header: Header) -> bool:
    """Whether the answer is given without "not sure"."""
    return probability >= header.calibration.get("abstain_below", 0.0)


@torch.inference_mode()
def answer(classifier: ImageClassifier, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, bool]]:
    """Probabilities (classes) of each decoded image (S, S, 3), and whether it is unlike the training images."""
    if not images:
        return []
    device = next(classifier.parameters()).device
    probabilities, shares = classifier.with_familiarity(torch.from_numpy(np.stack(images)).to(device))
    unlike = shares > classifier.header.calibration.get("unlike_above", math.inf)
    return list(zip(probabilities.cpu().numpy(), unlike.tolist(), strict=True))
