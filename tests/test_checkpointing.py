"""Checkpointed training equals plain training bit for bit, in weights and in BatchNorm's buffers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torchvision.models import efficientnet_b0

from effnet_lit.config import UserError
from effnet_lit.model.cpu import suits
from effnet_lit.model.efficientnet import ConvNorm, EfficientNet
from effnet_lit.model.zoo import create_model, freeze_batchnorm, set_gradient_checkpointing

MODES = ("off", "activations", "blocks")


@pytest.fixture(params=["modules", "cpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A step by the modules, as on a GPU, or by the CPU's own functions."""
    monkeypatch.setattr(suits, "SMALLEST_BYTES", 0)
    if request.param == "modules":
        monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    return request.param


def network(mode: str, name: str = "efficientnet_b0", frozen: bool = False) -> EfficientNet:
    torch.manual_seed(0)
    result = EfficientNet(name, num_classes=3)
    result.set_gradient_checkpointing(mode)
    if frozen:
        freeze_batchnorm(result)
    return result


def train(model: nn.Module, steps: int = 20) -> dict[str, Tensor]:
    """Weights and buffers after some steps with dropout and stochastic depth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        torch.manual_seed(step)
        loss = functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name.rpartition(".")[2] for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize(
    ("name", "frozen"), [("efficientnet_b0", False), ("efficientnet_b0", True), ("efficientnet_lite0", True)]
)
def test_all_modes_give_the_same_weights_and_buffers(way: str, name: str, frozen: bool) -> None:
    off = train(network("off", name, frozen))
    assert differing(off, train(network("activations", name, frozen))) == set()
    assert differing(off, train(network("blocks", name, frozen))) == set()


def test_the_usual_way_would_be_caught(way: str) -> None:
    naive = network("off")
    for block in naive.blocks():
        block.forward = partial(checkpoint, block.block, use_reentrant=False)
    found = differing(train(network("off"), 2), train(naive, 2))
    assert found == {"running_mean", "running_var", "num_batches_tracked"}


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """For backward: each storage once, weights and the images aside."""
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # or its place would be used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images).sum()
    others = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), images)}
    return sum(size for place, size in seen.items() if place not in others)


def test_bytes_kept_beside_torchvision(way: str) -> None:
    images = torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    most = kept_bytes(efficientnet_b0().to(memory_format=torch.channels_last), images)  # type: ignore[call-overload]
    share = {mode: kept_bytes(network(mode), images) / most for mode in MODES}
    assert share["off"] < (1.01 if way == "modules" else 0.65)
    assert share["activations"] < 0.55
    assert share["blocks"] < 0.35


@pytest.mark.parametrize(("name", "most"), [("efficientnet_b0", 0.75), ("efficientnet_lite0", 0.65)])
def test_frozen_batchnorm_keeps_scaled_kernels_alone(name: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the same with BatchNorm for itself, by the modules."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    images = torch.randn(16, 3, 128, 128)
    kept = kept_bytes(network("off", name, frozen=True), images)
    monkeypatch.setattr(ConvNorm, "folded", lambda self: False)
    assert kept < most * kept_bytes(network("off", name, frozen=True), images)


def test_only_the_gates_convolutions_run_again_with_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    calls = {}
    for mode in MODES:
        with profile(
            activities=[ProfilerActivity.CPU], acc_events=True
        ) as profiler:  # contiguous: no convolution is ours, as on a GPU
            network(mode)(torch.randn(2, 3, 64, 64)).sum().backward()
        calls[mode] = sum(event.count for event in profiler.key_averages() if event.key == "aten::_convolution")
    assert calls["activations"] == calls["off"] + 2 * 16 < calls["blocks"]


def test_evaluation_and_switching_back() -> None:
    model = network("blocks").eval()
    images = torch.randn(2, 3, 32, 32)
    checkpointed = model(images)
    model.set_gradient_checkpointing("off")
    assert torch.equal(model(images), checkpointed)


def test_other_networks_refuse() -> None:
    model = create_model("mobilenet_v3_small", 2)
    set_gradient_checkpointing(model, "off")
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing=off"):
        set_gradient_checkpointing(model, "blocks")
