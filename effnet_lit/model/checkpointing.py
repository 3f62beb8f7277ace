"""Gradient checkpointing (arXiv 1604.06174) that leaves BatchNorm statistics exact.

The usual way runs each block's forward twice and so updates the running statistics twice. Here the second pass, the
recomputation in backward, normalises by its batch as the first did and updates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from effnet_lit.config import UserError
from effnet_lit.model.efficientnet import EfficientNet, MBConv


def set_gradient_checkpointing(network: nn.Module, mode: str) -> None:
    """ "off" keeps every activation for backward; "blocks" keeps each block's input and recomputes the rest.

    Raises:
        UserError: the network is not an EfficientNet and ``mode`` is not "off".
    """
    if not isinstance(network, EfficientNet):
        if mode != "off":
            raise UserError(
                f"model.gradient_checkpointing={mode} works with efficientnet_b0 to b7; "
                "use model.gradient_checkpointing=off or another model.name."
            )
        return
    for block in network.blocks():
        forward = partial(MBConv.forward, block)
        block.forward = partial(checkpointed, block, forward) if mode == "blocks" else forward


def checkpointed(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``forward(x)``, with only ``x`` kept for backward."""
    if not (block.training and x.requires_grad):
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(block)

    result = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    assert isinstance(result, Tensor)
    return result


@contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorms normalise by the batch as in training and leave their running statistics alone."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm, statistics in zip(norms, kept, strict=True):  # copies take the update and are thrown away
        norm.running_mean, norm.running_var, norm.num_batches_tracked = (s.clone() for s in statistics if s is not None)
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics
