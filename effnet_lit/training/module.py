"""The LightningModule: augment on the device, one forward pass, cross-entropy, metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Accuracy, F1Score, MeanMetric

from effnet_lit.config import Config, to_dict
from effnet_lit.data.augment import augment
from effnet_lit.data.mixing import mix, mixed_loss
from effnet_lit.model.zoo import freeze_batchnorm
from effnet_lit.training.cuda_graph import CapturedNetwork
from effnet_lit.training.optim import build_optimizer, build_schedule, peak_rate


class Classifier(lightning.LightningModule):
    """Trains any image network that maps (N, 3, H, W) to (N, classes).

    Training batches carry uint8 images, labels and each sample's random numbers, which depend on seed, epoch and
    position alone, so neither the number of workers nor an interruption changes a run.
    """

    mean: Tensor
    std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        config: Config,
        total_steps: int,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.captured: CapturedNetwork | None = None  # takes the network's place in training steps
        self.config = config
        self.total_steps = total_steps
        self.register_buffer("mean", torch.tensor(config.data.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.data.std).view(1, 3, 1, 1), persistent=False)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.augment_seconds = 0.0  # on a CPU: part of the time that a step waits for data
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN must be seen
        self.train_accuracy = Accuracy(task="multiclass", num_classes=classes)
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = Accuracy(task="multiclass", num_classes=classes)
        self.val_f1 = F1Score(task="multiclass", num_classes=classes, average="macro")
        self.save_hyperparameters(to_dict(config))  # plain primitives, or weights_only loading refuses them

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in 0-1, (N, 3, H, W), as the weights expect them."""
        return (pixels - self.mean) / self.std

    def vary(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (N, S, S, 3) -> augmented images in 0-1, (N, 3, T, T), each one's partner and the partner's share."""
        data = self.config.data
        assert isinstance(data.image_size, int)
        flip, turn = data.horizontal_flip == "on", data.rotation == "on"
        started = time.perf_counter()
        pixels = augment(batch["images"], batch["random"], self.config.augmentation, data.image_size, flip, turn)
        mixed = mix(pixels, batch["random"], data.mixup, data.cutmix)
        self.augment_seconds += time.perf_counter() - started
        return mixed

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seed_step()
        labels = batch["labels"]
        pixels, partner, share = self.vary(batch)
        logits = (self.captured or self.network)(self.normalise(pixels)).float()
        loss = mixed_loss(logits, labels, partner, share, self.config.training.label_smoothing, self.class_weights)
        self.train_loss.update(loss.detach())
        self.train_accuracy.update(logits.detach(), labels)
        figures = {"train/loss": self.train_loss, "train/accuracy": self.train_accuracy}
        self.log_dict(figures, on_step=False, on_epoch=True)
        return loss

    def on_train_start(self) -> None:  # not at an epoch's start, which a resumed run may be past
        freeze_batchnorm(self.network, everywhere=self.config.training.batchnorm == "frozen")

    def seed_step(self) -> None:
        """Dropout and stochastic depth depend on (seed, step, rank) alone, so a resumed run draws the same."""
        key = np.random.SeedSequence([self.config.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pixels = batch["images"].permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S)
        logits = self.network(self.normalise(pixels)).float()
        self.val_loss.update(functional.cross_entropy(logits, batch["labels"]), weight=len(logits))
        self.val_accuracy.update(logits, batch["labels"])
        self.val_f1.update(logits, batch["labels"])
        self.log_dict(
            {"val/loss": self.val_loss, "val/accuracy": self.val_accuracy, "val/f1": self.val_f1},
            on_step=False,
            on_epoch=True,
        )

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.captured is not None:  # else gradients would be in the next replay's way, and be copied
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.network, peak_rate(self.config), self.config.training)
        schedule = build_schedule(optimizer, self.total_steps, self.config.training)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
