"""The architecture: counts of the paper, right initial scale, and parity with two independent implementations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from effnet_lit.model.efficientnet import ConvNorm, EfficientNet, MBConv
from effnet_lit.model.relu6 import ReLU6
from effnet_lit.model.zoo import freeze_batchnorm


def test_b0_has_the_papers_parameters_and_operations() -> None:
    network = EfficientNet().eval()
    assert sum(p.numel() for p in network.parameters()) == 5_288_548
    assert (
        sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.classifier.parameters())
        == 4_007_548
    )
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(0.3858e9, abs=0.0005e9)
    assert len(list(network.blocks())) == 16
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 49


@pytest.mark.parametrize("name", [f"efficientnet_b{i}" for i in range(8)])
def test_the_family_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = EfficientNet(name), getattr(torchvision.models, name)()
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in theirs.parameters())


def test_shapes_at_odd_sizes() -> None:
    network = EfficientNet(num_classes=5).eval()
    with torch.inference_mode():
        assert network.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)
        assert network(torch.zeros(2, 3, 97, 65)).shape == (2, 5)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_first_loss_is_chance(classes: int) -> None:
    torch.manual_seed(0)
    network = EfficientNet(num_classes=classes)
    logits = network(torch.randn(16, 3, 64, 64))
    loss = nn.functional.cross_entropy(logits, torch.randint(0, classes, (16,)))
    assert loss.item() == pytest.approx(math.log(classes), abs=0.25)


def test_depthwise_weights_count_their_fan_per_group() -> None:
    torch.manual_seed(0)
    block = next(block for block in EfficientNet().blocks() if block.depthwise.conv.kernel_size == (5, 5))
    assert block.depthwise.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    assert block.project.conv.weight.std().item() == pytest.approx(
        math.sqrt(2 / block.project.conv.out_channels), rel=0.05
    )


def test_stochastic_depth_rises_from_nothing_and_is_off_in_eval() -> None:
    network = EfficientNet(drop_path_rate=0.8, num_classes=3)
    rates = [block.drop_path.p for block in network.blocks()]
    assert rates == pytest.approx([0.8 * i / 16 for i in range(16)])
    with torch.no_grad():
        for block in network.blocks():
            nn.init.ones_(block.project.norm.weight)
    images = torch.randn(4, 3, 64, 64)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_a_skipped_block_passes_its_input_through() -> None:
    block = next(block for block in EfficientNet(drop_path_rate=0.2).blocks() if block.has_skip)
    block.drop_path.p = 1.0
    images = torch.randn(2, block.project.conv.out_channels, 8, 8)
    assert torch.equal(block.train()(images), images)


def test_half_precision_means_do_not_overflow() -> None:
    from effnet_lit.model.efficientnet import mean_over_space

    x = torch.full((1, 1, 112, 112), 60.0, dtype=torch.float16)
    assert float(mean_over_space(x)) == pytest.approx(60.0)
    assert mean_over_space(x).dtype == torch.float16


def test_squeeze_is_a_quarter_of_the_input_channels() -> None:
    for block in EfficientNet().blocks():
        assert isinstance(block, MBConv)
        width = (
            block.depthwise.conv.in_channels if isinstance(block.expand, nn.Identity) else block.expand.conv.in_channels
        )
        assert block.squeeze_excite.reduce.out_channels == width // 4


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
def test_frozen_batchnorm_as_part_of_the_convolution_is_the_same(
    name: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of a step by the modules, in float64, as with BatchNorm for itself; its buffers stay."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    torch.manual_seed(0)
    network = EfficientNet(name, 3, padding=padding).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -1, 2), (module.running_mean, -1, 1)):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    images = torch.randn(3, 3, 47, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def step() -> dict[str, Tensor]:
        twin = copy.deepcopy(network)
        freeze_batchnorm(twin)
        torch.manual_seed(1)
        logits = twin(images)
        logits.square().sum().backward()
        assert all(p.grad is not None for p in twin.parameters())
        gradients = {key: p.grad for key, p in twin.named_parameters() if p.grad is not None}
        return {"logits": logits.detach(), **gradients, **dict(twin.named_buffers())}

    ours = step()
    monkeypatch.setattr(ConvNorm, "folded", lambda self: False)
    theirs = step()
    assert theirs["logits"].std() > 0.1
    for key, value in theirs.items():
        assert (ours[key] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max()), key
    for key, value in network.named_buffers():
        assert torch.equal(ours[key], value), key


def test_relu6_as_pytorchs() -> None:
    """Also at 0 and at 6, where the gradient is a choice."""
    x = torch.tensor([-1.0, 0.0, 1e-6, 3.0, 6.0, 7.0, math.inf], requires_grad=True)
    ours, theirs = ReLU6()(x), nn.ReLU6()(x)
    assert torch.equal(ours, theirs) and torch.equal(ReLU6().eval()(x), theirs)
    (gradient,), (expected,) = (torch.autograd.grad(y.sum(), x) for y in (ours, theirs))
    assert torch.equal(gradient, expected)


def test_norms_of_several_gpus_freeze_too() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(EfficientNet(num_classes=3))
    freeze_batchnorm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 49 and not any(norm.training for norm in norms) and network.training
