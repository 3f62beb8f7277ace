"""Memory is counted before the run: by hand on a small network, against real steps, and without touching anything."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from effnet_lit.config import Config, UserError
from effnet_lit.model.cpu.threads import each, together
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.zoo import create_model
from effnet_lit.training import step_plan
from effnet_lit.training.memory import CPU_HEAPS, LiveBytes, evaluation_peak, free_ram, step_peak, with_overhead
from effnet_lit.training.step_plan import MemoryPlan, Trial, candidates, plan_memory, verified


def network(mode: str = "off") -> EfficientNet:
    torch.manual_seed(0)
    result = EfficientNet(num_classes=5)
    result.set_gradient_checkpointing(mode)
    return result


def test_the_most_alive_at_once() -> None:
    with LiveBytes() as counted:
        a = torch.zeros(100)
        b = a + 1
        a.add_(b)  # no new storage
        view = b[:50]
        del b
        assert counted.live.by_caller == 800  # the view holds it
        del view
        c = torch.zeros(50)
    assert (counted.live.by_caller, counted.peak.by_caller) == (600, 800)
    assert len(c) == 50


def test_heaps_are_counted_apart() -> None:
    """Their peaks may come at different times, and add up all the same: neither gives its memory to the other."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with LiveBytes() as counted, together():
                held = torch.zeros(100)
                del held
                pieces = each(torch.zeros, [50, 25])
                held = torch.zeros(10)
            found.append((counted.peak, counted.live))
            assert len(pieces) == 2 and len(held) == 10
    finally:
        torch.set_num_threads(before)
    assert found == [((400, 0), (340, 0)), ((400, 300), (40, 300))]
    assert with_overhead(counted.peak, "cpu", "off") == round(CPU_HEAPS["off"][0] * 400 + CPU_HEAPS["off"][1] * 300)


def test_a_network_counted_by_hand() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 8 * 8, 1000, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1))

    weights = 4 * 3 * 8 * 8 * 1000
    found = step_peak(Tiny(), 2, 8, "cpu", "32-true").by_caller
    assert weights * 5 < found < weights * 5.1  # itself, two states, the average, the gradient


def test_what_threads_take_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatch mode that counts does not see other threads."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.SMALLEST_BYTES", 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(sum(step_peak(network("blocks"), 16, 128, "cpu", "32-true")))
    finally:
        torch.set_num_threads(before)
    assert found[0] < found[1] < found[2] < 1.5 * found[0]


def test_what_evaluation_takes_in_threads_counts_too() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(evaluation_peak(network(), 32, 96, "cpu", "32-true"))
    finally:
        torch.set_num_threads(before)
    assert found[0] <= found[1] <= found[2] < 3 * found[0]


def test_more_images_and_fewer_kept() -> None:
    small, large = (sum(step_peak(network(), count, 64, "cpu", "32-true")) for count in (8, 32))
    blocks = sum(step_peak(network("blocks"), 32, 64, "cpu", "32-true"))
    assert blocks < large and small < large
    plain = [step_peak(create_model("mobilenet_v3_small", 5), n, 64, "cpu", "32-true").by_caller for n in (8, 16, 24)]
    assert plain[2] - plain[1] == pytest.approx(plain[1] - plain[0], rel=0.1)


@pytest.mark.parametrize("mode", ["off", "blocks"])
def test_a_real_steps_tensors_are_as_many(mode: str) -> None:
    predicted = step_peak(network(mode), 4, 96, "cpu", "32-true").by_caller
    model = network(mode).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with LiveBytes() as counted:
        for tensor in (*model.parameters(), *model.buffers()):
            counted.add(tensor)
        others = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
        images = [torch.zeros(4, 3, 96, 96) for _ in range(2)]
        model(images[0].contiguous(memory_format=torch.channels_last)).sum().backward()
    assert others and predicted == pytest.approx(counted.peak.by_caller, rel=0.02)


def test_nothing_of_the_network_is_touched() -> None:
    model = network().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    step_peak(model, 4, 64, "cpu", "32-true")
    Trial(model, 32, torch.device("cpu"), "32-true")(4)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def config(batch_size: int = 64, mode: str = "auto", micro_batch: int | str = "auto") -> Config:
    result = Config(batch_size=batch_size)
    result.data.image_size, result.model.gradient_checkpointing = 224, mode
    result.training.micro_batch = micro_batch
    return result


def test_graphs_leave_validation_its_own_memory() -> None:
    """A step's memory stays theirs, so both are needed at once; and what graphs cannot do is not tried."""
    wanted = config(16)
    wanted.data.eval_size = 96
    plain = plan_memory(wanted, network(), "cpu", "32-true", 10**11)
    wanted.model.kernels = "on"
    graphs = plan_memory(wanted, network(), "cpu", "32-true", 10**11)
    assert graphs.bytes > plain.bytes + evaluation_peak(network(), 32, 96, "cpu", "32-true")
    assert {mode for _, _, mode in candidates(wanted, network())} == {"off"}


def test_a_plan_knows_of_frozen_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the modules, as on a GPU, where it is part of the convolution."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    wanted = config(16, "off")
    follows = plan_memory(wanted, network(), "cpu", "32-true", 10**11)
    wanted.training.batchnorm = "frozen"
    frozen = plan_memory(wanted, network(), "cpu", "32-true", 10**11)
    assert frozen.bytes < 0.8 * follows.bytes


def test_a_trial_freezes_what_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(step_plan, "compile_kernels", lambda twin, images: seen.append(twin.stem.norm.training))
    for frozen in (False, True):
        Trial(network(), 32, torch.device("cpu"), "32-true", frozen)(4)
    assert seen == [True, False]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a GB, and 100, 50 or 10 MB for each image, as bf16 on a GPU would, times two."""
    each = {"off": 100_000_000, "activations": 50_000_000, "blocks": 10_000_000}

    def bytes_of(model: EfficientNet, batch: int, size: int, device: str, precision: str, frozen: bool) -> int:
        return 500_000_000 + batch * each[model.gradient_checkpointing]

    monkeypatch.setattr(step_plan, "step_peak", bytes_of)
    monkeypatch.setattr(step_plan, "with_overhead", lambda tensors, *settings: tensors)


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(
    ("gigabytes", "batch_size", "expected"),
    [
        (8, 64, (64, 1, "off")),
        (6, 64, (64, 1, "activations")),
        (4, 64, (64, 1, "blocks")),
        (4, 512, (256, 2, "blocks")),
        (0.7, 64, (8, 8, "blocks")),
        (0, 512, (512, 1, "off")),  # not known
    ],
)
def test_plans_for_small_cards(gigabytes: float, batch_size: int, expected: tuple[int, int, str]) -> None:
    model = network()
    plan = plan_memory(config(batch_size), model, "cpu", "32-true", int(gigabytes * 1e9))
    assert plan[:3] == expected and model.gradient_checkpointing == plan.mode
    assert plan.micro_batch * plan.accumulate == batch_size


@pytest.mark.usefixtures("costs")
def test_no_plan_says_what_to_change() -> None:
    with pytest.raises(UserError, match=r"batch_size=64 at data\.image_size=224 needs 0\.5 GB.*smaller"):
        plan_memory(config(), network(), "cpu", "32-true", 300_000_000)


def test_what_is_set_is_kept() -> None:
    assert list(candidates(config(mode="off", micro_batch=16), network())) == [(16, 4, "off")]
    assert [mode for *_, mode in candidates(config(8), create_model("mobilenet_v3_small", 5))] == ["off", "off"]
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing=blocks"):
        plan_memory(config(8, "blocks"), create_model("mobilenet_v3_small", 5), "cpu", "32-true", 10**10)


def test_backing_off_keeps_the_batch() -> None:
    tried = []

    def trial(micro_batch: int) -> float:
        tried.append(micro_batch)
        if micro_batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5

    plan, seconds = verified(MemoryPlan(64, 1, "blocks", 10**9, 10**10), trial)
    assert (plan.micro_batch, plan.accumulate, seconds, tried) == (16, 4, 0.5, [64, 32, 16])
    sentence = "this run needs about 1.0 GB of 10.0 GB, gradient checkpointing blocks, 4 times 16 images to a step"
    assert plan.sentence("train") == sentence + ", so BatchNorm sees 16 at once"
    assert plan.sentence("frozen") == sentence


def test_backing_off_ends() -> None:
    def trial(micro_batch: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="Out of memory with 4 images at once"):
        verified(MemoryPlan(32, 1, "blocks", 10**9, 10**10), trial)


@pytest.mark.skipif(free_ram() == 0, reason="not Linux")
def test_free_memory_is_plausible() -> None:
    assert 10**8 < free_ram() < 10**14


def test_kept_bytes_are_those_of_autograd() -> None:
    """What is kept for backward lies below the peak, and is most of it at a large batch."""
    model, kept = network().train(), {}
    images = torch.randn(16, 3, 96, 96).contiguous(memory_format=torch.channels_last)

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).sum()
    total, weights = sum(kept.values()), 4 * sum(p.numel() for p in model.parameters())
    assert loss.requires_grad
    assert total < sum(step_peak(model, 16, 96, "cpu", "32-true")) < 2.5 * total + 6 * weights
