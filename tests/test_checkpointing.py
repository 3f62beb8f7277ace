"""Checkpointed training equals plain training bit for bit, in weights and in BatchNorm's buffers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from effnet_lit.config import UserError
from effnet_lit.model.checkpointing import set_gradient_checkpointing
from effnet_lit.model.efficientnet import EfficientNet, MBConv
from effnet_lit.model.zoo import create_model


def network(mode: str) -> EfficientNet:
    torch.manual_seed(0)
    result = EfficientNet(num_classes=3)
    set_gradient_checkpointing(result, mode)
    return result


def train(model: nn.Module, steps: int = 4) -> dict[str, Tensor]:
    """Weights and buffers after a few steps with dropout and stochastic depth."""
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


def test_blocks_equal_plain_in_weights_and_buffers() -> None:
    assert differing(train(network("off")), train(network("blocks"))) == set()


def test_the_usual_way_would_be_caught() -> None:
    naive = network("off")
    for block in naive.blocks():
        block.forward = partial(checkpoint, partial(MBConv.forward, block), use_reentrant=False)
    assert differing(train(network("off")), train(naive)) == {"running_mean", "running_var", "num_batches_tracked"}


def test_fewer_bytes_are_kept() -> None:
    kept = {}
    for mode in ("off", "blocks"):
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = network(mode)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 64, 64)).sum()
        kept[mode] = sum(size for pointer, size in seen.items() if pointer not in weights)
    assert kept["blocks"] < 0.35 * kept["off"]


def test_evaluation_and_switching_back() -> None:
    model = network("blocks").eval()
    images = torch.randn(2, 3, 32, 32)
    checkpointed = model(images)
    set_gradient_checkpointing(model, "off")
    assert torch.equal(model(images), checkpointed)


def test_other_networks_refuse() -> None:
    model = create_model("mobilenet_v3_small", 2)
    set_gradient_checkpointing(model, "off")
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing=off"):
        set_gradient_checkpointing(model, "blocks")
