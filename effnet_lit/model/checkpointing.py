"""Gradient checkpointing (arXiv 1604.06174) that leaves BatchNorm statistics exact.

The usual way runs a block's forward twice and so updates the running statistics twice. Here the second pass, the
recomputation in backward, normalises by its batch as the first did and updates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

MODES = ("off", "activations", "blocks")


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> Tensor:
    """``function(x)``, a part of a network with these modules, that keeps only ``x`` for backward.

    Backward runs ``function`` again up to the last tensor that it needs: where a convolution comes last, its input is
    computed again, the convolution itself is not, unless it is a function of ours (``DepthwiseConv2d``).
    """
    if not (torch.is_grad_enabled() and any(module.training for module in modules)):
        return function(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(*modules)

    result = checkpoint(function, x, use_reentrant=False, context_fn=contexts)
    assert isinstance(result, Tensor)
    return result


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """BatchNorms normalise by the batch as in training and leave their running statistics alone."""
    norms = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    kept = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm, statistics in zip(norms, kept, strict=True):  # copies take the update and are thrown away
        norm.running_mean, norm.running_var, norm.num_batches_tracked = (s.clone() for s in statistics if s is not None)
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics
