"""Two processes that train together end with the same weights and buffers, whatever is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from effnet_lit.model.checkpointing import MODES
from effnet_lit.model.cpu import suits
from effnet_lit.model.efficientnet import EfficientNet

STEPS = 20


def train(rank: int, folder: Path, by_modules: bool) -> None:
    """One of the two processes: all modes in turn; the first writes what became of each."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    suits.SMALLEST_BYTES = 0
    if by_modules:
        suits.in_step = lambda x: False
    for mode in MODES:
        torch.manual_seed(0)
        network = EfficientNet(num_classes=3)
        network.set_gradient_checkpointing(mode)
        parallel = DistributedDataParallel(network)
        optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3, fused=True)
        for step in range(STEPS):
            one_step(parallel, optimizer, 2 * step + rank)
        if rank == 0:
            torch.save(network.state_dict(), folder / f"{mode}.pt")
    distributed.destroy_process_group()


def one_step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """On images that depend on step and process."""
    torch.manual_seed(seed)
    loss = functional.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([seed % 3, 1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.skipif(not distributed.is_available(), reason="PyTorch without distributed training")
@pytest.mark.parametrize("by_modules", [True, False], ids=["modules", "cpu"])
def test_all_modes_end_alike(tmp_path: Path, by_modules: bool) -> None:
    multiprocessing.spawn(train, (tmp_path, by_modules), nprocs=2)  # type: ignore[attr-defined]
    off, *others = (torch.load(tmp_path / f"{mode}.pt", weights_only=True) for mode in MODES)
    assert off["stem.norm.num_batches_tracked"] == STEPS
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in off.items())
