"""How much memory a training step will need, counted on tensors without contents before anything is allocated."""

from __future__ import annotations

import copy
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effnet_lit.model.cpu.threads import together

# What no tensor shows, as a share of them and in bytes: the heap's gaps between tensors, and scratch memory of the
# libraries. For CPUs fitted to ``python -m benchmarks.memory``, where tensors that come and go leave more gaps than
# those that are kept; the GPU's are PyTorch's documented habits (blocks of 2 MB, cuDNN's workspaces), not measured.
OVERHEAD = {"cuda": (0.1, 2**28), "mps": (0.1, 2**28)}
CPU_OVERHEAD = {"off": (0.4, 20_000_000), "activations": (0.4, 85_000_000), "blocks": (0.9, 0)}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made under it while they live, each storage once; ``peak`` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
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
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.release, place, size).atexit = False

    def release(self, place: int, size: int) -> None:
        """It is gone."""
        self.known.discard(place)
        self.live -= size


def step_bytes(network: nn.Module, batch_size: int, image_size: int, device: str, precision: str) -> int:
    """Tensors alive at the peak of one training step: parameters, AdamW's two states, the weight average, gradients,
    images as they come and as they are varied, and what is kept for backward. ``network`` stays as it is.

    Args:
        device: cpu, cuda or mps.
        precision: Lightning's word for it.
    """
    twin = copy.deepcopy(network).train()
    with FakeTensorMode() as fake:
        twin = twin._apply(lambda tensor: fake.from_tensor(tensor).to(device))
        with LiveBytes() as tracker, together(), autocast(device, precision):
            for tensor in (*twin.parameters(), *twin.buffers()):
                tracker.add(tensor)
            trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
            states = [torch.empty_like(parameter) for parameter in trained for _ in range(3)]
            shape = (batch_size, 3, image_size, image_size)
            images = torch.empty(shape, device=device).to(memory_format=torch.channels_last)
            varied = torch.empty_like(images)
            labels = torch.zeros(batch_size, dtype=torch.long, device=device)
            loss = functional.cross_entropy(twin(images).float(), labels)
            loss.backward()
            del states, varied
    return tracker.peak


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """As Lightning casts."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device, kinds[precision]) if precision in kinds else nullcontext()


def with_overhead(tensors: int, device: str, gradient_checkpointing: str) -> int:
    """What the process or the GPU will need for them."""
    share, fixed = CPU_OVERHEAD[gradient_checkpointing] if device == "cpu" else OVERHEAD[device]
    return round(tensors * (1 + share)) + fixed


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
