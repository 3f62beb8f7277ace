"""Weights from one set of photographs help on another: file, our names, new head, head first, the whole network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from effnet_lit import compose, fit
from effnet_lit.data.folder import read_folder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES_A_CLASS = 10
POINTS = 0.10


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "trashnet").is_dir(), reason="the photographs are not part of the project")
def test_ten_images_a_class(tmp_path: Path) -> None:
    """From trashnet to sign_digits, 10 images a class to train on: at least 10 points above random weights, at the same
    augmentation and rate. Weights from so few and other images want the rate of random ones
    (docs/decisions/fine_tuning.md)."""
    source = compose(f"data.dir={SHARED / 'trashnet'}", "data.image_size=64", "model.weights=none")
    weights = fit(source, tmp_path / "source").model_path
    manifest = few(SHARED / "sign_digits", tmp_path / "few.csv")
    common = [f"data.manifest={manifest}", f"data.dir={SHARED / 'sign_digits'}", "data.image_size=64", "limits=off"]
    common += ["preset=small", "augmentation=heavy"]
    scratch = fit(compose(*common, "model.weights=none"), tmp_path / "scratch")
    loaded = [f"model.weights={weights}", "learning_rate=4e-3", "training.layer_decay=1"]
    carried = fit(compose(*common, *loaded), tmp_path / "carried")
    assert carried.test["accuracy"] >= scratch.test["accuracy"] + POINTS


def few(folder: Path, manifest: Path) -> Path:
    """Ten images a class to train on, ten to follow, the rest held out, by chance: neighbours show the same hand."""
    index = read_folder(folder)
    images = list(zip(index.paths, index.labels, strict=True))
    random.Random(0).shuffle(images)
    seen: dict[int, int] = {}
    rows = ["path,label,split"]
    for path, label in images:
        number = seen[label] = seen.get(label, 0) + 1
        part = "train" if number <= IMAGES_A_CLASS else "val" if number <= 2 * IMAGES_A_CLASS else "test"
        rows.append(f"{folder / path},{index.class_names[label]},{part}")
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest
