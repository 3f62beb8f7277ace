"""A network's training step by the kernels of ``model.kernels``, as two CUDA graphs: forward and backward, each started
by one call. A GPU then does not wait for Python between hundreds of small kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from effnet_lit.config import Config
from effnet_lit.machine import cores
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.kernels.mbconv import available
from effnet_lit.model.zoo import has_kernels
from effnet_lit.training.compiling import Decision, weigh
from effnet_lit.training.memory import without_contents

# On an H200's machine (docs/decisions/gpu.md) the kernels took up to 45 s to compile one after another, once for all
# runs, and at batch 256 steps took 60% less time than eager ones.
KERNEL_SECONDS = 45.0
TIME_SAVED = 0.6
MEASURED_CAPABILITIES = ((9, 0),)  # Hopper
WARM_UP = 3  # steps in which libraries choose algorithms and kernels are compiled


def decide_kernels(config: Config, network: nn.Module, accelerator: str, steps: int, step_seconds: float) -> Decision:
    """Whether to train by kernels of our own; ``model.kernels=auto`` takes them only where they were measured.

    Args:
        step_seconds: of one eager step, measured.

    Raises:
        UserError: "on" with something that the kernels do not compute.
    """
    choice = config.model.kernels
    obstacle = why_not(config, network) or (not_measured(accelerator) if choice == "auto" else "")
    return weigh("model.kernels", choice, obstacle, steps, step_seconds * TIME_SAVED, KERNEL_SECONDS)


def why_not(config: Config, network: nn.Module) -> str:
    """What the kernels do not compute, or nothing."""
    if not has_kernels(network):
        return f"they are for EfficientNet-B0 to B7, not for {config.model.name}"
    assert isinstance(network, EfficientNet)
    if network.architecture["padding"] == "same":
        return "they do not pad as TensorFlow's weights need it"
    if network.gradient_checkpointing != "off":
        return f"they keep too little to combine with gradient checkpointing {network.gradient_checkpointing}"
    return ""


def not_measured(accelerator: str) -> str:
    """Why it is not known that they are faster here, or nothing."""
    if accelerator != "gpu" or not available():
        return "for CUDA GPUs with Triton"
    if torch.cuda.get_device_capability() not in MEASURED_CAPABILITIES:
        return "not measured on a GPU of this kind; try model.kernels=on"
    return ""


class CapturedNetwork:
    """``network`` in training, on a GPU; images of another shape than the first batch's go to the network itself.

    What is captured stays bound to the parameters' memory, which may change its contents but not its place. A backward
    pass belongs to the forward pass just before it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.graphs: Graphs | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.graphs is None:
            self.graphs = Graphs(self.network, images)
        if images.shape != self.graphs.images.shape:
            return self.network(images)
        return Replay.apply(self.graphs, images, self.graphs.parameters[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedNetwork:
        return CapturedNetwork(copy.deepcopy(self.network, memo))


class Graphs:
    """Recorded with the first batch's shape, in the autocast that is on; buffers and random numbers do not move."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network = network
        self.images = images.clone(memory_format=torch.channels_last)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        buffers = [buffer.clone() for buffer in network.buffers()]
        device = images.device.type
        dtype, on = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, on, cache_enabled=False):  # casts belong to every replay
            compile_kernels(network, images)
            self.record()
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def record(self) -> None:
        """Run a few steps, then both passes once more for the graphs."""
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.random.fork_rng([self.images.device]):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.logits = self.network(self.images)
                    self.dlogits = torch.zeros_like(self.logits)
                    self.gradients = self.compute_gradients()
            torch.cuda.current_stream().wait_stream(aside)
            self.dlogits = torch.zeros_like(self.logits)
            del self.logits, self.gradients
            mode = "thread_local"  # other threads may pin memory meanwhile
            with torch.cuda.graph(self.forward, capture_error_mode=mode):
                self.logits = self.network(self.images)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode=mode):
                self.gradients = self.compute_gradients()

    def compute_gradients(self) -> list[Tensor]:
        """Of the parameters, from ``dlogits``."""
        gradients = torch.autograd.grad(self.logits, self.parameters, self.dlogits)
        return [laid_out(*pair) for pair in zip(gradients, self.parameters, strict=True)]

    def release_gradients(self) -> None:
        """Those of a micro-batch before, to which others will be added, move out of the memory that a replay writes."""
        if self.parameters[0].grad is self.gradients[0]:
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient.clone()


def compile_kernels(network: nn.Module, images: Tensor) -> None:
    """All kernels of our own that a training step on images (N, 3, H, W) launches, on as many threads as there are
    cores; Triton by itself compiles each when it is first launched, one after another."""
    if not (isinstance(network, EfficientNet) and network.uses_kernels()):
        return
    from effnet_lit.model.kernels.launching import compiled_side_by_side

    with without_contents(network, images.device.type, images.shape) as (twin, none), compiled_side_by_side(cores()):
        twin(none).sum().backward()


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """With the parameter's strides, which fused optimisers ask for; copied only where the order in memory differs."""
    triples = zip(parameter.shape, gradient.stride(), parameter.stride(), strict=True)
    if all(size == 1 or found == wanted for size, found, wanted in triples):
        return gradient.as_strided(parameter.shape, parameter.stride())
    return torch.empty_like(parameter).copy_(gradient)


class Replay(torch.autograd.Function):
    """Images -> logits. Gradients go to the parameters themselves, since autograd takes longer over hundreds of them
    than small batches take on a GPU; ``anchor`` stands for all in autograd's graph."""

    @staticmethod
    def forward(ctx: Any, graphs: Graphs, images: Tensor, anchor: Tensor) -> Tensor:
        ctx.graphs = graphs
        graphs.release_gradients()
        graphs.images.copy_(images)
        graphs.forward.replay()
        return graphs.logits.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        graphs: Graphs = ctx.graphs
        graphs.dlogits.copy_(grads[0])
        graphs.backward.replay()
        for parameter, gradient in zip(graphs.parameters, graphs.gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
        return None, None, None
