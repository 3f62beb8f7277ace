"""Our side of the comparisons, through the same calls that a run makes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import nn

from benchmarks.peers import BATCH, SIZE, Epochs
from effnet_lit.composition import compose
from effnet_lit.config import Config
from effnet_lit.data.augment import STRENGTHS
from effnet_lit.data.datamodule import ClassFolderDataModule
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.training.module import Classifier

# What all contenders can do: our "standard" without rotation, and that without colours.
STRENGTHS["augmented"] = replace(STRENGTHS["standard"], rotation=0)
STRENGTHS["crop_flip"] = replace(STRENGTHS["augmented"], colour=0)


def our_config(data: Path, cache_dir: Path, *more: str) -> Config:
    """A run on these images; nearly all of them train, as they do with the others, and few images are no error."""
    return compose(
        f"data.dir='{data}'",
        f"data.cache_dir='{cache_dir}'",
        "data.val_fraction=0.01",
        "data.test_fraction=0.01",
        "model.weights=none",
        "limits=off",
        *more,
    )


def our_prepare(config: Config) -> PreparedData:
    """``prepare`` as a run calls it."""
    assert isinstance(config.data.eval_size, int)
    return prepare(config.data, config.seed, False, config.data.eval_size, lambda done, total: None)


def our_first_pass(data: Path, *more: str) -> float:
    """Seconds of audit, split and cache in a fresh cache folder."""
    with tempfile.TemporaryDirectory(prefix="effnet-first-pass-") as folder:
        config = our_config(data, Path(folder), *more)
        start = time.perf_counter()
        our_prepare(config)
        return time.perf_counter() - start


@cache
def our_data(data: Path) -> tuple[Config, PreparedData]:
    """Images that are in the cache, kept beside ``data``."""
    config = our_config(data, data.parent / "cache", f"data.image_size={SIZE}", "data.horizontal_flip=on")
    config.data.mean, config.data.std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return config, our_prepare(config)


def our_epochs(data: Path, scenario: str, workers: int, variant: str) -> Epochs:
    """Our loader: uint8 batches of the evaluation's size, or what a training step makes of them."""
    config, prepared = our_data(data)
    loader = ClassFolderDataModule(prepared, BATCH, config.seed, workers).train_dataloader()
    if scenario == "decoded":
        return Epochs(loader, lambda batch: batch["images"])
    config.augmentation = scenario
    module = Classifier(nn.Identity(), len(prepared.class_names), config, total_steps=1)
    return Epochs(loader, lambda batch: module.normalise(module.vary(batch)[0]))
