"""How a batch becomes a step: in one piece or several, what is recomputed, whether it is compiled."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from effnet_lit.config import Config, UserError
from effnet_lit.data.datamodule import EVALUATION_BATCH
from effnet_lit.model.checkpointing import MODES
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.zoo import freeze_batchnorm, set_gradient_checkpointing, use_kernels
from effnet_lit.training.compiling import Decision, decide
from effnet_lit.training.cuda_graph import compile_kernels, decide_kernels
from effnet_lit.training.hardware import Hardware
from effnet_lit.training.memory import autocast, evaluation_peak, free_ram, step_peak, with_overhead

USABLE = 0.9  # of the free memory: the rest is for what other programs take meanwhile
SMALLEST_MICRO_BATCH = 4  # BatchNorm's statistics of fewer images are noise
TRIALS = 3  # the first steps choose algorithms and take memory


class MemoryPlan(NamedTuple):
    """A step of the optimiser takes ``accumulate`` times ``micro_batch`` images, with gradient checkpointing ``mode``;
    that needs about ``bytes`` of the ``available`` (0 = not known)."""

    micro_batch: int
    accumulate: int
    mode: str
    bytes: int
    available: int

    def sentence(self, batchnorm: str) -> str:
        """Such as: this run needs about 3.1 GB of 6.0 GB; ``batchnorm`` as in the configuration."""
        of = f" of {self.available / 1e9:.1f} GB" if self.available else ""
        how = [f"gradient checkpointing {self.mode}"] if self.mode != "off" else []
        if self.accumulate > 1:
            how.append(f"{self.accumulate} times {self.micro_batch} images to a step")
            how += [f"so BatchNorm sees {self.micro_batch} at once"] if batchnorm == "train" else []
        return ", ".join([f"this run needs about {self.bytes / 1e9:.1f} GB{of}", *how])


class StepPlan(NamedTuple):
    """``compiling`` is off where the kernels are on."""

    memory: MemoryPlan
    kernels: Decision
    compiling: Decision


def plan_step(config: Config, hardware: Hardware, network: nn.Module, images: int) -> StepPlan:
    """Resolve gradient checkpointing, micro-batch, kernels and compiling, in ``config`` and on ``network``.

    On a GPU real steps of a copy show that the plan holds, and how long a step takes.

    Args:
        images: that an epoch trains on.

    Raises:
        UserError: not even a small part of the batch fits, or a setting does not go with network or device.
    """
    assert isinstance(config.data.image_size, int)
    available = hardware.free_memory or free_ram()
    plan = plan_memory(config, network, hardware.device, hardware.precision, available)
    seconds = 0.0
    if hardware.device == "cuda":
        frozen = config.training.batchnorm == "frozen"
        trial = Trial(network, config.data.image_size, torch.device("cuda"), hardware.precision, frozen)
        plan, seconds = verified(plan, trial)
    config.model.gradient_checkpointing, config.training.micro_batch = plan.mode, plan.micro_batch
    micro_batches = config.epochs * (images // plan.micro_batch)
    kernels = decide_kernels(config, network, hardware.accelerator, micro_batches, seconds)
    if kernels.on:
        use_kernels(network)
        return StepPlan(plan, kernels, Decision(False, "the kernels are compiled instead"))
    compiling = decide(config.training.compile, hardware.accelerator, plan.mode, micro_batches, seconds)
    return StepPlan(plan, kernels, compiling)


def plan_memory(config: Config, network: nn.Module, device: str, precision: str, available: int) -> MemoryPlan:
    """The first of ``candidates`` that fits ``USABLE`` of the ``available`` bytes; where that is 0 any does.

    Raises:
        UserError: none does.
    """
    size, least, frozen = config.data.image_size, 0, config.training.batchnorm == "frozen"
    assert isinstance(size, int)
    for micro_batch, times, mode in candidates(config, network):
        set_gradient_checkpointing(network, mode)
        peak = step_peak(network, micro_batch, size, device, precision, frozen)
        if config.model.kernels == "on" and mode == "off":  # graphs keep a step's memory while validation takes its own
            assert isinstance(config.data.eval_size, int)
            images = EVALUATION_BATCH * micro_batch
            evaluated = evaluation_peak(network, images, config.data.eval_size, device, precision)
            peak = peak._replace(by_caller=peak.by_caller + evaluated)
        least = with_overhead(peak, device, mode, config.model.name, frozen)
        if not available or least <= USABLE * available:
            return MemoryPlan(micro_batch, times, mode, least, available)
    raise UserError(
        f"batch_size={config.batch_size} at data.image_size={size} needs {least / 1e9:.1f} GB even in its smallest "
        f"pieces, and {available / 1e9:.1f} GB are free; use a smaller data.image_size or a smaller model.name."
    )


def candidates(config: Config, network: nn.Module) -> Iterator[tuple[int, int, str]]:
    """(micro-batch, times, mode), the fastest first."""
    batch, micro, mode = config.batch_size, config.training.micro_batch, config.model.gradient_checkpointing
    assert isinstance(batch, int)
    several = isinstance(network, EfficientNet) and config.model.kernels != "on"
    modes = (mode,) if mode != "auto" else MODES if several else MODES[:1]
    first = micro if isinstance(micro, int) else batch
    yield from ((first, batch // first, each) for each in modes)
    times = 2
    while micro == "auto" and batch % times == 0 and batch // times >= SMALLEST_MICRO_BATCH:
        yield batch // times, times, modes[-1]
        times *= 2


def verified(plan: MemoryPlan, trial: Callable[[int], float]) -> tuple[MemoryPlan, float]:
    """The plan, or the same batch in smaller pieces, for which ``trial(micro_batch)`` does not run out of memory, and
    what that returned.

    Raises:
        UserError: it always does.
    """
    while True:
        try:
            return plan, trial(plan.micro_batch)
        except torch.OutOfMemoryError:
            pass  # its traceback holds the tensors, so go on outside
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if plan.micro_batch % 2 or plan.micro_batch // 2 < SMALLEST_MICRO_BATCH:
            raise UserError(
                f"Out of memory with {plan.micro_batch} images at once; use a smaller data.image_size or a smaller "
                "model.name, or end other programs that use this device."
            )
        plan = plan._replace(micro_batch=plan.micro_batch // 2, accumulate=2 * plan.accumulate)


class Trial:
    """Real training steps of a copy of the network; returns the seconds of the last."""

    def __init__(
        self, network: nn.Module, image_size: int, device: torch.device, precision: str, frozen: bool = False
    ) -> None:
        self.network, self.image_size, self.device, self.precision = network, image_size, device, precision
        self.frozen = frozen

    def __call__(self, micro_batch: int) -> float:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            twin = copy.deepcopy(self.network).train().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            freeze_batchnorm(twin, everywhere=self.frozen)
            optimizer = torch.optim.AdamW(twin.parameters(), fused=True)
            images = torch.randn(micro_batch, 3, self.image_size, self.image_size, device=self.device)
            labels = torch.zeros(micro_batch, dtype=torch.long, device=self.device)
            with autocast(self.device.type, self.precision):
                compile_kernels(twin, images)
            started = 0.0
            for _ in range(TRIALS):
                started = self.now()
                optimizer.zero_grad()
                with autocast(self.device.type, self.precision):
                    logits = twin(images.contiguous(memory_format=torch.channels_last))
                functional.cross_entropy(logits.float(), labels).backward()
                optimizer.step()
            return self.now() - started

    def now(self) -> float:
        """Seconds, when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
