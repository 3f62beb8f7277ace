"""Training steps that are recorded once and replayed: what a run may rely on, with functions in place of CUDA graphs
where there is no GPU."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from effnet_lit import compose, fit
from effnet_lit.config import Config, UserError
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.training import cuda_graph
from effnet_lit.training import fit as fitting
from effnet_lit.training.compiling import Decision
from effnet_lit.training.cuda_graph import CapturedNetwork, Graphs, decide_kernels, laid_out

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
RUN = ("limits=off", "epochs=2", "batch_size=16", "data.image_size=32", "model.weights=none", "seed=3")


class Again:
    """A graph that calls a method again, whose object it does not keep alive."""

    def __init__(self, method: Callable[[], None]) -> None:
        self.method = weakref.WeakMethod(method)

    def replay(self) -> None:
        method = self.method()
        assert method is not None
        method()


class FunctionsAgain(Graphs):
    """Results stay where they were first written, and a forward pass writes over the gradients, as in a graph."""

    replays = copies = 0
    alive: ClassVar[weakref.WeakSet[Graphs]] = weakref.WeakSet()

    def record(self) -> None:
        FunctionsAgain.alive.add(self)
        with torch.random.fork_rng():
            self.logits = self.network(self.images)
        self.dlogits = torch.zeros_like(self.logits)
        self.gradients = self.compute_gradients()
        self.forward = Again(self.run_forward)  # type: ignore[assignment]
        self.backward = Again(self.run_backward)  # type: ignore[assignment]

    def run_forward(self) -> None:
        FunctionsAgain.replays += 1
        for gradient in self.gradients:
            gradient.fill_(torch.nan)
        with torch.enable_grad():
            self.logits = self.network(self.images)

    def release_gradients(self) -> None:
        before = self.parameters[0].grad
        super().release_gradients()
        FunctionsAgain.copies += before is not self.parameters[0].grad

    def run_backward(self) -> None:
        for place, gradient in zip(self.gradients, self.compute_gradients(), strict=True):
            place.copy_(gradient)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions in place of graphs, and every run on a CPU captured."""
    monkeypatch.setattr(cuda_graph, "Graphs", FunctionsAgain)
    monkeypatch.setattr(FunctionsAgain, "replays", 0)
    monkeypatch.setattr(FunctionsAgain, "copies", 0)
    plan_step = fitting.plan_step

    def captured(*arguments: object) -> object:
        return plan_step(*arguments)._replace(kernels=Decision(True, ""))  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "plan_step", captured)


def trained(config: Config, run_dir: Path) -> dict[str, Tensor]:
    """Weights and buffers after a run."""
    return load_file(fit(config, run_dir).run_dir / "model.safetensors")


@pytest.mark.parametrize(
    ("overrides", "replays", "copies"),
    [((), 2 * 5, 0), (("training.micro_batch=4", "trainer.gradient_clip_val=0.1"), 2 * 21, 2 * 5)],
)
def test_a_run_ends_as_without(
    class_folder: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    replays: int,
    copies: int,
    request: pytest.FixtureRequest,
) -> None:
    """Gradients are copied once a step, and only where several micro-batches make one."""
    config = compose(f"data.dir={class_folder}", *RUN, "model.gradient_checkpointing=off", *overrides)
    plain = trained(config, tmp_path / "plain")
    request.getfixturevalue("without_gpu")
    captured = trained(config, tmp_path / "captured")
    assert all(torch.equal(plain[name], captured[name]) for name in plain)
    assert (FunctionsAgain.replays, FunctionsAgain.copies) == (replays, copies)
    assert not FunctionsAgain.alive  # their memory is free again


def network(device: str = "cpu") -> EfficientNet:
    torch.manual_seed(0)
    result = EfficientNet(num_classes=3, drop_path_rate=0.0, dropout_rate=0.0)
    return result.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def step(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Forward and backward; the loss."""
    loss = functional.cross_entropy(forward(images), torch.arange(len(images), device=images.device) % 3)
    loss.backward()
    return loss.detach()


def check_steps(device: str) -> None:
    """Three batches, each followed by one of another shape: losses, gradients that add up, buffers."""
    captured_network, plain = network(device), network(device)
    captured = CapturedNetwork(captured_network)
    for images in torch.randn(4, 4, 3, 64, 64, device=device).split((2, 1, 1)):
        for each in (images[0], images[-1][:3]):
            torch.testing.assert_close(step(captured, each), step(plain, each), rtol=1e-4, atol=1e-4)
    for (name, ours), theirs in zip(captured_network.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert ours.grad.stride() == ours.stride()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)
    for ours, theirs in zip(captured_network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "Graphs", FunctionsAgain)
    check_steps("cpu")


@GPU
def test_steps_on_a_gpu() -> None:
    check_steps("cuda")


@GPU
def test_replays_draw_new_numbers_and_see_new_weights() -> None:
    net = EfficientNet(num_classes=3, drop_path_rate=0.5, dropout_rate=0.5).train().to("cuda")
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    captured, images = CapturedNetwork(net), torch.randn(4, 3, 64, 64, device="cuda")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)

    def logits(forward: Callable[[Tensor], Tensor], seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.autocast("cuda", torch.bfloat16):
            return forward(images).detach().clone()

    first, again, other = (logits(captured, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for _ in range(2):
        step(captured, images)
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(logits(captured, 0), first, rtol=0.1, atol=0.1)
    torch.testing.assert_close(logits(captured, 2), logits(net, 2), rtol=0.02, atol=0.02)


@GPU
@pytest.mark.slow
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    config = compose("preset=small", "epochs=5", "model.kernels=on", "trainer.accelerator=gpu")
    assert fit(config, tmp_path / "run").test["accuracy"] > 0.9


def test_a_copy_is_captured_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "Graphs", FunctionsAgain)
    holder = nn.Module()
    holder.network = network()
    holder.captured = CapturedNetwork(holder.network)  # type: ignore[assignment]
    step(holder.captured, torch.randn(4, 3, 64, 64))  # type: ignore[arg-type]
    twin = copy.deepcopy(holder)
    assert twin.captured.network is twin.network is not holder.network
    assert twin.captured.graphs is None


def test_layouts() -> None:
    parameter = torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last)
    gradient = torch.randn(4, 3, 2, 2)
    found = laid_out(gradient, parameter)
    assert found.stride() == parameter.stride() and torch.equal(found, gradient)
    pointwise = torch.empty(4, 3, 1, 1).to(memory_format=torch.channels_last)
    gradient = torch.randn(4, 3)[..., None, None]
    found = laid_out(gradient, pointwise)
    assert found.stride() == pointwise.stride() and torch.equal(found, gradient)
    assert found.data_ptr() == gradient.data_ptr()


def chosen(network: nn.Module, steps: int = 10_000, accelerator: str = "gpu", *overrides: str) -> Decision:
    """Of a run with so many steps of 50 ms."""
    config = compose("model.kernels=auto", *overrides)
    return decide_kernels(config, network, accelerator, steps, 0.05)


def test_kernels_are_chosen_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    assert chosen(net, 1, "gpu", "model.kernels=on").on
    assert not chosen(net, 10_000, "gpu", "model.kernels=off").on
    assert not chosen(net, 10_000, "cpu").on
    monkeypatch.setattr(cuda_graph, "available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert chosen(net).on
    short = chosen(net, 100)
    assert not short.on and "100 steps would win back about 3 s of the 45 s" in short.reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert "model.kernels=on" in chosen(net).reason


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("resnet", "for EfficientNet"),
        ("lite0", "B0 to B7"),
        ("padding", "TensorFlow"),
        ("blocks", "checkpointing blocks"),
    ],
)
def test_what_kernels_do_not_compute(obstacle: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    net = (
        nn.Linear(1, 1)
        if obstacle == "resnet"
        else EfficientNet(padding="same" if obstacle == "padding" else "symmetric")
    )
    if obstacle == "lite0":
        net = EfficientNet("efficientnet_lite0")
    if isinstance(net, EfficientNet) and obstacle == "blocks":
        net.set_gradient_checkpointing("blocks")
    given = nn.Linear(1, 1) if obstacle == "resnet" else net
    decision = chosen(given, 10_000, "gpu")
    assert not decision.on and reason in decision.reason
    with pytest.raises(UserError, match=f"{reason}.*use model.kernels=off"):
        chosen(given, 10_000, "gpu", "model.kernels=on")
