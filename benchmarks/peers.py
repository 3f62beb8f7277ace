"""Other people's loaders and auditors at their best settings, each imported only when it is measured.

A loader here is an object that is iterated once an epoch and gives image tensors (B, ...), shuffled, of the fixed
size that training at 224 needs. ``scenario`` says how much is done to them:

    decoded      the least that gives tensors of one size: short side to 224 pixels, centre crop, no augmentation
    crop_flip    random resized crop and horizontal flip, float, normalised
    augmented    the same and brightness, contrast and saturation jitter
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

SIZE = 224
BATCH = 32
SCALE = (0.5, 1.0)  # of the crop's area: our "standard" augmentation without its rotation
RATIO = (0.8, 1.25)
JITTER = 0.2
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Epochs:
    """One epoch of image tensors at every iteration; ``batches`` gives whatever the library gives."""

    def __init__(self, batches: Any, image: Callable[[Any], Tensor], close: Callable[[], None] = lambda: None) -> None:
        self.batches, self.image, self.close = batches, image, close

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.image, self.batches)


def timm_epochs(data: Path, scenario: str, workers: int, variant: str) -> Epochs:
    """``timm.data.create_loader``. Its normalisation is a step of its own, left out where images are only decoded."""
    timm_data: Any = import_module("timm.data")
    loader = timm_data.create_loader(
        timm_data.create_dataset("", root=str(data)),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        no_aug=scenario == "decoded",
        scale=SCALE,
        ratio=RATIO,
        color_jitter=JITTER if scenario == "augmented" else 0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=DEVIATION,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    return Epochs(loader.loader if scenario == "decoded" else loader, lambda batch: batch[0])


def torchvision_epochs(data: Path, scenario: str, workers: int, variant: str) -> Epochs:
    """What torchvision's reference training script builds, written anew because the wheel does not hold it:
    ImageFolder, transforms.v2 on Pillow images or on tensors (its --backend), a DataLoader."""
    from torchvision.datasets import ImageFolder

    return torch_loader(ImageFolder(data, torchvision_transform(scenario, variant)), workers)


def torchvision_transform(scenario: str, backend: str) -> Callable[[Any], Tensor]:
    """The reference's training preset with a colour jitter, or its evaluation preset up to uint8 tensors."""
    from torchvision.transforms import v2

    to_tensor = [v2.PILToTensor()]
    if scenario == "decoded":
        steps: list[Any] = [v2.Resize(SIZE, antialias=True), v2.CenterCrop(SIZE)]
        finish: list[Any] = []
    else:
        steps = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
        steps += [v2.ColorJitter(JITTER, JITTER, JITTER)] if scenario == "augmented" else []
        finish = [v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, DEVIATION)]
    ordered = to_tensor + steps if backend == "tensor" else steps + to_tensor
    return v2.Compose([*ordered, *finish, v2.ToPureTensor()])


def torch_loader(dataset: Any, workers: int) -> Epochs:
    """PyTorch's loader at its best: workers that live on, and twice the usual number of batches ahead."""
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )
    return Epochs(loader, lambda batch: batch[0])


def ultralytics_epochs(data: Path, scenario: str, workers: int, variant: str) -> Epochs:
    """Ultralytics' classification dataset and loader; ``variant`` is what it keeps decoded: nothing, RAM or disk."""
    dataset = ultralytics_dataset(data, variant)
    dataset.torch_transforms = ultralytics_transform(scenario)
    loader = import_module("ultralytics.data").build_dataloader(dataset, BATCH, workers, drop_last=True, device="cpu")
    return Epochs(loader, lambda batch: batch["img"], loader.close)


@cache
def ultralytics_dataset(data: Path, variant: str) -> Any:
    """The dataset, every image decoded where they are kept."""
    kept = {"cache off": False, "cache ram": "ram", "cache disk": "disk"}[variant]
    overrides = {"task": "classify", "imgsz": SIZE, "cache": kept}
    settings = import_module("ultralytics.cfg").get_cfg(overrides=overrides)
    dataset = import_module("ultralytics.data").ClassificationDataset(str(data), settings, augment=True, prefix="train")
    if variant == "cache disk":  # filled here: of two workers, one may read the file that the other is still writing
        for i in range(len(dataset)):
            dataset[i]
    return dataset


def ultralytics_transform(scenario: str) -> Callable[[Any], Tensor]:
    """Its own transforms, with our values where the library takes them."""
    own: Any = import_module("ultralytics.data.augment")
    if scenario == "decoded":
        return own.classify_transforms(SIZE)
    jitter = JITTER if scenario == "augmented" else 0.0
    return own.classify_augmentations(SIZE, scale=SCALE, ratio=RATIO, hsv_h=0.0, hsv_s=jitter, hsv_v=jitter)


def prepare_ultralytics(settings: Path) -> None:
    """Keep its settings file out of the user's home, and it from printing and from looking for a network."""
    os.environ |= {"YOLO_CONFIG_DIR": str(settings), "YOLO_VERBOSE": "False", "YOLO_OFFLINE": "True"}


def cleanvision_audit(data: Path, jobs: int) -> None:
    """cleanvision's default audit."""
    import_module("cleanvision").Imagelab(data_path=str(data)).find_issues(n_jobs=jobs, verbose=False)


def pillow_pass(data: Path, pool: Executor) -> None:
    """Open, set upright, RGB, resize: what any program does before it can look at an image."""
    files = [file for file in sorted(data.rglob("*")) if file.is_file()]
    for _ in pool.map(pillow_image, files, chunksize=16):
        pass


def pillow_image(file: Path) -> None:
    """One image of ``pillow_pass``."""
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
    upright.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)


def pillow_pool(kind: str, workers: int) -> Executor:
    """Threads or processes."""
    return ThreadPoolExecutor(workers) if kind == "threads" else ProcessPoolExecutor(workers)
