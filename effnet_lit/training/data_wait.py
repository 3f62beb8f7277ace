"""How much of the training time a step waits for its data."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from effnet_lit.training.module import Classifier


class DataWait(Callback):
    """Clocks the time from the end of a step to the moment the next one has its batch, validation aside. On a CPU
    augmentation counts as well, since it takes the cores that training needs. A resumed run counts on."""

    def __init__(self) -> None:
        self.waited = self.trained = self.mark = 0.0
        self.started, self.before = time.perf_counter(), 0.0  # seconds, before the stop
        self.epochs: list[tuple[float, float]] = []  # waited, trained up to the end of each

    @property
    def share(self) -> float:
        """Of the training time, 0-1."""
        return self.waited / self.trained if self.trained else 0.0

    @property
    def shares(self) -> list[float]:
        """The same of each epoch."""
        steps = zip([(0.0, 0.0), *self.epochs], self.epochs, strict=False)
        return [(b[0] - a[0]) / max(1e-9, b[1] - a[1]) for a, b in steps]

    def state_dict(self) -> dict[str, Any]:
        seconds = self.before + time.perf_counter() - self.started
        return {"waited": self.waited, "trained": self.trained, "epochs": list(self.epochs), "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waited, self.trained, self.before = (state_dict[key] for key in ("waited", "trained", "seconds"))
        self.epochs = list(state_dict["epochs"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = self.mark = time.perf_counter()  # an epoch that is resumed in its middle has no start of its own

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append((self.waited, self.trained))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.augment_seconds = 0.0
        self.count(waiting=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self.count(waiting=False)
        if pl_module.device.type == "cpu":
            self.waited += pl_module.augment_seconds

    def count(self, waiting: bool) -> None:
        """Add the time since the last mark."""
        now = time.perf_counter()
        self.trained += now - self.mark
        self.waited += (now - self.mark) * waiting
        self.mark = now
