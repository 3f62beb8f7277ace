"""From overrides to a ``Config``: the only road, shared by train.py, the CLI, notebooks and tests."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effnet_lit.checks import check
from effnet_lit.config import (
    EMBEDDED_DATA_IMAGES,
    EMBEDDED_DATA_NAME,
    EVAL_TO_TRAIN_RATIO,
    Config,
    UserError,
    from_dict,
    preset_for,
)
from effnet_lit.data.folder import Index, check_size
from effnet_lit.data.names import mirror_changes_label
from effnet_lit.data.source import read_images
from effnet_lit.model.scaling import SCALES
from effnet_lit.overrides import check_keys, conf_dir, explain, trainer_arguments, with_quotes

# What a resumed run may find elsewhere; the images themselves must be the same.
OF_THE_MACHINE = (
    "data.dir",
    "data.manifest",
    "data.split",
    "data.exclude",
    "data.cache",
    "data.cache_dir",
    "data.workers",
    "trainer.accelerator",
    "trainer.precision",
)
LAYER_DECAY, FREEZES_UP_TO = 0.9, 1e-3  # docs/decisions/fine_tuning.md
DATA_PATHS = ("dir", "manifest", "split", "exclude", "cache_dir")


def register_schema() -> None:
    """Tell Hydra the typed vocabulary and the Trainer's arguments; safe to call again."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    ours = Config().trainer
    store.store(name="trainer_arguments", node={"trainer": {**trainer_arguments(), **ours}})
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("by_weights", by_weights, replace=True)


def run_name(name: str, data_dir: str | None, manifest: str | None, preset: str) -> str:
    """How a run folder's name ends: as asked for, or data folder and preset."""
    if name != "auto":
        return name
    folder = data_dir or (os.path.dirname(manifest) if manifest else EMBEDDED_DATA_NAME)
    return f"{os.path.basename(os.path.abspath(folder))}-{preset}"


def by_weights(loaded: str, random: str, *, _root_: DictConfig) -> str:
    """One of a preset's two values: for loaded weights, or for a network that starts from random ones."""
    embedded = _root_.data.dir is None and _root_.data.manifest is None
    return random if start_of(_root_.model.weights, embedded) == "none" else loaded


def start_of(weights: str, embedded: bool) -> str:
    """``model.weights`` without ``auto``: ImageNet for your own images, none for the embedded digits."""
    return weights if weights != "auto" else "none" if embedded else "imagenet"


def compose(*overrides: str) -> Config:
    """The run that these overrides describe, ranges checked and every ``auto`` that needs no device resolved.

    Raises:
        UserError: a typo, a wrong type, a value out of range, or a ``data.dir`` that cannot be trained on.
    """
    return compose_with_preset(overrides)[0]


def compose_with_preset(overrides: Sequence[str]) -> tuple[Config, str]:
    """``compose``, and the name of the preset that was chosen."""
    register_schema()
    overrides = [with_quotes(text) for text in overrides]
    check_keys(overrides)
    config, preset = read_pages(overrides)
    check(config)
    paths = {f"data.{key}": getattr(config.data, key) for key in DATA_PATHS} | {"resume": config.resume}
    for key, value in paths.items():
        if value is not None and not value.strip():
            raise UserError(f"{key} is empty; give a path, or leave it out.")
    if config.resume is not None:
        return stored_config(config.resume, overrides, config), preset
    index = None
    for key in DATA_PATHS:
        if value := getattr(config.data, key):
            setattr(config.data, key, str(Path(value).expanduser().resolve()))
    if config.data.manifest and config.data.dir is None:
        config.data.dir = str(Path(config.data.manifest).parent)
    if config.data.dir is not None:
        manifest = Path(config.data.manifest) if config.data.manifest else None
        index = read_images(Path(config.data.dir), manifest, config.data.group)
        check_size(index, config.limits == "on")
    if preset == "auto":
        preset = preset_for(len(index.paths) if index else EMBEDDED_DATA_IMAGES)
        config = dataclasses.replace(read_pages([*overrides, f"preset={preset}"])[0], data=config.data)
        check(config)
    resolve(config, preset, index)
    return config, preset


def read_pages(overrides: Sequence[str]) -> tuple[Config, str]:
    """Let Hydra merge schema, pages and overrides; returns the typed object and the preset's name."""
    outer = GlobalHydra.instance().hydra  # inside a job, Hydra's own; compose needs the place for a moment
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            merged = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        preset = str(merged.hydra.runtime.choices.preset)
        OmegaConf.set_struct(merged, False)
        del merged["hydra"]
        config = OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    assert isinstance(config, Config)
    config.trainer = {key: value for key, value in config.trainer.items() if value is not None}
    return config, preset


def resolve(config: Config, preset: str, index: Index | None) -> None:
    """Replace each ``auto`` that depends on the data and the preset, not on the device, by what it becomes."""
    data, embedded = config.data, config.data.dir is None
    if config.batch_size == "auto":
        config.batch_size = read_pages([f"preset={preset}"])[0].batch_size
        check(config)
    config.name = run_name(config.name, data.dir, data.manifest, preset)
    config.model.weights = start_of(config.model.weights, embedded)
    random = config.model.weights == "none"
    if random and config.training.strategy == "probe":
        raise UserError("training.strategy=probe needs weights to look with; set model.weights=imagenet or a file.")
    if random and config.training.batchnorm == "frozen":
        raise UserError("training.batchnorm=frozen needs loaded weights; use train, or set model.weights.")
    if random and config.training.frozen_layers not in ("auto", 0):
        raise UserError("training.frozen_layers needs loaded weights; use 0, or set model.weights.")
    if random and config.training.head_first == "on":
        raise UserError("training.head_first=on needs loaded weights; use auto, or set model.weights.")
    if config.training.batchnorm == "auto":
        config.training.batchnorm = "train" if random or config.learning_rate > FREEZES_UP_TO else "frozen"
    if config.training.layer_decay == "auto":
        config.training.layer_decay = 1.0 if random else LAYER_DECAY
    if Path(config.model.weights).expanduser().is_file():
        config.model.weights = str(Path(config.model.weights).expanduser().resolve())
    if data.image_size == "auto":
        own_size = SCALES[config.model.name].resolution if config.model.name in SCALES else 224
        data.image_size = 64 if embedded else own_size
    assert isinstance(data.image_size, int)
    if config.model.name == "vit_b_16":  # its position embedding has one size, in patches of 16 pixels
        if data.image_size % 16:
            raise UserError(f"data.image_size={data.image_size} must be a multiple of 16 for vit_b_16; use 224.")
        data.eval_size = data.image_size
    if data.eval_size == "auto":
        data.eval_size = eval_size_for(data.image_size)
    if data.horizontal_flip == "auto":
        data.horizontal_flip = "off" if index is None or mirror_changes_label(index.class_names) else "on"


def eval_size_for(image_size: int) -> int:
    """8/7 of the training size, rounded down to a multiple of 32: 224 -> 256, 96 -> 96, 64 -> 64.

    The network halves the size five times. Between two multiples of 32 the last maps of a small image change their
    shape (64 -> 2x2, 73 -> 3x3), and with it how much of them is padding: accuracy collapses.
    """
    return max(image_size, int(image_size * EVAL_TO_TRAIN_RATIO) // 32 * 32)


def stored_config(run: str, overrides: Sequence[str], given: Config) -> Config:
    """The settings of an earlier run, to go on with. What belongs to the machine may be ``given`` anew, no other."""
    keys = [text.partition("=")[0] for text in overrides]
    for key, text in zip(keys, overrides, strict=True):
        if key not in ("resume", *OF_THE_MACHINE) and not key.startswith("hydra."):
            raise UserError(f"resume={run} goes on with that run's own settings; remove {text} from the command.")
    folder = Path(run).expanduser().resolve()
    if folder.is_file() and folder.name == "latest":  # where links are not to be had
        folder = Path(folder.read_text(encoding="utf-8").strip())
    page = folder / "config.yaml"
    if not page.is_file():
        raise UserError(f"resume={run} is not a run folder (it has no config.yaml); give a folder under runs/.")
    if (folder / "model.safetensors").is_file():
        raise UserError(
            f"resume={run} is finished: its model is {folder / 'model.safetensors'}; start a new run instead."
        )
    try:
        stored = yaml.safe_load(page.read_text(encoding="utf-8"))
        stored.setdefault("training", {}).setdefault("frozen_layers", 0)  # of runs begun before there was this key
    except (yaml.YAMLError, UnicodeError, AttributeError) as error:
        raise UserError(
            f"resume={run}: {page} does not hold the settings of a run; start a new one instead."
        ) from error
    config = from_dict(stored)
    config.resume = str(folder)
    for key in (key for key in keys if key in OF_THE_MACHINE):
        group, _, name = key.partition(".")
        if group == "trainer":
            config.trainer[name] = given.trainer[name]
        else:
            setattr(config.data, name, getattr(given.data, name))
    return config
