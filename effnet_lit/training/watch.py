"""What the doctor sees before a run ends, told once, so that hours are not spent on a run that cannot succeed."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from effnet_lit.config import Config
from effnet_lit.evaluation.doctor import WHILE_TRAINING, diagnose
from effnet_lit.evaluation.evidence import Evidence
from effnet_lit.training.data_wait import DataWait
from effnet_lit.training.module import Classifier

EPOCHS_BEFORE_SLOW = 2  # the first also starts the workers


class Watch(Callback):
    """Prints each diagnosis the first time it is made."""

    def __init__(self, config: Config, class_names: Sequence[str], waiting: DataWait, console: Console) -> None:
        self.config, self.class_names, self.waiting, self.console = config, class_names, waiting, console
        self.epochs: list[dict[str, float]] = []
        self.told: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Classifier)
        losses = {"train/loss": float(pl_module.train_loss.compute()), "val/loss": float(pl_module.val_loss.compute())}
        self.epochs.append(losses)
        shares = self.waiting.shares
        result = {
            "class_names": self.class_names,
            "data_wait_share": self.waiting.share if len(shares) >= EPOCHS_BEFORE_SLOW else 0.0,
            "data_wait_by_epoch": shares,
            "seconds_training": self.waiting.trained,
        }
        for advice in diagnose(Evidence(self.config, result, self.epochs), WHILE_TRAINING):
            if advice.kind not in self.told:
                self.told.add(advice.kind)
                self.console.print(f"Doctor   {advice.lines()}")
