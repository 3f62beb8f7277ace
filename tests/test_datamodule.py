"""The order of training is a function of (seed, epoch), whatever the workers, ranks and interruptions."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import images
import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effnet_lit.config import DataConfig
from effnet_lit.data.datamodule import ClassFolderDataModule, EpochSampler, Gather, InOrder
from effnet_lit.data.decode import decode
from effnet_lit.data.prepare import PreparedData, prepare

BATCH = 8
Record = tuple[int, list[int], list[int]]  # epoch, positions, sums of the images' pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    root = images.class_tree(folder / "images", {"a": 20, "b": 20, "c": 20})
    return prepare(DataConfig(dir=str(root), cache_dir=str(folder / "cache")), 0, False, 16, lambda done, total: None)


def test_parts_hold_their_images_once(data: PreparedData) -> None:
    module = ClassFolderDataModule(data, BATCH, 0, 0)
    for part, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        batches = list(loader)
        chosen = data.part(part)
        expected = [decode(data.root / data.paths[i], 16) for i in chosen]
        assert np.array_equal(torch.cat([batch["images"] for batch in batches]), expected)
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.labels[chosen].tolist()
        assert max(len(batch["labels"]) for batch in batches) <= 2 * BATCH


def test_training_batches_fit_their_labels_and_leave_only_the_tail(data: PreparedData) -> None:
    module = ClassFolderDataModule(data, BATCH, 0, 0)
    label_of = {
        decode(data.root / path, 16).tobytes(): label for path, label in zip(data.paths, data.labels, strict=True)
    }
    seen = []
    for batch in module.train_dataloader():
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].shape == (BATCH, 16, 16, 3)
        assert [label_of[image.numpy().tobytes()] for image in batch["images"]] == batch["labels"].tolist()
        seen += [image.numpy().tobytes() for image in batch["images"]]
    assert len(seen) == len(set(seen)) == module.batches_per_epoch * BATCH == len(data.part("train")) // BATCH * BATCH


def test_an_epoch_is_one_permutation_and_the_next_another() -> None:
    sampler = EpochSampler(100, 10, seed=1)
    orders = []
    for epoch in (0, 1, 2, 1):
        sampler.set_epoch(epoch)
        orders.append(np.concatenate([numbers for numbers, _ in sampler]))
        assert sorted(orders[-1]) == list(range(100))
        assert np.array_equal(np.concatenate([positions for _, positions in sampler]), np.arange(100))
    assert np.array_equal(orders[1], orders[3])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], np.concatenate([numbers for numbers, _ in EpochSampler(100, 10, seed=2)]))


def test_ranks_share_each_global_batch() -> None:
    alone = list(EpochSampler(50, 12, seed=0))
    ranks = [list(EpochSampler(50, 4, 0, rank, 3)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [len(alone)] * 3 == [4] * 3
    for step, (numbers, positions) in enumerate(alone):
        assert np.array_equal(np.concatenate([batches[step][0] for batches in ranks]), numbers)
        assert np.array_equal(np.concatenate([batches[step][1] for batches in ranks]), positions)


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"), [(33, 32, [32]), (5, 32, [5]), (64, 32, [32, 32]), (3, 2, [2])]
)
def test_never_a_batch_of_one(count: int, batch_size: int, expected: list[int]) -> None:
    assert [len(numbers) for numbers, _ in EpochSampler(count, batch_size, 0)] == expected


def test_a_start_belongs_to_its_epoch() -> None:
    sampler = EpochSampler(40, 10, 0)
    sampler.set_epoch(3, start=2)
    sampler.set_epoch(3)  # as Lightning calls it
    assert [positions[0] for _, positions in sampler] == [20, 30]
    assert len(sampler) == 4
    sampler.set_epoch(4)
    assert len(list(sampler)) == 4


def test_measuring_goes_in_order_to_the_last_image() -> None:
    batches = [numbers.tolist() for numbers, _ in InOrder(5, 2)]
    assert batches == [[0, 1], [2, 3], [4]]
    assert len(InOrder(5, 2)) == 3


def test_workers_started_afresh_get_the_file_not_its_content(data: PreparedData) -> None:
    gather = Gather(data, "train")
    packed = pickle.dumps(gather)
    assert len(packed) < 5_000 < data.images.nbytes
    batch = (np.arange(6), np.arange(6))
    assert torch.equal(pickle.loads(packed)[batch]["images"], gather[batch]["images"])


class Recorder(lightning.LightningModule):
    """Notes what it is trained on; saves and stops where it is told to."""

    def __init__(self, stop: tuple[str, int] | None = None, path: str | Path = "") -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.stop, self.path = stop, path
        self.records: list[Record] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        sums = batch["images"].flatten(1).long().sum(1).tolist()
        self.records.append((self.current_epoch, batch["positions"].tolist(), sums))
        return self.layer(batch["images"].float().mean((1, 2))).square().mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def save_and_stop(self, hook: str) -> None:
        if self.stop == (hook, self.global_step):
            self.trainer.save_checkpoint(self.path)
            raise InterruptedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.save_and_stop("batch_start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.save_and_stop("batch_end")

    def on_train_epoch_end(self) -> None:
        self.save_and_stop("epoch_end")


def train(module: Recorder, data: PreparedData, workers: int, checkpoint: Path | None = None) -> list[Record]:
    """Three epochs, or what is left of them."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")
        trainer.fit(module, datamodule=ClassFolderDataModule(data, BATCH, 5, workers), ckpt_path=checkpoint)
    return module.records


@pytest.fixture(scope="module")
def whole(data: PreparedData) -> list[Record]:
    return train(Recorder(), data, 0)


def test_each_epoch_has_its_order(whole: list[Record]) -> None:
    assert [epoch for epoch, _, _ in whole] == [0] * 5 + [1] * 5 + [2] * 5
    sums = [[pixels for own, _, batch in whole if own == epoch for pixels in batch] for epoch in range(3)]
    assert len({tuple(order) for order in sums}) == 3
    assert len(set(sums[0])) == 40


def test_workers_change_nothing(data: PreparedData, whole: list[Record]) -> None:
    assert train(Recorder(), data, 2) == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "stop",  # five batches an epoch; the number is of steps done
    [("batch_start", 3), ("batch_end", 3), ("batch_start", 5), ("batch_end", 5), ("epoch_end", 5), ("batch_start", 8)],
)
def test_a_resumed_run_sees_what_was_left(
    data: PreparedData, whole: list[Record], tmp_path: Path, stop: tuple[str, int], workers: int
) -> None:
    first = Recorder(stop, tmp_path / "stopped.ckpt")
    with pytest.raises(InterruptedError):
        train(first, data, workers)
    assert len(first.records) == stop[1]
    rest = train(Recorder(), data, workers, tmp_path / "stopped.ckpt")
    assert first.records + rest == whole
