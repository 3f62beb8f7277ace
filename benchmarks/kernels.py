"""Milliseconds of MBConv's training step, forward and backward in bf16 and channels_last: eager (cuDNN), torch.compile
and our Triton kernels, for every distinct block of B0.

    python -m benchmarks.kernels --batch 256 --size 224
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import Spread, interleave, spread
from effnet_lit.model.efficientnet import EfficientNet, MBConv
from effnet_lit.model.kernels.mbconv import available, mbconv_with_kernels

WARM_UP = 3  # compile, choose algorithms


def distinct_blocks(size: int) -> Iterator[tuple[MBConv, torch.Size, int]]:
    """(block, its input's shape at batch 1, how often B0 has it) at a square image."""
    network = EfficientNet(drop_path_rate=0.0)
    found: dict[str, tuple[MBConv, torch.Size, int]] = {}
    with torch.inference_mode():
        x = network.eval().stem(torch.zeros(1, 3, size, size))
        for block in network.blocks():
            key = f"{block} {x.shape}"
            found[key] = (block, x.shape, found[key][2] + 1 if key in found else 1)
            x = block(x)
    yield from found.values()


def milliseconds(step: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, repeats: int) -> float:
    """Of one forward and backward, on the GPU's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        with torch.autocast("cuda", torch.bfloat16):
            y = step(x)
        torch.autograd.grad(y, (x, *parameters), torch.ones_like(y))
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def measure(block: MBConv, shape: torch.Size, batch: int, repeats: int, rounds: int) -> dict[str, Spread]:
    """Interleaved rounds of the three ways."""
    block = block.train().cuda().to(memory_format=torch.channels_last)
    x = torch.randn(batch, *shape[1:], device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": block,
        "compile": torch.compile(copy.deepcopy(block), dynamic=False),
        "kernels": partial(mbconv_with_kernels, block),
    }
    tasks = {}
    for name, step in steps.items():
        parameters = list((step if isinstance(step, nn.Module) else block).parameters())
        tasks[name] = partial(milliseconds, step, parameters, x, repeats)
        for _ in range(WARM_UP):
            tasks[name]()
    return {name: spread(samples) for name, samples in interleave(tasks, rounds).items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=10, help="steps timed together")
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    if not (torch.cuda.is_available() and available()):
        print("not measured: no GPU")
        return
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, batch {settings.batch}, {settings.size} px: median ms (fastest-slowest)")
    totals: dict[str, float] = {}
    for block, shape, count in distinct_blocks(settings.size):
        torch.compiler.reset()
        times = measure(block, shape, settings.batch, settings.repeats, settings.rounds)
        convolution = block.depthwise.conv
        label = f"{count} x k{convolution.kernel_size[0]} s{convolution.stride[0]} {convolution.in_channels}"
        label += f" channels {shape[-2]} px"
        print(f"{label:32}", *(f"{name} {taken.text('.3f')}" for name, taken in times.items()), sep="  ", flush=True)
        for name, taken in times.items():
            totals[name] = totals.get(name, 0.0) + count * taken.median
    print(f"{'all blocks':32}", *(f"{name} {total:.2f}" for name, total in totals.items()), sep="  ")


if __name__ == "__main__":
    main()
