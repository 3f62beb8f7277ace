"""Where the curves go: metrics.csv always, wandb and TensorBoard where asked for."""

from __future__ import annotations

import csv
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from effnet_lit.config import LogConfig, UserError

TRAINING_FIGURES = ("train/loss", "train/accuracy")
FIGURES = (*TRAINING_FIGURES, "val/loss", "val/accuracy", "val/f1")
COLUMNS: tuple[str, ...] = ("epoch", *FIGURES, "learning_rate", "seconds")


class MetricsCsv(Callback):
    """One row per epoch, appended; a resumed run keeps the rows of the epochs it does not repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = 0.0
        self.validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()  # an epoch that is resumed in its middle has no start of its own
        kept = []
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["epoch"]) <= trainer.current_epoch]
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        known = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = FIGURES if self.validated else TRAINING_FIGURES  # Lightning keeps an earlier epoch's values
        self.validated = False
        row = {name: known[name] for name in measured if name in known}
        row |= {"epoch": trainer.current_epoch + 1, "learning_rate": trainer.optimizers[0].param_groups[-1]["lr"]}
        row |= {"seconds": round(time.perf_counter() - self.started, 3)}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def build_loggers(config: LogConfig, run_dir: Path) -> list[Logger]:
    """wandb and TensorBoard, where asked for.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """
    loggers: list[Logger] = []
    if config.wandb != "off":
        loggers.append(
            WandbLogger(
                name=run_dir.name,
                project=config.wandb_project,
                save_dir=run_dir,
                offline=config.wandb == "offline",
                group=run_dir.parent.name,
            )
        )
    if config.tensorboard:
        if not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
            raise UserError("log.tensorboard=true needs the package tensorboard: pip install tensorboard, or drop it.")
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    return loggers


def start_loggers(loggers: list[Logger], run_dir: Path) -> None:
    """Begin wandb's run before training: where there is no account or no network it is not to be found out later.

    Raises:
        UserError: it does not begin; nothing is left of it then.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from wandb.errors import Error

            resumed = (run_dir / "wandb").exists()
            try:
                logger.experiment  # noqa: B018
            except Error as error:
                if not resumed:
                    shutil.rmtree(run_dir / "wandb", ignore_errors=True)
                reason = str(error).splitlines()[0].rstrip(".")
                remedy = "run wandb login, or use" if "key" in reason else "use"
                raise UserError(f"wandb fails ({reason}); {remedy} log.wandb=offline.") from error


def finish_loggers(loggers: list[Logger]) -> None:
    """End wandb's run, or the next job of a sweep would write into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
