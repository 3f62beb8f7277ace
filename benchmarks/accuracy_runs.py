"""One training and its figures, from scratch: ours, loops on timm's and torchvision's parts, Ultralytics, fastai.
``fine_tuning_runs`` has the same from loaded weights.

Each takes the folder that ``accuracy.split`` makes and sees as many images as the others. Nothing is chosen by the test
part, and the last epoch's weights count, but for Ultralytics, which keeps the best epoch of the validation part.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = min(4, os.cpu_count() or 1)


class Run(NamedTuple):
    """What to train on (``parts`` holds train, val, test), at which size, for how long."""

    parts: Path
    size: int
    epochs: int
    preset: str
    few: bool
    seed: int = 0
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    weights: str = "none"


# The first of each is what its authors give a user; the others are tried with one seed. timm: train.py's defaults, then
# AdamW with milder crops. torchvision: its reference script's defaults, then what its notes on fine recipes suggest.
ONE_CYCLE = {"opt": "adamw", "weight_decay": 0.05, "schedule": "onecycle", "smoothing": 0.1}
ADAMW = {"opt": "adamw", "weight_decay": 0.05, "hflip": 0.0, "warmup": 2}
YOLO_ADAMW = {"optimizer": "AdamW", "cos_lr": True}
TRIES: dict[str, list[dict[str, Any]]] = {
    "ours": [
        {},
        {"learning_rate": 2e-3},
        {"augmentation": "standard"},
        {"model.drop_path_rate": 0.0, "dropout_rate": 0.1},
    ],
    "timm": [
        {"opt": "sgd", "lr": 0.05, "weight_decay": 2e-5, "batch": 128, "scale": 0.08, "hflip": 0.5, "warmup": 5},
        ADAMW | {"lr": 1e-3, "batch": 32, "scale": 0.5},
        ADAMW | {"lr": 2e-3, "batch": 32, "scale": 0.35},
        ADAMW | {"lr": 2e-3, "batch": 64, "scale": 0.5},
    ],
    "torchvision": [
        {"opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "scale": 0.08, "hflip": 0.5, "smoothing": 0.0},
        ONE_CYCLE | {"lr": 2e-3, "scale": 0.5, "hflip": 0.0},
        ONE_CYCLE | {"lr": 1e-3, "scale": 0.5, "hflip": 0.0},
        ONE_CYCLE | {"lr": 2e-3, "scale": 0.35, "hflip": 0.5},
    ],
    "ultralytics": [
        {},
        YOLO_ADAMW | {"lr0": 1e-3},
        YOLO_ADAMW | {"lr0": 2e-3, "erasing": 0.0, "fliplr": 0.0},
        YOLO_ADAMW | {"lr0": 1e-3, "erasing": 0.0, "scale": 0.5, "fliplr": 0.0},
    ],
    "fastai": [
        {},
        {"lr_max": 3e-3},
        {"lr_max": 3e-3, "wd": 0.05, "do_flip": False},
        {"lr_max": 1e-2, "wd": 0.05, "do_flip": False},
    ],
}


def ours(run: Run) -> dict[str, Any]:
    """``fit`` with a preset as it is."""
    from effnet_lit import compose, fit
    from effnet_lit.training.result import peak_memory

    given = [f"{key}={value}" for key, value in run.settings.items()]
    limits = ["limits=off"] if run.few else []
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            f"preset={run.preset}",
            f"data.manifest={run.parts / 'manifest.csv'}",
            f"data.image_size={run.size}",
            f"model.weights={run.weights}",
            f"epochs={run.epochs}",
            f"seed={run.seed}",
            f"data.cache_dir={Path(folder) / 'cache'}",
            *limits,
            *given,
        )
        result = fit(config, Path(folder) / "run")
        page = json.loads((result.run_dir / "result.json").read_text(encoding="utf-8"))
    speed = page["images"]["train"] * config.epochs / page["seconds_training"]
    return figures(result.val_accuracy, result.test["accuracy"], speed, peak_memory() or 0, result.test["images"])


def figures(val: float, test: float, images_per_s: float | None, memory: int, images: int) -> dict[str, Any]:
    """As they stand in the file; no speed where it is not known."""
    return {
        "val_accuracy": val,
        "test_accuracy": test,
        "test_images": images,
        "images_per_s": images_per_s,
        "peak_memory_bytes": memory,
    }


def timm_run(run: Run) -> dict[str, Any]:
    """timm's B0."""
    seeded(run.seed)
    network = cast(Any, import_module("timm")).create_model("efficientnet_b0", num_classes=classes(run))
    return timm_loop(run, network, MEAN, DEVIATION)


def timm_loop(run: Run, network: Any, mean: Sequence[float], deviation: Sequence[float]) -> dict[str, Any]:
    """create_loader, create_optimizer_v2 and create_scheduler_v2 in the loop of timm's train.py."""
    import torch

    timm_data, timm_loss, timm_optim, timm_scheduler = (
        cast(Any, import_module(f"timm.{name}")) for name in ("data", "loss", "optim", "scheduler")
    )
    use = run.settings

    def loader(part: str, training: bool) -> Any:
        options: dict[str, Any] = {
            "scale": (use["scale"], 1.0),
            "ratio": (3 / 4, 4 / 3),
            "hflip": use["hflip"],
            "color_jitter": 0.4,
        }
        return timm_data.create_loader(
            timm_data.create_dataset("", root=str(run.parts / part)),
            input_size=(3, run.size, run.size),
            batch_size=use["batch"],
            is_training=training,
            interpolation="random" if training else "bicubic",
            mean=mean,
            std=deviation,
            num_workers=WORKERS,
            crop_pct=1.0,  # as ours: the whole image at the training size
            device=torch.device("cpu"),
            persistent_workers=True,
            **(options if training else {}),
        )

    train = loader("train", True)
    network = network.to(memory_format=torch.channels_last)
    optimizer = timm_optim.create_optimizer_v2(
        network, opt=use["opt"], lr=use["lr"], weight_decay=use["weight_decay"], momentum=0.9
    )
    scheduler, _ = timm_scheduler.create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=run.epochs, warmup_epochs=use["warmup"], warmup_lr=1e-5, min_lr=0.0
    )
    loss_of = timm_loss.LabelSmoothingCrossEntropy(0.1)

    def after_epoch(epoch: int) -> None:
        scheduler.step(epoch + 1)

    seconds = loop(network, train, optimizer, loss_of, run.epochs, lambda: None, after_epoch)
    return measured(run, network, loader, seconds, len(train.dataset))


def torchvision_run(run: Run) -> dict[str, Any]:
    """B0 in a plain loop: ImageFolder, RandomResizedCrop, flip, SGD with steps or AdamW with one cycle."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.models import efficientnet_b0
    from torchvision.transforms import v2

    use = run.settings
    seeded(run.seed)
    after = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    varied = [v2.RandomResizedCrop(run.size, scale=(use["scale"], 1.0)), v2.RandomHorizontalFlip(use["hflip"])]

    def loader(part: str, training: bool) -> Any:
        steps = varied if training else [v2.Resize((run.size, run.size))]
        images = ImageFolder(run.parts / part, v2.Compose([*steps, *after]))
        return torch.utils.data.DataLoader(
            images, 32, shuffle=training, drop_last=training, num_workers=WORKERS, persistent_workers=True
        )

    train = loader("train", True)
    network = efficientnet_b0(num_classes=classes(run)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate, decay = use["lr"], use["weight_decay"]
    steps = run.epochs * len(train)
    if use["opt"] == "sgd":
        optimizer: Any = torch.optim.SGD(network.parameters(), rate, 0.9, weight_decay=decay)
        schedule: Any = torch.optim.lr_scheduler.StepLR(optimizer, 30 * len(train), 0.1)
    else:
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=use["smoothing"])
    seconds = loop(network, train, optimizer, loss_of, run.epochs, schedule.step, lambda epoch: None)
    return measured(run, network, loader, seconds, len(train.dataset))


def ultralytics_run(run: Run) -> dict[str, Any]:
    """yolo11n-cls from scratch, a user's call."""

    from effnet_lit.training.result import peak_memory

    ultralytics = cast(Any, import_module("ultralytics"))
    ultralytics.settings.update({"sync": False})
    with tempfile.TemporaryDirectory() as folder:
        model = ultralytics.YOLO("yolo11n-cls.yaml")
        started = time.perf_counter()
        model.train(
            data=str(run.parts), epochs=run.epochs, imgsz=run.size, seed=run.seed, project=folder, name="run",
            plots=False, verbose=False, workers=WORKERS, device="cpu", **run.settings,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        val, test = (
            float(model.val(data=str(run.parts), split=part, imgsz=run.size, plots=False, verbose=False).top1)
            for part in ("val", "test")
        )
    count = images_in(run.parts / "train")
    return figures(val, test, count * run.epochs / seconds, peak_memory() or 0, images_in(run.parts / "test"))


def fastai_run(run: Run) -> dict[str, Any]:
    """timm's B0 under vision_learner, aug_transforms and fit_one_cycle, as fastai's tutorials call them."""
    import torch

    from effnet_lit.training.result import peak_memory

    vision = cast(Any, import_module("fastai.vision.all"))
    use = dict(run.settings)
    changes = {"do_flip": use.pop("do_flip", True)}
    rate = {"lr_max": use.pop("lr_max")} if "lr_max" in use else {}
    seeded(run.seed)
    batches = vision.ImageDataLoaders.from_folder(
        run.parts, train="train", valid="val", bs=32, num_workers=WORKERS, device=torch.device("cpu"),
        item_tfms=vision.Resize(run.size, method=vision.ResizeMethod.Squish),  # as ours: the whole image
        batch_tfms=vision.aug_transforms(**changes),
    )  # fmt: skip
    learner = vision.vision_learner(
        batches, "efficientnet_b0", pretrained=False, metrics=vision.accuracy, path=run.parts, **use
    )
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(run.epochs, **rate)
        seconds = time.perf_counter() - started
        held_out = batches.test_dl(vision.get_image_files(run.parts / "test"), with_labels=True)
        val, test = (float(learner.validate(dl=part)[1]) for part in (batches.valid, held_out))
    count = images_in(run.parts / "train")
    return figures(val, test, count * run.epochs / seconds, peak_memory() or 0, images_in(run.parts / "test"))


CONTENDERS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "ours": ours,
    "timm": timm_run,
    "torchvision": torchvision_run,
    "ultralytics": ultralytics_run,
    "fastai": fastai_run,
}


def loop(
    network: Any,
    batches: Iterable[Any],
    optimizer: Any,
    loss_of: Callable[..., Any],
    epochs: int,
    after_step: Callable[[], object],
    after_epoch: Callable[[int], object],
) -> float:
    """Train; returns the seconds."""
    import torch

    started = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        for images, labels in batches:
            loss = loss_of(network(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step()
            if not math.isfinite(float(loss.detach())):
                return time.perf_counter() - started
        after_epoch(epoch)
    return time.perf_counter() - started


def measured(run: Run, network: Any, loader: Callable[[str, bool], Any], seconds: float, images: int) -> dict[str, Any]:
    """Accuracy on val and test."""
    import torch

    from effnet_lit.training.result import peak_memory

    network.eval()
    shares = []
    for part in ("val", "test"):
        right = count = 0
        with torch.inference_mode():
            for batch, labels in loader(part, False):
                right += int((network(batch).argmax(1) == labels).sum())
                count += len(labels)
        shares.append(right / count)
    return figures(
        shares[0], shares[1], images * run.epochs / seconds, peak_memory() or 0, images_in(run.parts / "test")
    )


def seeded(seed: int) -> None:
    """All generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def classes(run: Run) -> int:
    """Folders of the training part."""
    return len(list((run.parts / "train").iterdir()))


def images_in(folder: Path) -> int:
    """Files of all classes."""
    return sum(1 for _ in folder.glob("*/*"))
