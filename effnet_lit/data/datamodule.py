"""Batches from the cached images: order, position and augmentation never depend on the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from effnet_lit.data.prepare import PreparedData

Batch = tuple[np.ndarray, np.ndarray]  # image numbers within the part, positions in the epoch


class Gather(Dataset[dict[str, Tensor]]):
    """One part of the data. Indexed by a whole batch, so that its rows leave the disk's array in one call."""

    def __init__(self, data: PreparedData, part: str) -> None:
        chosen = data.part(part)
        self.images, self.rows, self.labels = data.images, data.rows[chosen], data.labels[chosen]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: Batch) -> dict[str, Tensor]:
        """A dict of "images" uint8 (B, S, S, 3), "labels" int64 (B,), "positions" int64 (B,)."""
        numbers, positions = batch
        return {
            "images": torch.from_numpy(self.images[self.rows[numbers]]),
            "labels": torch.from_numpy(self.labels[numbers]),
            "positions": torch.from_numpy(positions),
        }

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

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size = min(batch_size, count // world_size)
        assert self.batch_size > 1, "BatchNorm cannot train on one image"
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
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
        order = epoch_order(self.count, self.seed, self.epoch)
        for step in range(self.start, len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            positions = np.arange(first, first + self.batch_size)
            yield order[positions], positions


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 .. count - 1 that belongs to (seed, epoch).

    Drawn far away in the stream that augmentation draws from; sorting makes it the same in every NumPy.
    """
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, 1], np.uint64))
    return np.random.Generator(stream).random(count).argsort(kind="stable")


class InOrder(Sampler[Batch]):
    """Batches for measuring: every image once, as the part lists them."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.count, self.batch_size):
            numbers = np.arange(first, min(first + self.batch_size, self.count))
            yield numbers, numbers


class ClassFolderDataModule(lightning.LightningDataModule):
    """Prepared class folders for a Trainer made with ``use_distributed_sampler=False``.

    A Trainer that resumes inside an epoch goes on with the batch after the last one that was trained on.
    """

    def __init__(self, data: PreparedData, batch_size: int, seed: int, workers: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed, self.workers = data, batch_size, seed, workers

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one rank in a whole epoch."""
        return len(self.train_sampler())

    def train_sampler(self) -> EpochSampler:
        """The order of training, at the point the Trainer has reached."""
        count = len(self.data.part("train"))
        if self.trainer is None:
            return EpochSampler(count, self.batch_size, self.seed)
        sampler = EpochSampler(count, self.batch_size, self.seed, self.trainer.global_rank, self.trainer.world_size)
        sampler.set_epoch(*reached(self.trainer))
        return sampler

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("train", self.train_sampler())

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("val", InOrder(len(self.data.part("val")), 2 * self.batch_size))

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader("test", InOrder(len(self.data.part("test")), 2 * self.batch_size))

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


def reached(trainer: lightning.Trainer) -> tuple[int, int]:
    """(epoch, batch) that the Trainer trains on next, also after it loaded a checkpoint."""
    epoch = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if batches.is_last_batch:  # an epoch's end, counted as processed or not yet
        return epoch.ready, 0
    return epoch.processed, batches.current.processed  # pyright: ignore[reportAttributeAccessIssue]
