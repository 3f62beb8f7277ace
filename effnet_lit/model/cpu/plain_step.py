"""Whether a forward pass belongs to a training step that the functions of this folder know."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_step(x: Tensor) -> bool:
    """Whether ``x`` is part of a training step on a CPU in full precision."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
