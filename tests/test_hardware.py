"""What is chosen where no GPU is, and the card's advice on the batch."""

from __future__ import annotations

import pytest
import torch

from effnet_lit.config import Config, UserError
from effnet_lit.training.hardware import (
    Hardware,
    batch_advice,
    choose_accelerator,
    choose_precision,
    choose_workers,
    resolve_hardware,
)


def gpu(gigabytes: float) -> Hardware:
    return Hardware("gpu", "bf16-mixed", "a GPU", int(gigabytes * 2**30), int(gigabytes * 2**30))


@pytest.mark.parametrize(
    ("gigabytes", "batch_size", "words"),
    [(8, 64, "batch_size=16 to 32"), (8, 32, ""), (16, 16, "batch_size=32 to 64"), (24, 64, ""), (0, 64, "")],
)
def test_batch_advice_is_the_cards(gigabytes: float, batch_size: int, words: str) -> None:
    advice = batch_advice(gpu(gigabytes), batch_size)
    assert words in advice
    assert bool(advice) == bool(words)


def test_a_cpu_runs_in_float32() -> None:
    config = Config(trainer={"accelerator": "cpu", "devices": 1, "precision": "auto"})
    hardware = resolve_hardware(config)
    assert (hardware.accelerator, config.trainer["precision"]) == ("cpu", "32-true")
    assert choose_precision("mps") == "32-true"


def test_what_is_set_stays() -> None:
    config = Config(trainer={"accelerator": "cpu", "devices": 1, "precision": "bf16-mixed"})
    assert resolve_hardware(config).precision == "bf16-mixed"


def test_loader_processes_where_there_is_work_for_them() -> None:
    assert choose_workers(3, "cpu", "disk") == 3
    assert choose_workers("auto", "cpu", "disk") == 0
    assert choose_workers("auto", "gpu", "device") == 0
    assert choose_workers("auto", "cpu", "off") >= 1
    assert choose_workers("auto", "gpu", "disk") >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"finds none here; use trainer\.accelerator="):
        choose_accelerator("gpu")


@pytest.mark.parametrize("devices", [2, "2", -1, [0, 1], "auto"])
def test_several_devices_are_refused(devices: object) -> None:
    with pytest.raises(UserError, match="one device"):
        resolve_hardware(Config(trainer={"accelerator": "cpu", "devices": devices, "precision": "auto"}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_precision_on_a_gpu_is_one_it_really_has() -> None:
    assert choose_precision("gpu") in {"bf16-mixed", "16-mixed", "32-true"}
    assert choose_accelerator("auto") == "gpu"
