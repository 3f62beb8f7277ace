"""Milliseconds of MBConv's training step on a CPU, forward and backward: as modules and in pieces of a batch, for every
distinct block of B0. Shows from how many bytes on pieces pay (``effnet_lit.model.cpu.suits``).

    python -m benchmarks.blocks --batch 32 --size 224
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from unittest.mock import patch

import effnet_lit  # noqa: F401  # isort: skip  # before torch, whose waiting threads it tells how long to spin
import torch
from torch import Tensor

from benchmarks.kernels import distinct_blocks
from benchmarks.timing import interleave, processor, ratio, spread
from effnet_lit.allocator import keep_freed_memory
from effnet_lit.model.cpu.suits import widest
from effnet_lit.model.efficientnet import MBConv

SMALLEST = {"modules": 2**62, "in pieces": 0}  # bytes from which on a layer works in pieces
FLUSHED = 2**24  # numbers touched before each step, so that the caches hold nothing of the last one
WARM_UP = 2  # rounds


def milliseconds(block: MBConv, x: Tensor, gradient: Tensor, flushed: Tensor, smallest: int) -> float:
    """Of one forward and backward."""
    flushed.add_(1)
    with patch("effnet_lit.model.cpu.suits.SMALLEST_BYTES", smallest):
        start = time.perf_counter()
        torch.autograd.grad(block(x), (x, *block.parameters()), gradient)
        return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocks", description="MBConv as modules and in pieces.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=20)
    settings = parser.parse_args()
    keep_freed_memory()
    print(f"{processor()}, batch {settings.batch}, {settings.size} px: median ms (fastest-slowest)")
    flushed = torch.zeros(FLUSHED)
    for block, shape, count in distinct_blocks(settings.size):
        block = block.train().to(memory_format=torch.channels_last)
        x = torch.randn(settings.batch, *shape[1:]).contiguous(memory_format=torch.channels_last).requires_grad_()
        gradient = torch.randn_like(block(x))
        tasks = {name: partial(milliseconds, block, x, gradient, flushed, least) for name, least in SMALLEST.items()}
        samples = {name: times[WARM_UP:] for name, times in interleave(tasks, settings.rounds + WARM_UP).items()}
        megabytes = widest(block) * x[:, 0].numel() * x.element_size() / 2**20
        convolution = block.depthwise.conv
        label = f"{count} x k{convolution.kernel_size[0]} s{convolution.stride[0]} {convolution.in_channels}"
        print(f"{label + f' channels {shape[-2]} px':28} {megabytes:6.1f} MB", end="")
        for name, times in samples.items():
            print(f"  {name} {spread(times).text('.1f')}", end="")
        print(f"  ratio {ratio(samples['modules'], samples['in pieces']).median:.2f}", flush=True)


if __name__ == "__main__":
    main()
