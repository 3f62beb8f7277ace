"""The ``auto`` settings that depend on the machine: device, precision, loader workers; and advice on the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from effnet_lit.config import Config, UserError
from effnet_lit.machine import cores


@dataclass(frozen=True)
class Hardware:
    """The device a run uses; ``memory`` is the GPU's in bytes, and what is free of it, 0 where there is none."""

    accelerator: str
    precision: str
    name: str
    memory: int
    free_memory: int

    @property
    def device(self) -> str:
        """As PyTorch calls it."""
        return "cuda" if self.accelerator == "gpu" else self.accelerator


def resolve_hardware(config: Config) -> Hardware:
    """Choose device and precision, and store what they became in ``config``.

    Raises:
        UserError: the accelerator asked for is not there, or several devices are asked for.
    """
    devices, nodes = config.trainer.get("devices", 1), config.trainer.get("num_nodes", 1)
    if nodes != 1 or not (devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)):
        raise UserError(f"trainer.devices={devices}: a run trains on one device so far; use trainer.devices=1.")
    accelerator = choose_accelerator(str(config.trainer["accelerator"]))
    precision = config.trainer["precision"]
    if precision == "auto":
        precision = choose_precision(accelerator)
    config.trainer.update(accelerator=accelerator, precision=precision)
    cuda = accelerator == "gpu"
    name = (
        torch.cuda.get_device_name(0) if cuda else f"{'Apple GPU' if accelerator == 'mps' else 'CPU'}, {cores()} cores"
    )
    free, memory = torch.cuda.mem_get_info(0) if cuda else (0, 0)
    return Hardware(accelerator, str(precision), name, memory, free)


def choose_workers(asked: int | str, accelerator: str, cache: str) -> int:
    """Loader processes: none where only numbers travel or where a CPU needs every core for the training itself; a GPU
    needs its batches gathered beside it, and images that are decoded in every epoch need hands everywhere."""
    if not isinstance(asked, str):
        return asked
    if cache == "device" or (accelerator == "cpu" and cache != "off"):
        return 0
    return max(1, min(8, cores() - 1))


def choose_accelerator(asked: str) -> str:
    """gpu, mps or cpu."""
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, is_there in there.items() if is_there)
    asked = {"cuda": "gpu"}.get(asked, asked)
    if asked not in there:
        raise UserError(f"trainer.accelerator={asked} is not a choice; use one of: auto, gpu, mps, cpu.")
    if not there[asked]:
        found = next(name for name, is_there in there.items() if is_there)
        raise UserError(f"trainer.accelerator={asked}: PyTorch finds none here; use trainer.accelerator={found}.")
    return asked


def choose_precision(accelerator: str) -> str:
    """bf16 where the chip has it, fp16 on other cards with tensor cores, fp32 elsewhere.

    GTX 16xx cards report fp16 and return NaN in convolutions; bf16 that is emulated costs time and gains nothing.
    """
    if accelerator != "gpu":
        return "32-true"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    tensor_cores = torch.cuda.get_device_capability(0) >= (7, 0) and "GTX 16" not in torch.cuda.get_device_name(0)
    return "16-mixed" if tensor_cores else "32-true"


def batch_advice(hardware: Hardware, batch_size: int) -> str:
    """The card's advice on the batch for this GPU's memory, where the run does not follow it; else empty."""
    gigabytes = hardware.memory / 2**30
    if not hardware.memory:
        return ""
    if gigabytes < 12 and batch_size > 32:
        return f"{gigabytes:.0f} GB of GPU memory: batch_size=16 to 32 is advised if memory runs out."
    if gigabytes >= 15 and batch_size < 32:
        return f"{gigabytes:.0f} GB of GPU memory: batch_size=32 to 64 would be faster."
    return ""
