"""The kernels against plain PyTorch; ``test_kernels`` runs this file in Triton's interpreter and on a GPU."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from effnet_lit.model.efficientnet import EfficientNet, MBConv, Stage
from effnet_lit.model.kernels import depthwise, pointwise
from effnet_lit.model.kernels.depthwise import norm_silu_depthwise, norm_silu_depthwise_backward
from effnet_lit.model.kernels.mbconv import mbconv_with_kernels
from effnet_lit.model.zoo import freeze_batchnorm, freeze_layers


@pytest.fixture(autouse=True)
def plain_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """To compare with, not the CPU's own functions."""
    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)


DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SETTINGS = {"padding": "symmetric", "batchnorm_eps": 1e-3, "batchnorm_momentum": 0.1}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def layer(
    kernel: int, channels: int, height: int, width: int, images: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, C, H, W), scale, shift, weight (C, 1, K, K) in float64; silu(shift) is far from 0."""
    torch.manual_seed(0)
    x = torch.randn(images, channels, height, width, dtype=torch.float64, device=DEVICE) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    scale = torch.rand(channels).to(x) + 0.5
    shift = torch.randn(channels).to(x) + 3
    return x, scale, shift, torch.randn(channels, 1, kernel, kernel).to(x)


def folded(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As the kernels take a BatchNorm; they do not read the last row forward."""
    return torch.stack((scale, shift, x.mean((0, 2, 3), dtype=scale.dtype), torch.ones_like(scale)))


def merged(partial: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) [C] of what programs wrote."""
    counts, means, m2 = partial.double().unbind(0)
    mean = (counts * means).sum(0) / counts.sum(0)
    return mean, (m2 + counts * (means - mean).square()).sum(0) / counts.sum(0)


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The folded BatchNorm."""
    return x * scale[:, None, None] + shift[:, None, None]


def convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution."""
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=weight.shape[0])


def plain(z: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution of silu(z)."""
    return convolved(functional.silu(z), weight, stride)


def check_depthwise(kernel: int, stride: int, channels: int, height: int, width: int, images: int = 2) -> None:
    """Values, moments and all gradients, in float64."""
    x, scale, shift, weight = layer(kernel, channels, height, width, images)
    z, wanted_weight = normed(x, scale, shift).requires_grad_(), weight.clone().requires_grad_()
    wanted = plain(z, wanted_weight, stride)
    norm = folded(x, scale, shift)
    y, moments = norm_silu_depthwise(x, norm, weight, stride)
    torch.testing.assert_close(y, wanted.detach(), **EXACT)
    mean, variance = merged(moments)
    torch.testing.assert_close(mean, wanted.detach().mean((0, 2, 3)), **EXACT)
    torch.testing.assert_close(variance, wanted.detach().var((0, 2, 3), correction=0), **EXACT)
    dy = torch.randn_like(y)
    dz, sums, dweight = norm_silu_depthwise_backward(x, dy, norm, weight, stride)
    wanted_dz, wanted_dweight = torch.autograd.grad(wanted, (z, wanted_weight), dy)
    torch.testing.assert_close(dz, wanted_dz, **EXACT)
    torch.testing.assert_close(dweight, wanted_dweight, **EXACT)
    centred = (wanted_dz * (x - norm[2, :, None, None])).sum((0, 2, 3))
    torch.testing.assert_close(sums.sum(1), torch.stack((wanted_dz.sum((0, 2, 3)), centred)), **EXACT)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "height", "width"), [(5, 7, 8), (20, 4, 5), (40, 3, 2)])
def test_depthwise(kernel: int, stride: int, channels: int, height: int, width: int) -> None:
    check_depthwise(kernel, stride, channels, height, width)


@pytest.mark.parametrize(("kernel", "stride", "images"), [(3, 1, 12), (5, 2, 6)])
def test_programs_that_take_several_turns(
    kernel: int, stride: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (depthwise.FORWARD, depthwise.BACKWARD):
        monkeypatch.setitem(table, (kernel, stride), table[kernel, stride]._replace(programs=1))
    assert depthwise.tiling(images, -(-5 // stride), 5, depthwise.BACKWARD[kernel, stride]).turns > 1
    check_depthwise(kernel, stride, 5, 5, 9, images)


def test_the_activation_is_padded_not_its_input() -> None:
    x, scale, shift, weight = layer(3, 5, 7, 7)
    y, _ = norm_silu_depthwise(x, folded(x, scale, shift), weight, 1)
    wrong = plain(normed(functional.pad(x, (1, 1, 1, 1)), scale, shift), weight, 1)[..., 1:-1, 1:-1]
    assert (y - wrong).abs().max() > 1
    torch.testing.assert_close(y[..., 1:-1, 1:-1], wrong[..., 1:-1, 1:-1], **EXACT)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU with 14 GB")
def test_more_elements_than_32_bits_count() -> None:
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("needs a GPU with 14 GB free")
    one, weight = torch.ones(96, device=DEVICE), torch.ones(96, 1, 3, 3, device=DEVICE)
    x = torch.randn(1, 96, 112, 112, device=DEVICE, dtype=torch.bfloat16).expand(1800, -1, -1, -1)
    x = x.contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    norm = torch.stack((one, one, one, one))
    y, _ = norm_silu_depthwise(x, norm, weight, 2)
    first, _ = norm_silu_depthwise(x[:1], norm, weight, 2)
    torch.testing.assert_close(y[-1:], first)
    dz, _, _ = norm_silu_depthwise_backward(x, y, norm, weight, 2)
    first_dz, _, _ = norm_silu_depthwise_backward(x[:1], y[:1], norm, weight, 2)
    torch.testing.assert_close(dz[-1:], first_dz)
    del dz
    gate = torch.ones(1800, 96, device=DEVICE)
    torch.testing.assert_close(pointwise.gated(x, norm, gate)[-1:], pointwise.gated(x[:1], norm, gate[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_rounds_what_is_stored_only(dtype: torch.dtype) -> None:
    x, scale, shift, weight = layer(3, 20, 7, 7)
    x, scale, shift, weight = x.to(dtype), scale.float(), shift.float(), weight.float()
    z = normed(x.double(), scale.double(), shift.double()).requires_grad_()
    one_rounding = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
    norm = folded(x, scale, shift)
    y, moments = norm_silu_depthwise(x, norm, weight, 1)
    assert y.dtype == dtype and moments.dtype == torch.float32
    wanted = plain(z, weight.double(), 1).detach()
    torch.testing.assert_close(y.double(), wanted, rtol=one_rounding["rtol"], atol=1e-3)
    stored = y.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(merged(moments)[1], stored, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(y)
    dz, _, _ = norm_silu_depthwise_backward(x, dy, norm, weight, 1)
    (wanted_dz,) = torch.autograd.grad(plain(z, weight.double(), 1), z, dy.double())
    torch.testing.assert_close(dz.double(), wanted_dz, **one_rounding)


def test_moments_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    x = torch.randn(2, 20, 9, 9, device=DEVICE).contiguous(memory_format=torch.channels_last)
    one, middle = torch.ones(20, device=DEVICE), torch.zeros(20, 1, 3, 3, device=DEVICE)
    middle[:, 0, 1, 1] = 1  # silu(x + 1000) passes unchanged
    y, from_depthwise = norm_silu_depthwise(x, folded(x, one, 1000 * one), middle, 1)
    wanted = y.double().var((0, 2, 3), correction=0)
    naive = y.square().mean((0, 2, 3)) - y.mean((0, 2, 3)).square()
    assert (naive - wanted).abs().max() > 1e-2
    for moments in (from_depthwise, pointwise.moments(y)):
        mean, variance = merged(moments)
        torch.testing.assert_close(variance, wanted, rtol=1e-4, atol=0)
        torch.testing.assert_close(mean, y.double().mean((0, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("channels", "side", "programs"), [(5, 7, 1024), (40, 13, 1024), (40, 13, 1)])
def test_pool_and_gate(channels: int, side: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "PROGRAMS_WANTED", programs)
    y, scale, shift, _ = layer(3, channels, side, side)
    gate = torch.rand(2, channels).to(y)
    activated = functional.silu(normed(y, scale, shift))
    norm = folded(y, scale, shift)
    torch.testing.assert_close(pointwise.pool(y, norm), activated.sum((2, 3)), **EXACT)
    gated = pointwise.gated(y, norm, gate)
    torch.testing.assert_close(gated, activated * gate[..., None, None], **EXACT)


def mbconv(expand: int, kernel: int, stride: int, out_channels: int, **settings: str) -> MBConv:
    """In float64, channels_last, with weights large enough that no part's gradient vanishes."""
    torch.manual_seed(0)
    block = MBConv(4, Stage(expand, kernel, stride, out_channels, 1), stride, 0.0, SETTINGS | settings).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.2, 0.3)
    return block.to(DEVICE, memory_format=torch.channels_last)


def images(height: int = 7, width: int = 6) -> Tensor:
    """(2, 4, H, W) in float64, channels_last."""
    x = torch.randn(2, 4, height, width, dtype=torch.float64, device=DEVICE)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def assert_same_step(block: MBConv, plain_block: MBConv, x: Tensor) -> None:
    """Values, gradients and buffers of ``block`` by the kernels are those of ``plain_block`` by its modules."""
    wanted, found = plain_block(x), mbconv_with_kernels(block, x)
    torch.testing.assert_close(found, wanted, **EXACT)
    upstream = torch.randn_like(wanted)
    wanted_grads = torch.autograd.grad(wanted, (x, *plain_block.parameters()), upstream)
    grads = torch.autograd.grad(found, (x, *block.parameters()), upstream)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert wanted_grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, wanted_grad, **EXACT)
    for (name, buffer), wanted_buffer in zip(block.named_buffers(), plain_block.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted_buffer, **EXACT, msg=name)


@pytest.mark.parametrize(
    ("shape", "side", "programs"),
    [((6, 3, 1, 4), 7, 1024), ((6, 5, 2, 5), 13, 1), ((4, 5, 1, 5), 3, 1024), ((1, 3, 1, 4), 13, 1)],
)
def test_mbconv(shape: tuple[int, int, int, int], side: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "PROGRAMS_WANTED", programs)
    block = mbconv(*shape)
    plain_block = copy.deepcopy(block)
    for _ in range(2):  # running statistics move twice
        assert_same_step(block, plain_block, images(side, side - 1))


@pytest.mark.parametrize("shape", [(6, 3, 1, 4), (6, 5, 2, 5), (1, 3, 1, 4)])
@pytest.mark.parametrize("frozen", ["norm", "depthwise.norm"])
def test_mbconv_with_frozen_statistics(shape: tuple[int, int, int, int], frozen: str) -> None:
    """Of other images: away from these images' own, and they stay as they are."""
    block = mbconv(*shape)
    block(3 * images() + 1)  # pyright: ignore[reportArgumentType]
    for name, module in block.named_modules():
        if isinstance(module, nn.BatchNorm2d) and frozen in name:
            module.eval()
    before, plain_block = copy.deepcopy(block), copy.deepcopy(block)
    assert_same_step(block, plain_block, images())
    for (name, buffer), old in zip(block.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(buffer, old) == (frozen in name), name


def test_mbconv_under_autocast_is_as_exact_as_the_plain_one() -> None:
    exact = mbconv(6, 3, 1, 4)
    x = images()
    upstream = torch.randn_like(x)
    wanted = torch.autograd.grad(exact(x), (x, *exact.parameters()), upstream)
    errors = []
    for forward in (MBConv.forward, mbconv_with_kernels):
        block, low = mbconv(6, 3, 1, 4).float(), x.detach().float().requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            y = forward(block, low)
        grads = torch.autograd.grad(y, (low, *block.parameters()), upstream.to(y.dtype))
        assert [grad.dtype for grad in grads] == [torch.float32] * len(grads)
        errors.append([((g - w).norm() / w.norm()).item() for g, w in zip(grads, wanted, strict=True)])
    plainly, found = (torch.tensor(error) for error in errors)
    assert found.median() < 0.01 and found.median() < 1.2 * plainly.median()


def test_little_is_kept() -> None:
    block, x = mbconv(6, 3, 1, 4), images()

    def hidden_kept(forward: object) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = forward(block, x)  # pyright: ignore
        del y
        return sum(size == 6 * x.numel() for size in sizes.values())

    assert hidden_kept(mbconv_with_kernels) == 3  # raw outputs of expand and depthwise, the projection's input
    assert hidden_kept(MBConv.forward) > 4


def test_tensors_without_contents_pass() -> None:
    """By which the memory of a run is counted before it begins."""
    block = mbconv(6, 5, 2, 5)
    twin = copy.deepcopy(block)
    with FakeTensorMode() as fake:
        twin._apply(fake.from_tensor)
        x = torch.empty(2, 4, 7, 6, dtype=torch.float64, device=DEVICE).to(memory_format=torch.channels_last)
        y = mbconv_with_kernels(twin, x.requires_grad_())
        y.sum().backward()
        assert y.shape == (2, 5, 4, 3) and x.grad is not None
        assert [p.grad.shape for p in twin.parameters() if p.grad is not None] == [p.shape for p in block.parameters()]


@pytest.mark.parametrize("case", ["evaluation", "same padding"])
def test_what_the_kernels_do_not_cover_takes_the_plain_way(case: str) -> None:
    block = mbconv(6, 3, 2, 5, padding="same" if case == "same padding" else "symmetric")
    if case == "evaluation":
        block.eval()
    plain_block, x = copy.deepcopy(block), images()
    block.kernels = True
    assert torch.equal(block(x), plain_block(x))
    for buffer, wanted in zip(block.buffers(), plain_block.buffers(), strict=True):
        assert torch.equal(buffer, wanted)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_stem_joins_the_first_block(frozen: bool) -> None:
    torch.manual_seed(0)
    network = EfficientNet(num_classes=3, drop_path_rate=0.0, dropout_rate=0.0)
    network.stages, network.head = network.stages[:1], type(network.head)(16, 1280, 1, network.architecture)
    network = network.double().to(DEVICE, memory_format=torch.channels_last).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and frozen:
            module.eval()
    with_kernels = copy.deepcopy(network)
    next(with_kernels.blocks()).kernels = True
    x = torch.randn(2, 3, 10, 9, dtype=torch.float64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    results = []
    for each in (network, with_kernels):
        y = each(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(each.parameters())), *each.buffers()))
    assert "NormSiluGate" in graph_of(results[1][0]) and "NormSiluGate" not in graph_of(results[0][0])
    assert "SiluBackward" not in graph_of(results[1][0], below="NormSiluGate")
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_layers_before_the_trained_ones() -> None:
    """No gradient reaches them, nor is any asked for; the others' are the modules'."""
    torch.manual_seed(0)
    network = EfficientNet(num_classes=3, drop_path_rate=0.0, dropout_rate=0.0)
    network.stages, network.head = network.stages[:2], type(network.head)(24, 1280, 1, network.architecture)
    network = network.double().to(DEVICE, memory_format=torch.channels_last).train()
    freeze_batchnorm(network)
    freeze_layers(network, 3)
    with_kernels = copy.deepcopy(network)
    for block in with_kernels.blocks():
        block.kernels = True
    x = torch.randn(2, 3, 18, 17, dtype=torch.float64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    results = []
    for each in (network, with_kernels):
        y = each(x)
        trained = [parameter for parameter in each.parameters() if parameter.requires_grad]
        results.append((y, *torch.autograd.grad(y.square().sum(), trained)))
    assert "NormSiluGate" in graph_of(results[1][0]) and "NormSiluGate" not in graph_of(results[0][0])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def graph_of(y: Tensor, below: str = "") -> str:
    """Names of what leads to y in autograd's graph, or to its first function of the name ``below``."""
    waiting, names, started = [y.grad_fn], [], not below
    while waiting:
        function = waiting.pop(0)
        if function is None:
            continue
        if not started and below in function.name():
            started, waiting = True, []
        if started:
            names.append(function.name())
        waiting += [parent for parent, _ in function.next_functions]
    return " ".join(names)
