"""The order of training is a function of (seed, epoch), whatever the workers, ranks and interruptions."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import images
import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from effnet_lit.config import DataConfig
from effnet_lit.data.augment import random_numbers
from effnet_lit.data.balance import class_weights
from effnet_lit.data.datamodule import ClassFolderDataModule, EpochSampler, Gather, InOrder, epoch_order
from effnet_lit.data.decode import decode
from effnet_lit.data.prepare import PreparedData, prepare

BATCH = 8
Record = tuple[int, list[float], list[int]]  # epoch, first random numbers, sums of the images' pixels


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
        expected = [decode(data.root / data.paths[i], 16, "squish") for i in chosen]
        assert np.array_equal(torch.cat([batch["images"] for batch in batches]), expected)
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.labels[chosen].tolist()
        assert max(len(batch["labels"]) for batch in batches) <= 2 * BATCH


def test_training_batches_fit_their_labels_and_leave_only_the_tail(data: PreparedData) -> None:
    module = ClassFolderDataModule(data, BATCH, 0, 0)
    label_of = {
        decode(data.root / path, 16, "squish").tobytes(): label
        for path, label in zip(data.paths, data.labels, strict=True)
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
        drawn = np.concatenate([random for _, random in sampler if random is not None])
        assert np.array_equal(drawn, random_numbers(1, epoch, 0, 100).astype(np.float32))
    assert np.array_equal(orders[1], orders[3])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], np.concatenate([numbers for numbers, _ in EpochSampler(100, 10, seed=2)]))


def test_ranks_share_each_global_batch() -> None:
    alone = list(EpochSampler(50, 12, seed=0))
    ranks = [list(EpochSampler(50, 4, 0, rank, 3)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [len(alone)] * 3 == [4] * 3
    for step, (numbers, random) in enumerate(alone):
        assert random is not None
        assert np.array_equal(np.concatenate([batches[step][0] for batches in ranks]), numbers)
        assert np.array_equal(np.concatenate([batches[step][1] for batches in ranks]), random)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"), [(33, 32, [32]), (5, 32, [5]), (64, 32, [32, 32]), (3, 2, [2])]
)
def test_never_a_batch_of_one(count: int, batch_size: int, expected: list[int]) -> None:
    assert [len(numbers) for numbers, _ in EpochSampler(count, batch_size, 0)] == expected


def test_a_start_belongs_to_its_epoch() -> None:
    sampler = EpochSampler(40, 10, 0)
    sampler.set_epoch(3, start=2)
    sampler.set_epoch(3)  # as Lightning calls it
    whole = list(EpochSampler(40, 10, 0))  # epoch 0
    assert not np.array_equal(whole[2][0], next(iter(sampler))[0])
    order = epoch_order(40, 0, 3)
    assert [numbers.tolist() for numbers, _ in sampler] == [order[20:30].tolist(), order[30:].tolist()]
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
    batch = (np.arange(6), None)
    assert torch.equal(pickle.loads(packed)[batch]["images"], gather[batch]["images"])


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=60), st.integers(0, 99), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_weighted_epoch_shows_each_image_as_often_as_its_weight_says(
    weights: list[float], seed: int, epoch: int
) -> None:
    share = np.array(weights) / sum(weights) * len(weights)
    order = epoch_order(len(weights), seed, epoch, np.array(weights))
    shown = np.bincount(order, minlength=len(weights))
    assert len(order) == len(weights)
    assert (np.abs(shown - share) < 1 + 1e-6).all()
    assert np.array_equal(order, epoch_order(len(weights), seed, epoch, np.array(weights)))


def test_effective_numbers_are_those_of_the_paper() -> None:
    labels = np.repeat([0, 1, 2], [600, 100, 10])
    weights = class_weights(labels, 4)
    effective = [sum(0.999**i for i in range(count)) for count in (600, 100, 10)]  # equation 1, as a sum
    assert np.allclose(weights[:3] / weights[0], effective[0] / np.array(effective))
    assert weights[3] == 0  # no image of it
    assert np.isclose(weights[labels].mean(), 1)


def test_balancing_shows_rare_classes_more_often(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "images", {"many": 90, "few": 10})
    uneven = prepare(DataConfig(dir=str(root), cache_dir=str(tmp_path)), 0, False, 16, lambda done, total: None)
    shown = {}
    for balance in ("none", "sampler"):
        loader = ClassFolderDataModule(uneven, 10, 0, 0, balance).train_dataloader()
        labels = torch.cat([batch["labels"] for batch in loader])
        shown[balance] = int((labels == 0).sum())  # "few" comes first
    assert shown["none"] <= 7
    assert 30 <= shown["sampler"] <= 36  # of 70; 0.999 makes the two classes nearly even


def test_images_on_the_device_give_the_same_batches(data: PreparedData) -> None:
    resident = ClassFolderDataModule(replace(data, cache="device"), BATCH, 0, 0)
    for ours, usual in zip(
        resident.train_dataloader(), ClassFolderDataModule(data, BATCH, 0, 0).train_dataloader(), strict=True
    ):
        assert "images" not in ours
        batch = resident.on_after_batch_transfer(ours, 0)
        assert batch.keys() == usual.keys()
        assert all(torch.equal(batch[key], usual[key]) for key in usual)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_not_kept_give_the_same_batches(data: PreparedData, tmp_path: Path, workers: int) -> None:
    config = DataConfig(dir=str(data.root), cache_dir=str(tmp_path), cache="off")
    decoded = prepare(config, 0, False, 16, lambda done, total: None)
    ours = ClassFolderDataModule(decoded, BATCH, 0, workers).train_dataloader()
    for batch, usual in zip(ours, ClassFolderDataModule(data, BATCH, 0, 0).train_dataloader(), strict=True):
        assert all(torch.equal(batch[key], usual[key]) for key in usual)


class Recorder(lightning.LightningModule):
    """Notes what it is trained on; saves and stops where it is told to."""

    def __init__(self, stop: tuple[str, int] | None = None, path: str | Path = "") -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.stop, self.path = stop, path
        self.records: list[Record] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        sums = batch["images"].flatten(1).long().sum(1).tolist()
        self.records.append((self.current_epoch, batch["random"][:, 0].tolist(), sums))
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
