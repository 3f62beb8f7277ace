"""Every knob of a run: its unit, default, range and the one sentence that says what it does.

Standard library only, so that a typo or a value out of range is answered before torch is imported.
Ranges marked *card* are advice for this architecture and are lifted by ``limits=off``; ranges without
that mark are limits of arithmetic and stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EMBEDDED_DATA_NAME = "digits"
EMBEDDED_DATA_IMAGES = 1797
FEWEST_IMAGES = 500
VERY_LARGE_SET = 20_000
EVAL_TO_TRAIN_RATIO = 256 / 224  # test at a larger size than training: FixRes, arXiv 1906.06423


class UserError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, where, and what to type instead."""


ENDLESS = 1e9


@dataclass(frozen=True)
class Range:
    """Closed interval of allowed values, and the reason for it."""

    low: float
    high: float
    reason: str = ""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """In words; an end that nobody meets is left out."""
        return f"from {self.low:g} up" if self.high >= ENDLESS else f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Knob:
    """What is known of one setting besides its type and default."""

    help: str
    unit: str = ""
    possible: Range | None = None
    card: Range | None = None
    choices: tuple[str, ...] = ()


def knob(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that carries its ``Knob``; mutable defaults are copied per instance."""
    metadata = {"knob": Knob(help, **facts)}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


POSITIVE = Range(1, ENDLESS)
FRACTION = Range(0.0, 1.0)


@dataclass
class DataConfig:
    """Where the images are and how they become batches."""

    dir: str | None = knob(None, "folder with one sub-folder of images per class; null = the 1,797 embedded digits")
    manifest: str | None = knob(
        None, "CSV file with columns path, label and optionally split and group; null = class folders"
    )
    image_size: int | str = knob(
        "auto", "training size; auto = 224, or 64 for the digits", unit="pixels", possible=Range(32, 1024)
    )
    eval_size: int | str = knob(
        "auto",
        "size for measuring and prediction; auto = 256 for 224, see README for others",
        unit="pixels",
        possible=Range(32, 1200),
    )
    resize: str = knob(
        "squish",
        "how images become squares: squish keeps all but the shape, crop keeps the middle, pad adds grey",
        choices=("squish", "crop", "pad"),
    )
    val_fraction: float = knob(
        0.1,
        "share of images that follow training and calibrate its probabilities; early_stopping looks at them",
        possible=Range(0.01, 0.5),
    )
    test_fraction: float = knob(0.2, "share of images held out for the final figure", possible=Range(0.01, 0.5))
    fold: str | None = knob(None, "test on one of k equal folds, such as 0/5, then 1/5 and so on")
    group: str | None = knob(
        None,
        "keep images of a patient, person or tile on one side: a manifest's column, or a regular expression on paths",
    )
    near_duplicates: str = knob(
        "tell",
        "images that look the same: tell of them, or keep them together on one side",
        choices=("tell", "together"),
    )
    split: str | None = knob(None, "split.csv of an earlier run, to train and measure on the same parts")
    exclude: str | None = knob(None, "audit.json whose list 'exclude' names images to leave out; edit it as you like")
    balance: str = knob(
        "none",
        "uneven classes: weigh rare ones more in the loss, or show them more often",
        choices=("none", "loss", "sampler"),
    )
    rotation: str = knob(
        "on", "turn training images by some degrees; off where that changes the label", choices=("on", "off")
    )
    mixup: float = knob(0.0, "chance that a training image is blended with another", possible=FRACTION)
    cutmix: float = knob(0.0, "chance that a piece of another image is pasted in", possible=FRACTION)
    horizontal_flip: str = knob(
        "auto", "mirror training images; auto = off for names like digits, letters, left", choices=("auto", "on", "off")
    )
    workers: int | str = knob("auto", "processes that gather batches; never changes the result", possible=Range(0, 256))
    cache: str = knob(
        "auto",
        "where decoded images are kept; auto = device if they fit a quarter of the GPU, else disk, ram or off",
        choices=("auto", "disk", "ram", "device", "off"),
    )
    cache_dir: str | None = knob(None, "where decoded images are kept; null = the user's cache folder")
    mean: list[float] | None = knob(None, "per-channel mean of pixels in 0-1; null = the one of the weights")
    std: list[float] | None = knob(None, "per-channel deviation of pixels in 0-1; null = the weights' own")


@dataclass
class ModelConfig:
    """Which network, and what it starts from."""

    name: str = knob(
        "efficientnet_b0",
        "network",
        choices=(
            *(f"efficientnet_b{i}" for i in range(8)),
            "efficientnet_lite0",
            "resnet50",
            "mobilenet_v3_small",
            "vit_b_16",
        ),
    )
    weights: str = knob(
        "auto",
        "start from: imagenet, imagenet-tv, none, or a file; auto = imagenet, none for the digits",
    )
    drop_path_rate: float = knob(
        0.2, "stochastic depth: chance to skip the last block, falling to 0 at the first", possible=Range(0.0, 0.9)
    )
    gradient_checkpointing: str = knob(
        "auto",
        "computed again to save memory: activations = what is cheap, blocks = everything; auto = as little as fits",
        choices=("auto", "off", "activations", "blocks"),
    )
    kernels: str = knob(
        "off",
        "our Triton kernels and CUDA graphs; auto = on GPUs where they were measured, in runs that are long enough",
        choices=("off", "auto", "on"),
    )


@dataclass
class TrainingConfig:
    """The recipe around the five main knobs."""

    strategy: str = knob(
        "full",
        "what is trained: full = all but frozen_layers, probe = the last layer on what loaded weights see, in seconds",
        choices=("full", "probe"),
    )
    head_first: str = knob(
        "auto",
        "fit the last layer before the rest moves; auto = where weights are loaded under a new last layer",
        choices=("auto", "on", "off"),
    )
    layer_decay: int | float | str = knob(
        "auto",
        "rate of each layer as a share of the next one's; auto = 0.9 with loaded weights, else 1",
        possible=Range(0.1, 1.0),
    )
    scratch_rate_factor: float = knob(
        4.0,
        "an EfficientNet without loaded weights is trained at learning_rate times this",
        possible=Range(1e-6, 1e6),
    )
    batchnorm: str = knob(
        "auto",
        "BatchNorm's mean and variance: train = of each batch, frozen = as loaded; auto = frozen where weights are "
        "loaded and learning_rate is at most 1e-3",
        choices=("auto", "train", "frozen"),
    )
    frozen_layers: int | str = knob(
        "auto",
        "so many layers, from the images on, stay as loaded; auto = stem and three stages of an EfficientNet whose "
        "BatchNorm is frozen, else 0",
        unit="layers",
        possible=Range(0, ENDLESS),
    )
    weight_decay: float = knob(0.05, "AdamW weight decay; norms and biases are exempt", possible=Range(0.0, 1.0))
    label_smoothing: float = knob(0.1, "share of the target spread over all classes", possible=Range(0.0, 0.9))
    warmup_fraction: float = knob(0.1, "share of all steps in which the rate rises", possible=Range(0.0, 0.9))
    final_rate_fraction: float = knob(0.01, "rate at the last step, as a share of learning_rate", possible=FRACTION)
    averaging_fraction: float = knob(
        0.05, "span of the weight average, as a share of all steps; 0 = no averaging", possible=Range(0.0, 0.5)
    )
    micro_batch: int | str = knob(
        "auto",
        "images at once; auto = batch_size, or a half, a quarter ... of it where memory is short",
        unit="images",
        possible=Range(2, ENDLESS),
    )
    compile: str = knob(
        "off",
        "torch.compile on a GPU; auto = where the run is long enough to win back what compiling takes",
        choices=("off", "auto", "on"),
    )
    early_stopping: int = knob(
        0,
        "stop after so many epochs without a lower validation loss; 0 = never",
        unit="epochs",
        possible=Range(0, 1000),
    )


@dataclass
class LogConfig:
    """Where curves go besides metrics.csv, which is always written."""

    wandb: str = knob("off", "log to Weights & Biases; offline needs no account", choices=("off", "offline", "online"))
    wandb_project: str = knob("effnet_lit", "project name there")
    tensorboard: bool = knob(False, "also write TensorBoard files into the run folder")


@dataclass
class Config:
    """One run. The card's five knobs stand at the top level."""

    name: str = knob("auto", "ends the run folder's name; auto = data folder and preset")
    batch_size: int | str = knob(
        32,
        "images to one step of the optimiser; auto = the preset's",
        unit="images",
        possible=Range(2, ENDLESS),  # BatchNorm cannot learn from one
        card=Range(8, 64, "below 8 BatchNorm's statistics are noise, above 64 a small set has too few steps"),
    )
    epochs: int = knob(
        10,
        "passes over the training images",
        possible=POSITIVE,
        card=Range(5, 50, "fewer than 5 do not converge, more than 50 mostly memorise"),
    )
    learning_rate: float = knob(
        1e-3,
        "peak learning rate of AdamW",
        possible=Range(1e-12, 1e3),
        card=Range(1e-4, 5e-3, "below 1e-4 a run this short barely moves, above 5e-3 it tends to diverge"),
    )
    dropout_rate: float = knob(
        0.2,
        "dropout before the last layer",
        possible=Range(0.0, 0.99),
        card=Range(0.0, 0.5, "above 0.5 too little of the features is left to learn from"),
    )
    augmentation: str = knob(
        "standard", "how strongly training images are varied", choices=("none", "light", "standard", "heavy")
    )
    seed: int = knob(0, "same seed, same machine kind: same weights", possible=Range(0, 2**31 - 1))
    limits: str = knob("on", "off lifts the advised ranges (not the impossible)", choices=("on", "off"))
    resume: str | None = knob(None, "run folder to go on with, with its own settings")
    expectation: str = knob("", "set by example=...: what the project card expects, printed, not measured here")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    log: LogConfig = field(default_factory=LogConfig)
    trainer: dict[str, Any] = knob(
        {"accelerator": "auto", "devices": 1, "precision": "auto"}, "any argument of Lightning's Trainer"
    )


GROUPS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "training": TrainingConfig, "log": LogConfig}


def knobs(of: type = Config, prefix: str = "") -> Iterator[tuple[str, Knob, Any]]:
    """Yield (dotted key, knob, default) for every setting, top level first, then group by group."""
    for item in dataclasses.fields(of):
        if "knob" in item.metadata:
            default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
            yield prefix + item.name, item.metadata["knob"], default
    if of is Config:
        for group, kind in GROUPS.items():
            yield from knobs(kind, f"{group}.")


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    group, _, name = key.rpartition(".")
    return getattr(getattr(config, group) if group else config, name)


def nearest_advised(key: str, value: float) -> float:
    """``value``, or the end of ``key``'s advised range that it is beyond."""
    card = next(facts.card for name, facts, _ in knobs() if name == key)
    assert card is not None
    return min(max(value, card.low), card.high)


def preset_for(images: int) -> str:
    """The preset of the card's table for a data set of this many images."""
    if images < 1_000:
        return "small"
    return "medium" if images < 5_000 else "large"


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionaries, for YAML, checkpoints and loggers."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of ``to_dict``; a missing key takes its default, an unknown one raises ``UserError``."""
    values = dict(values)
    try:
        groups = {name: kind(**values.pop(name, {})) for name, kind in GROUPS.items()}
        return Config(**values, **groups)
    except TypeError as error:  # ... got an unexpected keyword argument 'x'
        raise UserError(f"The stored settings do not fit this version of effnet_lit ({error}).") from error
