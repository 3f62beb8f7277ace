"""Whose training step is measured, and the measuring, which runs in the contender's own process."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.many import anonymous_bytes, peak
from benchmarks.timing import cores

CLASSES = 10
DROP_PATH = 0.2
WARM_UP = 5  # steps before anything is read
AGAIN = {"cpu": 4, "cuda": 1}  # untimed steps of each turn: memory given back comes anew, page by page
READ = 3  # steps that memory is read over
TUNE = 2  # steps that a number of threads is judged by
COPY_BYTES = {"cpu": 2**28, "gpu": 2**31}  # far beyond any cache
COPIES = 7


@dataclass(frozen=True)
class Contender:
    """A network and how its step is run.

    ``best``: channels_last, fused AdamW, on a CPU the faster number of threads, on a GPU cuDNN's own search; otherwise
    as the library gives it. ``checkpointing``, ``kernels`` and ``fine_tuning``, BatchNorm and first layers as loaded,
    are ours alone.
    """

    name: str
    package: str
    model: str = "efficientnet_b0"
    best: bool = True
    keeps_freed_memory: bool = False
    compiled: bool = False
    checkpointing: str = "off"
    kernels: bool = False
    fine_tuning: bool = False


def contenders(device: str) -> list[Contender]:
    """All that are compared on "cpu" or "gpu"."""
    ours = partial(Contender, package="effnet_lit", keeps_freed_memory=device == "cpu")
    chosen = [ours(f"ours, {mode}", checkpointing=mode) for mode in ("off", "activations", "blocks")]
    chosen.append(ours("ours, fine-tuning", fine_tuning=True))
    if device == "gpu":
        chosen += [ours("ours, compiled", compiled=True), ours("ours, kernels", compiled=True, kernels=True)]
    for package in ("torchvision", "timm"):
        chosen += [Contender(f"{package}, defaults", package, best=False), Contender(f"{package}, best", package)]
        if device == "cpu":
            chosen.append(Contender(f"{package}, our allocator", package, keeps_freed_memory=True))
        else:
            chosen.append(Contender(f"{package}, compiled", package, compiled=True))
    others = {"ResNet-50": "resnet50", "MobileNetV3-Small": "mobilenet_v3_small", "ViT-B/16": "vit_b_16"}
    return chosen + [Contender(name, "torchvision", model) for name, model in others.items()]


def build_network(contender: Contender, size: int) -> nn.Module:
    """For ``CLASSES`` classes and square images of ``size`` pixels, randomly initialised."""
    if contender.package == "effnet_lit":
        from effnet_lit.model.efficientnet import EfficientNet

        network = EfficientNet(contender.model, num_classes=CLASSES, drop_path_rate=DROP_PATH)
        network.set_gradient_checkpointing(contender.checkpointing)
        for block in network.blocks() if contender.kernels else ():
            block.kernels = True
        return network
    if contender.package == "timm":
        import timm

        return timm.create_model(contender.model, num_classes=CLASSES, drop_rate=0.2, drop_path_rate=DROP_PATH)
    from torchvision.models import get_model

    depends = {"efficientnet_b0": {"stochastic_depth_prob": DROP_PATH}, "vit_b_16": {"image_size": size}}
    return get_model(contender.model, num_classes=CLASSES, **depends.get(contender.model, {}))


def compiled(network: nn.Module, contender: Contender) -> Any:
    """With CUDA graphs: ours as a run does it."""
    if contender.kernels:
        from effnet_lit.training.cuda_graph import CapturedNetwork

        return CapturedNetwork(network)
    if contender.package != "effnet_lit":
        return torch.compile(network, mode="reduce-overhead")
    from effnet_lit.training.compiling import compile_network

    compile_network(network)
    return network


def hold_as_loaded(network: nn.Module) -> None:
    """What a run from loaded weights does not train."""
    from effnet_lit.model.zoo import early_layers, freeze_batchnorm, freeze_layers

    freeze_layers(network, early_layers(network))
    freeze_batchnorm(network)


class Step:
    """A training step, again and again on the same random images."""

    def __init__(self, contender: Contender, device: str, batch: int, size: int) -> None:
        self.device = torch.device("cuda" if device == "gpu" else "cpu")
        layout = torch.channels_last if contender.best else torch.contiguous_format
        torch.backends.cudnn.benchmark = contender.best
        torch.manual_seed(0)
        self.network = build_network(contender, size).train().to(self.device).to(memory_format=layout)
        if contender.fine_tuning:
            hold_as_loaded(self.network)
        fused = True if contender.best else None
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=fused)
        self.images = torch.randn(batch, 3, size, size).to(device=self.device, memory_format=layout)
        self.labels = torch.randint(CLASSES, (batch,)).to(self.device)
        self.forward = compiled(self.network, contender) if contender.compiled else self.network

    def loss(self) -> Tensor:
        """In float32 on a CPU, under bf16 autocast on a GPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return functional.cross_entropy(self.forward(self.images), self.labels)

    def run(self, steps: int) -> None:
        """Whole steps."""
        for _ in range(steps):
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, steps: int) -> float:
        """Of one step, after some that are not; a GPU is waited for only before and after all of them."""
        self.run(AGAIN[self.device.type])
        self.wait()
        start = time.perf_counter()
        self.run(steps)
        self.wait()
        return (time.perf_counter() - start) / steps

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rest(self) -> None:
        """Give free memory back, so that all contenders fit beside each other; the next untimed steps take it again."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


class Kept(TorchDispatchMode):
    """Counts the tensors created under it that are still held, by autograd above all, each storage once.

    Hooks on saved tensors would miss what gradient checkpointing holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.created: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.created[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def held(self) -> int:
        """Bytes, now."""
        gc.collect()
        return sum(size for reference, size in self.created.values() if not reference.expired())


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Costs(NamedTuple):
    """Of one contender: what is not timed. ``kept_bytes`` is None where a compiler hides what is held."""

    peak_bytes: int
    kept_bytes: int | None
    threads: int


_running: Step | None = None  # of this process


def prepare(contender: Contender, device: str) -> None:
    """Import everything but build nothing."""
    if contender.keeps_freed_memory:
        from effnet_lit.allocator import keep_freed_memory

        keep_freed_memory()
    if contender.compiled:  # before the compiler is imported: all run side by side
        compilers = sum(each.compiled for each in contenders(device))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cores() // compilers)))
    homes = {"effnet_lit": "effnet_lit.model.efficientnet", "torchvision": "torchvision.models"}
    importlib.import_module(homes.get(contender.package, contender.package))
    if device == "gpu":
        torch.cuda.init()


def build(contender: Contender, device: str, batch: int, size: int) -> Costs:
    """Warm up, choose the number of threads, read what a step needs of memory.

    Raises:
        RuntimeError: it does not run here, out of memory for one; errors of other kinds, a compiler's above all, may
            not survive the way between processes.
    """
    global _running
    try:
        idle = anonymous_bytes() if device == "cpu" else 0
        _running = Step(contender, device, batch, size)
        return read_cpu(_running, contender, idle) if device == "cpu" else read_gpu(_running, contender)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from None


def read_cpu(step: Step, contender: Contender, idle: int) -> Costs:
    """Memory above ``idle`` bytes."""
    step.run(WARM_UP)
    if contender.best:
        choose_threads(step)
        step.rest()  # what other numbers of threads took does not count
        step.run(AGAIN["cpu"])
    with peak() as most:
        step.run(READ)
    kept = kept_bytes(step)
    step.rest()
    return Costs(most[0] - idle, kept, torch.get_num_threads())


def read_gpu(step: Step, contender: Contender) -> Costs:
    """By PyTorch's allocator; a compiled step allocates while its CUDA graph is recorded, in its first steps."""
    if not contender.compiled:
        step.run(WARM_UP)  # cuDNN's search takes more than what it finds needs
    torch.cuda.reset_peak_memory_stats()
    step.run(WARM_UP if contender.compiled else READ)
    most = torch.cuda.max_memory_allocated()
    kept = None if contender.compiled else kept_bytes(step)
    step.rest()
    return Costs(most, kept, torch.get_num_threads())


def choose_threads(step: Step) -> None:
    """The fastest of PyTorch's own number, one a core and one every second core."""
    seconds = {}
    for threads in sorted({torch.get_num_threads(), cores(), max(1, cores() // 2)}):
        torch.set_num_threads(threads)
        seconds[threads] = step.seconds(TUNE)
    torch.set_num_threads(min(seconds, key=lambda threads: seconds[threads]))


def kept_bytes(step: Step) -> int:
    """What a forward pass holds for backward, without parameters and images."""
    from effnet_lit.model.cpu.threads import together

    with together():  # backward too: what it computes again comes in pieces of the same size
        with Kept() as kept:
            loss = step.loss()
            held = kept.held()
        loss.backward()
    step.optimizer.zero_grad(set_to_none=True)
    return held


def turn(steps: int) -> float:
    """Images per second over so many steps of the contender that lives here."""
    assert _running is not None
    rate = len(_running.images) / _running.seconds(steps)
    _running.rest()
    return rate


def copy_rate(device: str) -> float:
    """Bytes read and written per second by copying a large tensor."""
    where = "cuda" if device == "gpu" else "cpu"
    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(COPIES):
        start = time.perf_counter()
        target.copy_(source)
        if device == "gpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * COPY_BYTES[device] / statistics.median(seconds)


def accelerator() -> str:
    """The GPU's name, empty where PyTorch sees none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
