"""When the functions of this folder may compute at all."""

from __future__ import annotations

import torch
from torch import Tensor


def in_step(x: Tensor) -> bool:
    """Whether ``x`` takes part in a training step on a CPU in full precision that is not being compiled."""
    return torch.is_grad_enabled() and plainly_on_cpu(x)


def plainly_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU in full precision and neither compiled nor traced, which would miss other threads."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    )
