"""How much memory a training step will need, counted on tensors without contents before anything is allocated."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effnet_lit.model.cpu.threads import standing_in, together
from effnet_lit.model.scaling import LITE
from effnet_lit.model.zoo import freeze_batchnorm

# What no tensor shows: scratch memory of the libraries, gaps between tensors. On a GPU a share and bytes: PyTorch's
# documented habits (blocks of 2 MB, cuDNN's workspaces), not measured. On a CPU the heaps of the calling thread and of
# the threads that take pieces grow by themselves, so each has a factor on the most it held, fitted to
# ``python -m benchmarks.memory``: tensors that come and go leave more gaps than those that are kept.
OVERHEAD = {"cuda": (0.1, 2**28), "mps": (0.1, 2**28)}
LITE_HEAP = 1.7  # of Lite0 whose BatchNorm follows the batches: its modules leave more gaps; off by up to a quarter
CPU_HEAPS = {"off": (1.27, 1.43), "activations": (1.84, 1.33), "blocks": (1.38, 2.30)}


class Bytes(NamedTuple):
    """Of tensors that the calling thread made, and that threads with pieces made."""

    by_caller: int
    by_threads: int


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors made under it while they live, each storage once; ``peak`` is the most of each so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = Bytes(0, 0)
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count its storage, until it is freed."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        taken = Bytes(0, size) if standing_in() else Bytes(size, 0)
        self.live = Bytes(*(a + b for a, b in zip(self.live, taken, strict=True)))
        self.peak = Bytes(*map(max, self.peak, self.live))
        weakref.finalize(storage, self.release, place, taken).atexit = False

    def release(self, place: int, taken: Bytes) -> None:
        """It is gone."""
        self.known.discard(place)
        self.live = Bytes(*(a - b for a, b in zip(self.live, taken, strict=True)))


def step_peak(
    network: nn.Module, batch_size: int, image_size: int, device: str, precision: str, frozen: bool = False
) -> Bytes:
    """Tensors alive at the peak of one training step: parameters, AdamW's two states, the weight average, gradients,
    images as they come and as they are varied, and what is kept for backward; either kind of thread's at its own peak.
    ``network`` stays as it is.

    Args:
        device: cpu, cuda or mps.
        precision: Lightning's word for it.
        frozen: whether BatchNorm is, also in layers that are trained.
    """
    shape = torch.Size((batch_size, 3, image_size, image_size))
    with without_contents(network, device, shape) as (twin, images):
        twin.train()
        freeze_batchnorm(twin, everywhere=frozen)
        with LiveBytes() as tracker, together(), autocast(device, precision):
            for tensor in (*twin.parameters(), *twin.buffers(), images):
                tracker.add(tensor)
            trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
            states = [torch.empty_like(parameter) for parameter in trained for _ in range(3)]
            varied = torch.empty_like(images)
            labels = torch.zeros(batch_size, dtype=torch.long, device=device)
            loss = functional.cross_entropy(twin(images).float(), labels)
            loss.backward()
            del states, varied
    return tracker.peak


def evaluation_peak(network: nn.Module, batch_size: int, image_size: int, device: str, precision: str) -> int:
    """Bytes of tensors alive at the peak of a forward pass in evaluation, without parameters and buffers."""
    shape = torch.Size((batch_size, 3, image_size, image_size))
    with without_contents(network, device, shape) as (twin, images), torch.no_grad():
        twin.eval()
        with LiveBytes() as tracker, together(), autocast(device, precision):
            tracker.add(images)
            twin(images)
    return sum(tracker.peak)


@contextmanager
def without_contents(network: nn.Module, device: str, shape: torch.Size) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy of the network on ``device`` and images of that shape in channels_last; neither these tensors nor those
    made within have contents."""
    twin = copy.deepcopy(network)
    with FakeTensorMode() as fake:
        twin._apply(lambda tensor: fake.from_tensor(tensor).to(device))
        yield twin, torch.empty(shape, device=device).to(memory_format=torch.channels_last)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """As Lightning casts."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device, kinds[precision]) if precision in kinds else nullcontext()


def with_overhead(
    tensors: Bytes, device: str, gradient_checkpointing: str, name: str = "", frozen: bool = False
) -> int:
    """What the process or the GPU will need for them, in training the network of that name; ``frozen`` as above."""
    if device == "cpu":
        caller, threads = CPU_HEAPS[gradient_checkpointing]
        if name == LITE and not frozen:
            caller = LITE_HEAP
        return round(caller * tensors.by_caller + threads * tensors.by_threads)
    share, fixed = OVERHEAD[device]
    return round(tensors.by_caller * (1 + share)) + fixed  # pieces are a CPU's


def free_ram() -> int:
    """Bytes that this process may still take without swapping, as Linux and its control groups tell it; else 0."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    try:
        most, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return min(free, int(most) - int(used))
    except (OSError, ValueError):  # no limit
        return free
