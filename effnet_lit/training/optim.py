"""AdamW without decay on norms and biases, and a rate that warms up, then falls along a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from effnet_lit.config import TrainingConfig


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels decay; vectors (norms, biases) do not."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def warmup_cosine(total_steps: int, warmup_fraction: float, final_fraction: float) -> Callable[[int], float]:
    """Factor on the peak rate at a step: linear to 1, then half a cosine to ``final_fraction`` (arXiv 1608.03983)."""
    warmup = max(1, round(total_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_optimizer(network: nn.Module, learning_rate: float, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over ``parameter_groups``."""
    return torch.optim.AdamW(parameter_groups(network, training.weight_decay), lr=learning_rate, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, training: TrainingConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """``warmup_cosine`` over all steps of the run."""
    factor = warmup_cosine(total_steps, training.warmup_fraction, training.final_rate_fraction)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
