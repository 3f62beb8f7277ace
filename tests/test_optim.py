"""Parameter groups and the schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from effnet_lit.config import TrainingConfig
from effnet_lit.model.zoo import NAMES, create_model, layers
from effnet_lit.training.optim import build_optimizer, build_schedule, parameter_groups, warmup_cosine


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, exempt = parameter_groups(network, 0.05, 1e-3)
    assert [p.shape for p in decayed["params"]] == [network[0].weight.shape, network[3].weight.shape]
    assert len(exempt["params"]) == 4
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0.0)


def test_layers_near_the_images_move_less() -> None:
    network = create_model("efficientnet_b0", 5)
    groups = parameter_groups(network, 0.05, 1e-3, 0.9)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert rates[network.classifier.weight] == pytest.approx(1e-3)
    assert rates[network.head.conv.weight] == pytest.approx(0.9e-3)
    assert rates[next(network.blocks()).depthwise.conv.weight] == pytest.approx(1e-3 * 0.9**17)
    assert rates[network.stem.norm.bias] == pytest.approx(1e-3 * 0.9**18)
    assert [group["weight_decay"] for group in groups if network.stem.norm.bias in set(group["params"])] == [0.0]


@pytest.mark.parametrize(("name", "parts"), [("resnet50", 19), ("mobilenet_v3_small", 15), ("vit_b_16", 14)])
def test_layers_of_other_networks(name: str, parts: int) -> None:
    network = create_model(name, 5)
    found = layers(network)
    assert len(found) == parts and name in NAMES
    own = [parameter for part in found for parameter in part.parameters()]
    assert len(own) == len(set(own)), "a parameter in two layers"
    rates = [group["lr"] for group in parameter_groups(network, 0.05, 1e-3, 0.5)]
    assert max(rates) == 1e-3 and min(rates) == pytest.approx(1e-3 * 0.5 ** (parts - 1))
    assert sum(len(group["params"]) for group in parameter_groups(network, 0.05, 1e-3, 0.5)) == len(
        list(network.parameters())
    )


def test_warmup_then_half_a_cosine() -> None:
    factor = warmup_cosine(total_steps=100, warmup_fraction=0.1, final_fraction=0.01)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.505)  # the middle of the cosine lies between 1 and 0.01
    assert values[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(values[10:]))


def test_schedule_drives_the_optimizer() -> None:
    network = nn.Linear(2, 2)
    training = TrainingConfig(warmup_fraction=0.5, final_rate_fraction=0.0, layer_decay=1.0)
    optimizer = build_optimizer(network, 0.4, training)
    schedule = build_schedule(optimizer, 4, training)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.2])
