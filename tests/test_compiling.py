"""Compiling: when it pays, and the traps around freezing, evaluation and weight averages."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torch.utils.data import DataLoader

from effnet_lit.config import UserError
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.training import compiling
from effnet_lit.training.compiling import compile_network, decide


def test_long_runs_compile_and_short_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda accelerator, mode: "")
    assert decide("auto", "gpu", "off", steps=100_000, step_seconds=0.05).on
    short = decide("auto", "gpu", "off", steps=100, step_seconds=0.05)
    assert not short.on and "100 steps would win back about 2 s of the 90 s" in short.reason
    assert decide("on", "gpu", "off", steps=100, step_seconds=0.05).on
    assert not decide("off", "gpu", "off", steps=100_000, step_seconds=0.05).on


def test_where_it_cannot_help() -> None:
    assert decide("auto", "cpu", "off", 10**6, 1.0) == (False, "it gains nothing on this device")
    assert "gradient checkpointing blocks" in decide("auto", "gpu", "blocks", 10**6, 1.0).reason
    with pytest.raises(UserError, match=r"training\.compile=off"):
        decide("on", "cpu", "off", 10**6, 1.0)


def small() -> EfficientNet:
    torch.manual_seed(0)
    network = EfficientNet(num_classes=2, drop_path_rate=0.0, dropout_rate=0.0)
    network.stages = network.stages[:2]
    network.head = type(network.head)(24, 1280, 1, network.architecture)
    return network


def step(network: nn.Module) -> set[str]:
    """Names of the parameters that got a gradient."""
    network.zero_grad(set_to_none=True)
    functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


def frozen_step_then_thawed(compile_anew: bool) -> tuple[set[str], set[str]]:
    """(parameters with a gradient after freeze, compile, step, thaw, step; all parameters)."""
    network = small().train()
    network.stages.requires_grad_(False)
    compile_network(network, "aot_eager")
    step(network)
    network.stages.requires_grad_(True)
    if compile_anew:
        compile_network(network, "aot_eager")
    return step(network), {name for name, _ in network.named_parameters()}


def test_a_thawed_backbone_trains() -> None:
    trained, all_of_them = frozen_step_then_thawed(compile_anew=True)
    assert trained == all_of_them


class Calls:
    """A compiler that counts how often its graphs run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            self.count += 1
            return graph.forward(*arguments)

        return run


def test_evaluation_is_compiled_too_and_names_stay() -> None:
    network, calls = small(), Calls()
    names = list(network.state_dict())
    compile_network(network, calls)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        compiled = network.eval()(images)
        assert calls.count == 1
        assert torch.allclose(compiled, network.forward(images), atol=1e-6)
    network.train()(images)
    assert calls.count == 2
    assert list(network.state_dict()) == names


class Averaged(LightningModule):
    """A few steps of a compiled network; notes what validation sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def training_step(self, batch: Tensor) -> Tensor:
        return functional.cross_entropy(self.network(batch), torch.arange(len(batch)) % 2)

    def validation_step(self, batch: Tensor) -> None:
        self.seen.append(self.network(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def averaged_outputs(compiled: bool) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """What two validations saw, the final weights, and how many graphs ran."""
    torch.manual_seed(1)
    calls, module = Calls(), Averaged(small())
    if compiled:
        compile_network(module.network, calls)  # type: ignore[arg-type]
    images = torch.randn(8, 3, 32, 32)
    batches = DataLoader(list(images), batch_size=4)  # type: ignore[arg-type]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[EMAWeightAveraging(decay=0.5)],
    )
    trainer.fit(module, batches, batches)
    return module.seen, copy.deepcopy(module.network.state_dict()), calls.count


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_weight_averages_are_validated_by_the_compiled_network() -> None:
    seen, weights, count = averaged_outputs(compiled=True)
    plain, plain_weights, _ = averaged_outputs(compiled=False)
    assert count == 8  # 2 epochs of 2 training and 2 validation batches
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)
    for ours, theirs in zip(seen, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    for name, value in plain_weights.items():
        assert torch.allclose(weights[name], value, atol=1e-4), name
