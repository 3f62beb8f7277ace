"""The CPU's own training step gives what the modules give: values, gradients, buffers; it drifts as layouts do."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from effnet_lit.model.cpu import pieces
from effnet_lit.model.cpu.batchnorm import fold
from effnet_lit.model.cpu.depthwise import DepthwiseConv2d, depthwise_backward
from effnet_lit.model.cpu.pointwise import lines, of_lines
from effnet_lit.model.cpu.suits import suits, suits_frozen
from effnet_lit.model.cpu.threads import each, together, undivided
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.zoo import freeze_batchnorm, freeze_layers, layers


@pytest.fixture(autouse=True)
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny batches take the CPU's own way, as large ones do."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.SMALLEST_BYTES", 0)


def network(**options: float | str) -> EfficientNet:
    """With norms that are far from their start, so that each counts."""
    torch.manual_seed(0)
    result = EfficientNet(num_classes=3, **options)  # type: ignore[arg-type]
    for module in result.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.5)
    return result


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the modules compute training steps."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)


def everything(model: EfficientNet, images: Tensor) -> dict[str, Tensor]:
    """Logits, all gradients and all buffers of one step."""
    model = copy.deepcopy(model)
    images = images.clone().requires_grad_()
    torch.manual_seed(1)
    logits = model(images)
    functional.cross_entropy(logits, torch.arange(len(images)) % 3).backward()
    assert images.grad is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"logits": logits.detach(), "images": images.grad, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("count", "size", "piece"),
    [(5, 64, 8 * 2**20), (5, 64, 2**19), (3, 33, 1), (6, 20, 8 * 2**20)],
    ids=["one piece", "uneven pieces", "an image a piece, odd size", "one pixel at the end"],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_step_equals_the_modules(
    count: int, size: int, piece: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    model = network().double().to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(count, 3, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    ours = everything(model, images)
    plain(monkeypatch)
    theirs = everything(model, images)
    assert theirs["logits"].std() > 0.1
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max()), name


def statistics_of_others(model: EfficientNet) -> EfficientNet:
    """Running statistics of other images, away from those of a batch."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.8
    model.train()(3 * torch.randn(4, 3, 64, 64, dtype=torch.float64) + 1)
    return model


@pytest.mark.parametrize("piece", [8 * 2**20, 2**19, 1], ids=["one piece", "uneven pieces", "an image a piece"])
@pytest.mark.parametrize("mode", ["off", "activations", "blocks"])
@pytest.mark.parametrize(
    ("name", "padding", "size"),
    [
        ("efficientnet_b0", "symmetric", 64),
        ("efficientnet_b0", "same", 33),
        ("efficientnet_lite0", "same", 64),
        ("efficientnet_lite0", "symmetric", 47),
    ],
)
def test_a_step_with_frozen_batchnorms_equals_the_modules(
    name: str, padding: str, size: int, mode: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their statistics stay as they are."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    model = statistics_of_others(network(name=name, padding=padding).double())
    images = torch.randn(5, 3, size, size, dtype=torch.float64)
    model.set_gradient_checkpointing(mode)
    freeze_batchnorm(model)
    assert all(suits_frozen(block, images) for block in model.blocks())
    ours = everything(model, images)
    plain(monkeypatch)
    theirs = everything(model, images)
    assert theirs["logits"].std() > 0.1
    for key, value in theirs.items():
        assert (ours[key] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max()), key
    assert all(torch.equal(ours[key], value) for key, value in model.named_buffers())


@pytest.mark.parametrize("count", [1, 4, 19])
def test_a_step_of_the_last_layers_equals_the_modules(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before keep nothing for backward, and have no gradient, nor have the images."""
    model = statistics_of_others(network().double())
    freeze_batchnorm(model)
    freeze_layers(model, len(layers(model)) - count)
    images, found = torch.randn(5, 3, 64, 64, dtype=torch.float64), []
    for _ in range(2):
        twin, widths = copy.deepcopy(model), []

        def pack(tensor: Tensor, widths: list[int] = widths) -> Tensor:
            widths.append(tensor.shape[-1] if tensor.ndim == 4 else 0)
            return tensor

        torch.manual_seed(1)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            twin(images).square().sum().backward()
        found.append([parameter.grad for parameter in twin.parameters()])
        assert (max(widths) >= 16) == (count == 19)
        plain(monkeypatch)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert theirs is None or (ours - theirs).abs().max() <= 1e-10 * max(1.0, theirs.abs().max())


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "padding"), [("efficientnet_b0", "symmetric"), ("efficientnet_b0", "same"), ("efficientnet_lite0", "same")]
)
@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_evaluation_equals_the_modules(
    name: str,
    padding: str,
    no_gradients: Callable[[], AbstractContextManager[None]],
    with_threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads do not take over that there are no gradients."""
    with_threads(2)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**19)
    model = statistics_of_others(network(name=name, padding=padding).double()).eval()
    images = torch.randn(5, 3, 64, 64, dtype=torch.float64)
    with no_gradients():
        assert all(suits_frozen(block, images) for block in model.blocks())
        ours = model(images)
        monkeypatch.setattr("effnet_lit.model.cpu.suits.plainly_on_cpu", lambda x: False)
        theirs = model(images)
    assert theirs.std() > 0.1 and (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_evaluation_of_few_images_beside_others_or_traced_is_the_modules(with_threads: Callable[[int], None]) -> None:
    block, x = next(network().blocks()).eval(), torch.randn(2, 32, 8, 8)

    def suited() -> bool:
        with torch.no_grad():
            return suits_frozen(block, x)

    with_threads(2)
    assert suited()
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(suited).result()
    with_threads(3)  # images are fewer
    assert not suited()
    with_threads(2)
    with torch.no_grad():
        traced = torch.jit.trace(block, x)
        other = torch.randn_like(x)
        torch.testing.assert_close(traced(other), block(other))


def test_any_number_of_threads_gives_the_same(with_threads: Callable[[int], None]) -> None:
    model = network().double()
    images = torch.randn(7, 3, 64, 64, dtype=torch.float64)
    found = []
    for count in (1, 3, 3, 12):
        with_threads(count)
        found.append(everything(model, images))
        assert torch.get_num_threads() == count  # the threads that take pieces have one each, all others as before
    assert all(torch.equal(value, found[2][name]) for name, value in found[1].items())  # always in the same order
    for name, value in found[0].items():
        for other in found[1:]:
            assert (other[name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max()), name


def test_threads_keep_their_hands_off_the_others(with_threads: Callable[[int], None]) -> None:
    with_threads(3)
    weight = torch.ones(2, requires_grad=True)

    def work(number: int) -> tuple[str, int, bool]:
        time.sleep(0.05)
        return threading.current_thread().name, torch.get_num_threads(), (weight * number).requires_grad

    found = each(work, range(6))
    assert {threads for _, threads, _ in found} == {1} and not any(recorded for _, _, recorded in found)
    assert len({name for name, _, _ in found}) == 3 and threading.current_thread().name not in {
        name for name, _, _ in found
    }
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert others == [3] and (weight * 2).requires_grad
    with together():
        assert each(lambda number: (number, threading.current_thread()), [1, 2]) == [
            (1, threading.current_thread()),
            (2, threading.current_thread()),
        ]
    with pytest.raises(ZeroDivisionError):
        each(lambda number: 1 // number, [1, 0, 2])


def test_an_undivided_function_leaves_the_cores_to_pieces(with_threads: Callable[[int], None]) -> None:
    with_threads(2)
    both = threading.Barrier(2, timeout=60)

    @undivided
    def work(divisor: int) -> list[int]:
        assert torch.get_num_threads() == 1
        each(lambda _: both.wait(), range(2))  # would time out in one thread
        return [1 // divisor, *within(divisor)]

    @undivided
    def within(divisor: int) -> list[int]:
        each(lambda _: both.wait(), range(2))
        return [divisor]

    assert work(1) == [1, 1] and torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        work(0)
    assert torch.get_num_threads() == 2
    each(lambda _: both.wait(), range(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(with_threads: Callable[[int], None]) -> None:
    with_threads(2)
    assert each(abs, [-1, -2]) == [1, 2]
    child = os.fork()
    if child == 0:  # a child that waited for the parent's threads would never end
        os._exit(each(abs, [-3, -4])[1])
    deadline = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status[1]) == 4


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        (1, 5, 1),
        (2, 5, 1),
        (3, 5, 2),
        (4, 5, 2),
        (5, 5, 1),
        (6, 5, 1),
        (9, 5, 2),
        (16, 5, 2),
        (1, 3, 1),
        (2, 3, 2),
        (8, 3, 1),
    ],
)
def test_depthwise_gradients_are_the_plain_ones(
    size: int, kernel: int, stride: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    options = {"stride": stride, "padding": kernel // 2, "groups": 8, "bias": False, "dtype": torch.float64}
    ours, plain = DepthwiseConv2d(8, 8, kernel, **options), torch.nn.Conv2d(8, 8, kernel, **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8, size, size + 1, dtype=torch.float64).contiguous(memory_format=layout)
    gradient = torch.randn_like(plain(x))
    found = []
    for conv in (ours, plain):
        images = x.clone().requires_grad_()
        y = conv(images)
        y.backward(gradient)
        found.append((images.grad, conv.weight.grad))
        slow = layout == torch.channels_last and (kernel == 5 or size < 3)
        assert (type(y.grad_fn).__name__ == "DepthwiseBackward") == (conv is ours and slow)
    last = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (gradient, x))
    found.append(depthwise_backward(*last, ours.weight.detach(), ours))
    for values in zip(*found, strict=True):
        for value in values[1:]:
            torch.testing.assert_close(value, values[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 14, 33])
def test_pixels_come_in_enough_lines_for_the_faster_code(size: int) -> None:
    """With one thread PyTorch has another code for fewer than 16 images."""
    for count in range(1, 40):
        x = torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)
        view = lines(x)
        assert view.data_ptr() == x.data_ptr() and view.is_contiguous(memory_format=torch.channels_last)
        assert len(view) >= min(16, count * size)
        assert torch.equal(of_lines(view, x), x)


def test_gradients_of_images_keep_to_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient in another layout than what it is of makes BatchNorm's ten times as slow."""
    plain(monkeypatch)
    model = network().train()
    layouts = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_full_backward_hook(
                lambda _, __, gradient: layouts.append(gradient[0].is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert len(layouts) == 49 and all(layouts)


def test_small_variances_far_from_zero_are_not_lost() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, 16, 16) * 0.01 + 50
    weight = torch.randn(24, 6, 1, 1)
    ours, theirs = torch.nn.BatchNorm2d(24), torch.nn.BatchNorm2d(24).double()
    fold(x.split(2), weight, ours.weight, ours.bias, ours)
    theirs(functional.conv2d(x.double(), weight.double()))
    assert ours.running_var is not None and theirs.running_var is not None
    found, wanted = ours.running_var.double() - 0.9, theirs.running_var - 0.9  # a tenth of this batch's
    assert wanted.max() < 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-6)


def test_frozen_parts_and_first_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some parameters and the images take no gradient."""
    model = network().double().train()
    for part in (model.stem, model.stages[0], model.stages[3]):
        part.requires_grad_(False)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    found = []
    for _ in range(2):
        again = copy.deepcopy(model)
        torch.manual_seed(1)
        again(images).square().sum().backward()
        found.append({name: p.grad for name, p in again.named_parameters()})
        plain(monkeypatch)
    for name, value in found[1].items():
        ours = found[0][name]
        assert (ours is None) == (value is None), name
        assert value is None or ours is None or torch.allclose(ours, value, rtol=1e-9, atol=1e-10), name


def test_where_the_modules_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = next(network().blocks()), torch.randn(2, 32, 8, 8)
    assert suits(block, x)
    with monkeypatch.context() as patch:
        patch.setattr("effnet_lit.model.cpu.suits.SMALLEST_BYTES", 32 * x[:, 0].numel() * 4 + 1)
        assert not suits(block, x)
    assert not suits(block, x.bfloat16())
    with torch.no_grad():
        assert not suits(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(block, x)
    evaluated = copy.deepcopy(block).eval()  # with gradients, as heat maps take them
    assert not suits(evaluated, x) and not suits_frozen(evaluated, x)
    first, second, *_ = EfficientNet(padding="same").blocks()
    assert suits(first, x) and not suits(second, torch.randn(2, 16, 8, 8))  # of stride 2
    lite = EfficientNet("efficientnet_lite0")
    assert not suits(next(lite.blocks()), x) and not suits(lite.stem, torch.randn(2, 3, 8, 8))
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(next(network().blocks()))
    assert not suits(synced, x)
    assert not suits_frozen(block, x)
    block.project.norm.eval()  # one of three
    assert not suits(block, x) and not suits_frozen(block, x)
    freeze_batchnorm(block)
    assert suits_frozen(block, x) and not suits(block, x)
    freeze_batchnorm(synced)
    assert suits_frozen(synced, x)


def losses(model: EfficientNet, layout: torch.memory_format, steps: int) -> Tensor:
    model = copy.deepcopy(model).train().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        labels = torch.arange(6) % 3
        images = torch.randn(6, 3, 32, 32) + labels[:, None, None, None]
        loss = functional.cross_entropy(model(images.contiguous(memory_format=layout)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def test_float32_drifts_no_more_than_between_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate that keeps the run from being chaotic; 3.1e-5 against 4.3e-5 when this was written."""
    torch.manual_seed(0)
    model = EfficientNet(num_classes=3)
    ours = losses(model, torch.channels_last, 50)
    plain(monkeypatch)
    last, first = losses(model, torch.channels_last, 50), losses(model, torch.contiguous_format, 50)
    by_layout = (last - first).abs().mean()
    assert 0 < by_layout < 1e-3
    assert (ours - last).abs().mean() < 2 * by_layout
