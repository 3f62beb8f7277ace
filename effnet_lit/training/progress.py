"""One progress bar for the whole run, with the time left, and one line per epoch."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from effnet_lit.training.module import Classifier

STEPS_BEFORE_ESTIMATE = 10


def time_text(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class RunProgress(ProgressBar):
    """Steps of all epochs in one bar; where the output is not a screen, only the lines per epoch."""

    def __init__(self, console: Console, total_steps: int, epochs: int) -> None:
        super().__init__()
        self.console = console
        self.total_steps = total_steps
        self.epochs = epochs
        self.bar: Progress | None = None
        self.first_step_end = 0.0
        self.steps_here = 0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self.console = Console(quiet=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("", total=self.total_steps, completed=trainer.global_step, epoch="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.bar is not None
        self.bar.update(self.task, completed=trainer.global_step, epoch=f"{trainer.current_epoch + 1}/{self.epochs}")
        self.steps_here += 1
        if self.steps_here == 1:  # the first step also pays for warming up
            self.first_step_end = time.perf_counter()
        elif self.steps_here == STEPS_BEFORE_ESTIMATE + 1:
            each = (time.perf_counter() - self.first_step_end) / STEPS_BEFORE_ESTIMATE
            left = each * (self.total_steps - trainer.global_step)
            if left > 30:
                self.console.print(f"Estimated training time: {time_text(left)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert isinstance(pl_module, Classifier)
        train_loss, train_accuracy = pl_module.train_loss.compute(), pl_module.train_accuracy.compute()
        self.console.print(
            f"epoch {trainer.current_epoch + 1:>3}/{self.epochs}"
            f"   train loss {train_loss:.3f}  accuracy {train_accuracy:6.1%}"
            f"   val loss {values['val/loss']:.3f}  accuracy {values['val/accuracy']:6.1%}",
            highlight=False,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()
