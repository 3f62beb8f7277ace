"""AdamW without decay on norms and biases, lower rates near the images, and a rate that warms up, then falls along a
cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from effnet_lit.config import Config, TrainingConfig
from effnet_lit.model.scaling import SCALES
from effnet_lit.model.zoo import layers


def parameter_groups(
    network: nn.Module, weight_decay: float, learning_rate: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices and kernels decay; vectors (norms, biases) do not. Below 1, ``layer_decay`` gives each of the network's
    ``layers`` that share of the next one's rate (arXiv 1801.06146); the last has all of it.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rates = dict.fromkeys(trained, learning_rate)
    if layer_decay < 1:
        parts = layers(network)
        rates = dict.fromkeys(trained, learning_rate * layer_decay ** (len(parts) - 1))  # such as position embeddings
        for depth, part in enumerate(reversed(parts)):
            rates |= dict.fromkeys(
                (p for p in part.parameters() if p.requires_grad), learning_rate * layer_decay**depth
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trained:
        groups.setdefault((rates[parameter], weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def warmup_cosine(total_steps: int, warmup_fraction: float, final_fraction: float) -> Callable[[int], float]:
    """Factor on the peak rate at a step: linear to 1, then half a cosine to ``final_fraction`` (arXiv 1608.03983)."""
    warmup = max(1, round(total_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def peak_rate(config: Config) -> float:
    """The highest rate of a run: without loaded weights an EfficientNet takes, and needs, more than ``learning_rate``
    (docs/decisions/from_scratch.md)."""
    scratch = config.model.weights == "none" and config.model.name in SCALES
    return config.learning_rate * (config.training.scratch_rate_factor if scratch else 1.0)


def build_optimizer(network: nn.Module, learning_rate: float, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over ``parameter_groups``."""
    assert not isinstance(training.layer_decay, str)
    groups = parameter_groups(network, training.weight_decay, learning_rate, training.layer_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, training: TrainingConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """``warmup_cosine`` over all steps of the run."""
    factor = warmup_cosine(total_steps, training.warmup_fraction, training.final_rate_fraction)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
