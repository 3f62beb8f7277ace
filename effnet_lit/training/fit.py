"""``fit``: from a configuration to a run folder with a measured model. Nothing else builds a Trainer."""

from __future__ import annotations

import logging
import math
import time
import warnings
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import nn

from effnet_lit.allocator import keep_freed_memory
from effnet_lit.checks import check
from effnet_lit.commands import going_on
from effnet_lit.config import Config, UserError, from_dict, to_dict
from effnet_lit.data.balance import class_weights
from effnet_lit.data.datamodule import ClassFolderDataModule
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.model.modelfile import ImageClassifier
from effnet_lit.model.zoo import create_model, early_layers, freeze_layers, use_kernels
from effnet_lit.training.checkpoint import (
    AtomicCheckpointIO,
    KeepLast,
    StoppedByUser,
    checkpoint_to_resume,
)
from effnet_lit.training.compiling import compile_network
from effnet_lit.training.console import conclude, introduce
from effnet_lit.training.cuda_graph import CapturedNetwork
from effnet_lit.training.data_wait import DataWait
from effnet_lit.training.hardware import choose_workers, resolve_hardware
from effnet_lit.training.head import fit_head
from effnet_lit.training.loggers import MetricsCsv, build_loggers, finish_loggers, start_loggers
from effnet_lit.training.module import Classifier
from effnet_lit.training.progress import RunProgress
from effnet_lit.training.result import Result, finish, header, point_latest, unused, write_settings
from effnet_lit.training.step_plan import StepPlan, plan_step
from effnet_lit.training.watch import Watch

# Lightning's advice that does not apply: the loader only gathers rows of an array, our sampler resumes mid-epoch, and
# curves are kept per epoch.
UNINTERESTING = (
    ".*does not have many workers.*",
    ".*dataloader is not resumable.*",
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",
    ".*TensorFloat32 tensor cores.*",
)


def fit(config: Config, run_dir: str | Path) -> Result:
    """Train what ``config`` describes and write the run folder: model, result, metrics, plots, audit, settings.

    Raises:
        UserError: the data or the device cannot be used; nothing is left in ``run_dir`` then.
        KeyboardInterrupt: Ctrl-C was pressed; the run is saved, the message says how to go on.
    """
    started = time.perf_counter()
    check(config)
    config = from_dict(to_dict(config))  # the caller's object stays as it is
    run_dir = Path(config.resume) if config.resume else unused(Path(run_dir))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hardware = resolve_hardware(config)
    if hardware.accelerator == "cpu":
        keep_freed_memory()
    data = prepare_with_progress(config, console, hardware.free_memory)
    config.data.cache = data.cache
    config.data.workers = choose_workers(config.data.workers, hardware.accelerator, data.cache)
    network = build_network(config, len(data.class_names))
    plan = plan_step(config, hardware, network, len(data.part("train")))
    introduce(config, hardware, data, network, plan, console)
    checkpoint = checkpoint_to_resume(run_dir, data) if config.resume else None
    training_started = time.perf_counter()
    classifier = ImageClassifier(network, header(config, data, network)).to(hardware.device).eval()
    config.training.head_first = "on" if head_comes_first(config, network) else "off"
    preview = fit_head(classifier, data) if config.training.head_first == "on" and checkpoint is None else None
    if preview is not None:
        console.print(f"Preview  {preview.sentence()}")
    waiting = DataWait()
    if config.training.strategy == "full":
        waiting = train_everything(config, data, network.train(), plan, run_dir, checkpoint, console)
    else:
        write_settings(run_dir, config, data)
        point_latest(run_dir)
    now = time.perf_counter() + waiting.before
    seconds = {"training": now - training_started, "total": now - started}
    result = finish(config, data, classifier.to(hardware.device).eval(), run_dir, hardware, seconds, waiting, preview)
    conclude(result, console)
    return result


def head_comes_first(config: Config, network: nn.Module) -> bool:
    """Whether the last layer is fitted before, or instead of, everything."""
    if config.training.strategy == "probe" or config.training.head_first == "on":
        return True
    return config.training.head_first == "auto" and bool(network.new_head)


def train_everything(
    config: Config,
    data: PreparedData,
    network: nn.Module,
    plan: StepPlan,
    run_dir: Path,
    checkpoint: Path | None,
    console: Console,
) -> DataWait:
    """Train ``network`` in place; returns the clock of the time that steps waited for their data."""
    if plan.compiling.on:
        compile_network(network)
    module, datamodule, trainer = build_training(config, data, network, run_dir, console)
    if plan.kernels.on:
        module.captured = CapturedNetwork(network)
    start_loggers(trainer.loggers, run_dir)
    write_settings(run_dir, config, data)
    point_latest(run_dir)
    try:
        train(trainer, module, datamodule, checkpoint, run_dir)
    finally:
        module.captured = None  # the memory of graphs, which measuring the network needs
    if any(isinstance(one, EarlyStopping) and one.stopped_epoch for one in trainer.callbacks):  # type: ignore[attr-defined]
        console.print(
            f"Stopped early after {trainer.current_epoch} of {config.epochs} epochs: no lower validation loss in the "
            f"last {config.training.early_stopping} (training.early_stopping)."
        )
    (waiting,) = (callback for callback in trainer.callbacks if isinstance(callback, DataWait))  # type: ignore[attr-defined]
    return waiting


def prepare_with_progress(config: Config, console: Console, device_memory: int) -> PreparedData:
    """``prepare``, with a bar while images are decoded for the first time."""
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    assert isinstance(config.data.eval_size, int)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return prepare(
            config.data,
            config.seed,
            config.limits == "on",
            config.data.eval_size,
            lambda done, total: bar.update(task, completed=done, total=total),
            device_memory,
        )


def build_network(config: Config, classes: int) -> nn.Module:
    """The network with its weights; the mean and deviation that belong to them are stored in ``config``."""
    assert isinstance(config.data.image_size, int)
    torch.manual_seed(config.seed)
    network = create_model(
        config.model.name,
        classes,
        config.model.weights,
        dropout_rate=config.dropout_rate,
        drop_path_rate=config.model.drop_path_rate,
        image_size=config.data.image_size,
    )
    if config.training.frozen_layers == "auto":
        config.training.frozen_layers = early_layers(network) if config.training.batchnorm == "frozen" else 0
    assert isinstance(config.training.frozen_layers, int)
    if config.training.strategy == "full":
        freeze_layers(network, config.training.frozen_layers)
    if config.model.kernels == "on":
        use_kernels(network)
    config.data.mean = config.data.mean or list(network.mean)  # type: ignore[arg-type]
    config.data.std = config.data.std or list(network.std)  # type: ignore[arg-type]
    return network


def build_training(
    config: Config, data: PreparedData, network: nn.Module, run_dir: Path, console: Console
) -> tuple[Classifier, ClassFolderDataModule, lightning.Trainer]:
    """Module, data and Trainer of a run."""
    assert isinstance(config.data.workers, int) and isinstance(config.training.micro_batch, int)
    balance = config.data.balance
    datamodule = ClassFolderDataModule(data, config.training.micro_batch, config.seed, config.data.workers, balance)
    check_trainer_numbers(config)
    total = total_steps(config, datamodule.batches_per_epoch)
    classes = len(data.class_names)
    weights = class_weights(data.labels[data.part("train")], classes).tolist() if balance == "loss" else None
    module = Classifier(network, classes, config, total, weights)
    callbacks: list[Callback] = [RunProgress(console, total, config.epochs)]
    if config.training.averaging_fraction:
        span = max(1.0, total * config.training.averaging_fraction)
        callbacks.append(EMAWeightAveraging(decay=1 - 1 / span))
    if config.training.early_stopping:
        callbacks.append(EarlyStopping("val/loss", patience=config.training.early_stopping))
    callbacks.append(MetricsCsv(run_dir / "metrics.csv"))
    loggers = build_loggers(config.log, run_dir)
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    waiting = DataWait()
    callbacks.append(Watch(config, data.class_names, waiting, console))
    callbacks.append(waiting)  # after all that work at the end of a step
    callbacks.append(KeepLast(run_dir / "checkpoints"))
    return module, datamodule, build_trainer(config, run_dir, loggers, callbacks)


def build_trainer(config: Config, run_dir: Path, loggers: list[Logger], callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's Trainer, with everything under ``trainer.*`` handed through.

    Raises:
        UserError: Lightning refuses a value.
    """
    options = {"num_sanity_val_steps": 0, "enable_model_summary": False} | config.trainer
    options["accumulate_grad_batches"] = accumulated(config)
    try:
        return lightning.Trainer(
            max_epochs=config.epochs,
            logger=loggers,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # ours knows rank, epoch and step
            enable_checkpointing=False,  # KeepLast does it
            default_root_dir=run_dir,
            **options,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer.* has a value that Lightning refuses: {str(error).splitlines()[0]}") from error


def check_trainer_numbers(config: Config) -> None:
    """Raise ``UserError`` where a Trainer argument that the schedule is computed from is no such number, or where
    validation is off and something waits for it."""
    for key, least in (("limit_train_batches", 0), ("max_steps", -1), ("accumulate_grad_batches", 1)):
        value = config.trainer.get(key, least)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < least:
            raise UserError(f"trainer.{key}={value} must be a number from {least} up.")
    if config.trainer.get("limit_val_batches") == 0 and config.training.early_stopping:
        raise UserError("trainer.limit_val_batches=0 leaves training.early_stopping nothing to watch; drop one.")


def total_steps(config: Config, batches_per_epoch: int) -> int:
    """Optimiser steps of the whole run.

    Raises:
        UserError: there would be none.
    """
    limit, most = config.trainer.get("limit_train_batches", 1.0), config.trainer.get("max_steps", -1)
    batches = min(batches_per_epoch, limit if isinstance(limit, int) else int(batches_per_epoch * limit))
    steps = math.ceil(batches / accumulated(config)) * config.epochs
    steps = steps if most < 0 else min(steps, most)
    if steps < 1:
        raise UserError("trainer.limit_train_batches or trainer.max_steps leaves nothing to train; raise it.")
    return steps


def accumulated(config: Config) -> int:
    """Micro-batches to one step of the optimiser; at most as many images as were asked for."""
    assert isinstance(config.batch_size, int) and isinstance(config.training.micro_batch, int)
    pieces = max(1, config.batch_size // config.training.micro_batch)
    return pieces * config.trainer.get("accumulate_grad_batches", 1)


def train(
    trainer: lightning.Trainer,
    module: Classifier,
    datamodule: ClassFolderDataModule,
    checkpoint: Path | None,
    run_dir: Path,
) -> None:
    """Run the loop, leave the final weights in ``module``; turn Ctrl-C into a message that says how to go on."""
    go_on = going_on(run_dir)
    try:
        with warnings.catch_warnings():
            for known in UNINTERESTING:
                warnings.filterwarnings("ignore", known)
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer.* has a value that Lightning refuses: {str(error).splitlines()[0]}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Out of memory with {module.config.training.micro_batch} images at once; go on with: {go_on}, when other "
            "programs that use the device have ended, or start anew with a smaller training.micro_batch."
        ) from error
    except StoppedByUser as stop:
        raise KeyboardInterrupt(f"{stop} Go on with: {go_on}") from None
    finally:
        finish_loggers(trainer.loggers)
    (keeper,) = (callback for callback in trainer.callbacks if isinstance(callback, KeepLast))  # type: ignore[attr-defined]
    if checkpoint is not None and not keeper.trained:  # cut off after the last epoch: nothing was left to train
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    if not all(bool(value.isfinite().all()) for value in module.network.state_dict().values()):
        raise UserError(
            f"Training diverged: weights are no longer finite, so there is no model; "
            f"try learning_rate={module.config.learning_rate / 3:.1g} (curves: {run_dir / 'metrics.csv'})."
        )
