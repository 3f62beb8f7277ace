"""Weights from one set of photographs help on another: file, our names, new head, head first, lower rates below."""

from __future__ import annotations

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
    """From trashnet to sign_digits, 10 images a class to train on: at least 10 points above random weights."""
    source = compose(f"data.dir={SHARED / 'trashnet'}", "data.image_size=64", "model.weights=none")
    weights = fit(source, tmp_path / "source").model_path
    manifest = few(SHARED / "sign_digits", tmp_path / "few.csv")
    common = [f"data.manifest={manifest}", f"data.dir={SHARED / 'sign_digits'}", "data.image_size=64", "limits=off"]
    common += ["preset=small", "batch_size=16"]
    scratch = fit(compose(*common, "model.weights=none"), tmp_path / "scratch").test["accuracy"]
    carried = fit(compose(*common, f"model.weights={weights}"), tmp_path / "carried").test["accuracy"]
    assert carried >= scratch + POINTS, (carried, scratch)


def few(folder: Path, manifest: Path) -> Path:
    """Ten images a class to train on, ten to follow, the rest held out."""
    index = read_folder(folder)
    seen: dict[int, int] = {}
    rows = ["path,label,split"]
    for path, label in zip(index.paths, index.labels, strict=True):
        number = seen[label] = seen.get(label, 0) + 1
        part = "train" if number <= IMAGES_A_CLASS else "val" if number <= 2 * IMAGES_A_CLASS else "test"
        rows.append(f"{folder / path},{index.class_names[label]},{part}")
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest
