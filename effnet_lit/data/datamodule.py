"""Batches from the cached images: order and random numbers never depend on the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from effnet_lit.data.augment import random_numbers
from effnet_lit.data.balance import class_weights
from effnet_lit.data.cache import DecodedOnDemand
from effnet_lit.data.prepare import PreparedData

EVALUATION_BATCH = 2  # times the batch: nothing is kept for backward
Batch = tuple[np.ndarray, np.ndarray | None]  # image numbers within the part, random numbers for training


class Gather(Dataset[dict[str, Tensor]]):
    """One part of the data. Indexed by a whole batch, so that its rows leave the disk's array in one call."""

    def __init__(self, data: PreparedData, part: str) -> None:
        chosen = data.part(part)
        self.images, self.rows, self.labels = data.images, data.rows[chosen], data.labels[chosen]
        self.resident = data.cache == "device"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: Batch) -> dict[str, Tensor]:
        """A dict of "labels" int64 (B,), "images" uint8 (B, S, S, 3) or, where these lie on the device already, their
        "rows" int64 (B,), and in training "random" float32 (B, NUMBERS)."""
        numbers, random = batch
        rows = self.rows[numbers]
        gathered = {"labels": torch.from_numpy(self.labels[numbers])}
        if self.resident:
            gathered["rows"] = torch.from_numpy(rows)
        else:
            gathered["images"] = torch.from_numpy(self.images[rows])
        if random is not None:
            gathered["random"] = torch.from_numpy(random)
        return gathered

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that are started afresh: the array's file, not its content."""
        state = self.__dict__.copy()
        if isinstance(self.images, np.memmap):
            state["images"] = (self.images.filename, self.images.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if isinstance(self.images, tuple):
            filename, shape = self.images
            self.images = np.memmap(filename, np.uint8, "r", shape=shape)


class EpochSampler(Sampler[Batch]):
    """Whole training batches in an order that is a function of (seed, epoch).

    Every rank takes its stretch of each global batch. The incomplete batch at the end is dropped, except where it is
    the only one; its images come in other epochs, since the order differs.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self.batch_size = min(batch_size, count // world_size)
        assert self.batch_size > 1, "BatchNorm cannot train on one image"
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.weights = weights
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Go to an epoch, from its batch ``start`` on; Lightning's later call for the same epoch keeps the start."""
        if start is not None or epoch != self.epoch:
            self.start = start or 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.count // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        order = epoch_order(self.count, self.seed, self.epoch, self.weights)
        for step in range(self.start, len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            random = random_numbers(self.seed, self.epoch, first, self.batch_size)
            yield order[first : first + self.batch_size], random.astype(np.float32)


def epoch_order(count: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The images of an epoch in an order that belongs to (seed, epoch): a permutation of 0 .. count - 1, or, with
    ``weights`` (count,), image i about count * weights[i] / sum(weights) times (systematic resampling).

    Drawn far away in the stream that augmentation draws from; sorting makes it the same in every NumPy.
    """
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, 1], np.uint64))
    draw = np.random.Generator(stream).random
    order = draw(count).argsort(kind="stable")
    if weights is None:
        return order
    shuffled = draw(count).argsort(kind="stable")
    ends = np.cumsum(weights[order] / weights.sum())
    chosen = np.searchsorted(ends[:-1], (np.arange(count) + draw()) / count, side="right")
    return order[chosen][shuffled]


class InOrder(Sampler[Batch]):
    """Batches for measuring: every image once, as the part lists them."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.count, self.batch_size):
            numbers = np.arange(first, min(first + self.batch_size, self.count))
            yield numbers, None


class ClassFolderDataModule(lightning.LightningDataModule):
    """Prepared class folders for a Trainer made with ``use_distributed_sampler=False``.

    A Trainer that resumes inside an epoch goes on with the batch after the last one that was trained on.
    """

    def __init__(self, data: PreparedData, batch_size: int, seed: int, workers: int, balance: str = "none") -> None:
        super().__init__()
        self.data, self.batch_size, self.seed, self.workers = data, batch_size, seed, workers
        self.weights: np.ndarray | None = None
        if balance == "sampler":
            labels = data.labels[data.part("train")]
            self.weights = class_weights(labels, len(data.class_names))[labels]
        self.resident: Tensor | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one rank in a whole epoch."""
        return len(self.train_sampler())

    def train_sampler(self) -> EpochSampler:
        """The order of training, at the point the Trainer has reached."""
        count = len(self.data.part("train"))
        if self.trainer is None:
            return EpochSampler(count, self.batch_size, self.seed, weights=self.weights)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = EpochSampler(count, self.batch_size, self.seed, rank, world_size, self.weights)
        sampler.set_epoch(*reached(self.trainer))
        return sampler

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("train", self.train_sampler())

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("val", InOrder(len(self.data.part("val")), EVALUATION_BATCH * self.batch_size))

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("test", InOrder(len(self.data.part("test")), EVALUATION_BATCH * self.batch_size))

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Where the images lie on the device, gather the batch there."""
        if "rows" in batch:
            if self.resident is None:
                self.resident = on_device(self.data.images, batch["rows"].device)
            batch["images"] = self.resident[batch.pop("rows")]
        return batch

    def loader(self, part: str, sampler: Sampler[Batch]) -> DataLoader[dict[str, Tensor]]:
        """The sampler makes whole batches, so the loader makes none (``batch_size=None``)."""
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            Gather(self.data, part),
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=cuda,
        )


def on_device(images: np.ndarray | DecodedOnDemand, device: torch.device) -> Tensor:
    """A copy of the disk's array (rows, S, S, 3) uint8, made in pieces so that main memory holds one at a time."""
    assert isinstance(images, np.ndarray)
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), 1024):
        resident[start : start + 1024] = torch.from_numpy(images[start : start + 1024].copy())
    return resident


def reached(trainer: lightning.Trainer) -> tuple[int, int]:
    """(epoch, batch) that the Trainer trains on next, also after it loaded a checkpoint."""
    epoch = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if batches.is_last_batch:  # an epoch's end, counted as processed or not yet
        return epoch.ready, 0
    return epoch.processed, batches.current.processed  # pyright: ignore[reportAttributeAccessIssue]
