"""Published layouts carried over: equal logits, equal gradients, and clear errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from effnet_lit.config import UserError
from effnet_lit.model import weights as weights_module
from effnet_lit.model.modelfile import Header, ImageClassifier, write_model
from effnet_lit.model.scaling import LITE
from effnet_lit.model.weights import HALF, IMAGENET_MEAN, rename
from effnet_lit.model.zoo import create_model

CLASSES = 20


def lively(network: nn.Module) -> nn.Module:
    """Scaled weights and random BatchNorm buffers: of freshly initialised networks every logit is about zero, and
    any two of them would agree."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.8, 1.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
    return network.eval()


def torchvision_reference(name: str) -> nn.Module:
    return lively(getattr(torchvision.models, name)(num_classes=CLASSES))


def timm_reference(name: str) -> nn.Module:
    return lively(timm.create_model(name, num_classes=CLASSES))


def carried_over(reference: nn.Module, name: str, folder: Path) -> nn.Module:
    """Our network with the reference's weights, through a file."""
    path = folder / "weights.pth"
    torch.save(reference.state_dict(), path)
    return create_model(name, CLASSES, str(path)).eval()


def images(size: int = 96, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def difference(ours: nn.Module, theirs: nn.Module, size: int = 96) -> float:
    """Largest difference of logits in eval mode; the reference's must be far from constant."""
    with torch.inference_mode():
        expected, found = theirs(images(size)), ours(images(size))
    assert float(expected.std()) > 0.1
    return float((expected - found).abs().max())


@pytest.mark.parametrize("name", [f"efficientnet_b{i}" for i in range(5)])
def test_torchvision_layout(name: str, tmp_path: Path) -> None:
    reference = torchvision_reference(name)
    assert difference(carried_over(reference, name, tmp_path), reference) < 1e-5


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b2"])
def test_timm_layout(name: str, tmp_path: Path) -> None:
    reference = timm_reference(name)
    assert difference(carried_over(reference, name, tmp_path), reference) < 1e-5


def lukemelas_key(key: str, places: dict[tuple[str, str], int]) -> str:
    """timm's name -> lukemelas' name, written from his repository's attribute names."""
    path, leaf = key.rsplit(".", 1)
    part = path.split(".")
    if part[0] != "blocks":
        ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
        return f"{ends[path]}.{leaf}"
    block, inner = places[part[1], part[2]], ".".join(part[3:])
    names = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand", "conv_dw": "_depthwise_conv"}
    if part[1] == "0":
        names |= {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    else:
        names |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
    return f"_blocks.{block}.{names[inner]}.{leaf}"


def places_of(reference: nn.Module) -> dict[tuple[str, str], int]:
    """How lukemelas counts timm's blocks."""
    keys = (key.split(".") for key in reference.state_dict() if key.startswith("blocks."))
    return {place: number for number, place in enumerate(dict.fromkeys((key[1], key[2]) for key in keys))}


@pytest.mark.parametrize("size", [96, 97, 130])
def test_lukemelas_layout_with_tensorflows_padding(size: int, tmp_path: Path) -> None:
    reference = timm_reference("tf_efficientnet_b0")
    places = places_of(reference)
    path = tmp_path / "efficientnet-b0.pth"
    torch.save({lukemelas_key(key, places): value for key, value in reference.state_dict().items()}, path)
    network = create_model("efficientnet_b0", CLASSES, str(path)).eval()
    assert network.architecture["padding"] == "same"
    assert difference(network, reference, size) < 1e-5


@pytest.mark.parametrize("size", [96, 97])
def test_lite0_in_timms_layout(size: int, tmp_path: Path) -> None:
    reference = timm_reference("tf_efficientnet_lite0")
    network = carried_over(reference, LITE, tmp_path)
    assert difference(network, reference, size) < 1e-5
    assert (network.mean, network.std) == (HALF, HALF)


def test_weights_of_an_installed_package_need_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = timm_reference("tf_efficientnet_lite0")
    package = tmp_path / "weights_as_a_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')\n", encoding="utf-8")
    state = {lukemelas_key(key, places_of(reference)): value for key, value in reference.state_dict().items()}
    torch.save(state, package / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weights_module, "LITE_PACKAGE", package.name)
    network = create_model(LITE, CLASSES, "imagenet").eval()
    assert difference(network, reference) < 1e-5


def test_torchvision_has_no_lite0() -> None:
    with pytest.raises(UserError, match=r"model\.weights=imagenet\."):
        create_model(LITE, CLASSES, "imagenet-tv")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        (lambda: torchvision_reference("efficientnet_b0"), "efficientnet_b0"),
        (lambda: timm_reference("efficientnet_b0"), "efficientnet_b0"),
        (lambda: timm_reference("tf_efficientnet_lite0"), LITE),
    ],
    ids=["torchvision", "timm", "lite0"],
)
def test_gradients_agree_in_float64(reference: Callable[[], nn.Module], name: str, tmp_path: Path) -> None:
    theirs = reference()
    ours = carried_over(theirs, name, tmp_path)
    gradients = []
    for network in (ours, theirs):
        network.double().train()
        for module in network.modules():
            if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth) or type(module).__name__ == "DropPath":
                module.eval()
        functional.cross_entropy(network(images(64, 4).double()), torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    expected = rename(gradients[1], name, "gradients")
    assert gradients[0].keys() == expected.keys()
    for name, gradient in gradients[0].items():
        size = max(float(expected[name].abs().max()), 1e-6)  # some are zero but for rounding
        assert float((gradient - expected[name]).abs().max()) < 1e-8 * size, name


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small"])
def test_torchvisions_other_networks(name: str, tmp_path: Path) -> None:
    reference = torchvision_reference(name)
    assert difference(carried_over(reference, name, tmp_path), reference) < 1e-5
    swapped = create_model(name, 3, str(tmp_path / "weights.pth"))
    assert swapped.weights_description.endswith("new head")
    assert swapped(images(64)).shape == (2, 3)


def test_swapped_stages_are_caught(tmp_path: Path) -> None:
    reference = torchvision_reference("efficientnet_b0")
    network = carried_over(reference, "efficientnet_b0", tmp_path)
    first, second = network.stages[3][1], network.stages[3][2]  # blocks of one shape
    network.stages[3][1], network.stages[3][2] = second, first
    assert difference(network, reference) > 1e-3


def test_a_head_for_other_classes_is_new_and_said_so(tmp_path: Path) -> None:
    reference = torchvision_reference("efficientnet_b0")
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}}, path)
    network = create_model("efficientnet_b0", 3, str(path))
    assert network.classifier.weight.shape == (3, 1280)
    assert network.weights_description.endswith("new head")
    assert torch.equal(network.stem.conv.weight, reference.features[0][0].weight)


def test_mean_and_std_belong_to_the_weights(tmp_path: Path) -> None:
    reference = timm_reference("efficientnet_b0")
    for name, mean in (("efficientnet_b0.ra4_e3600_r224_in1k", HALF), ("efficientnet_b0.ra_in1k", IMAGENET_MEAN)):
        save_file(reference.state_dict(), tmp_path / f"{name}.safetensors")
        assert create_model("efficientnet_b0", CLASSES, str(tmp_path / f"{name}.safetensors")).mean == mean
    assert create_model().mean == HALF


def test_our_own_model_file_is_a_start(tmp_path: Path) -> None:
    network = lively(create_model("efficientnet_b0", 4))
    header = Header(network.architecture, list("abcd"), 32, 32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    write_model(tmp_path / "model.safetensors", ImageClassifier(network, header))
    again = create_model("efficientnet_b0", 7, str(tmp_path / "model.safetensors"))
    assert again.mean == (0.1, 0.2, 0.3)
    assert torch.equal(again.head.conv.weight, network.head.conv.weight)


def write(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    state = torchvision_reference("efficientnet_b0").state_dict()
    missing = {k: v for k, v in state.items() if k != "features.8.0.weight"}
    text = tmp_path / "weights.txt"
    text.write_text("hello", encoding="utf-8")
    cases = [
        (write(tmp_path / "a.pth", missing), "lacks head.conv.weight"),
        (write(tmp_path / "b.pth", {"x": torch.zeros(1)}), "unknown layout"),
        (write(tmp_path / "c.pth", [1, 2]), "no table of tensors"),
        (write(tmp_path / "d.pth", torchvision_reference("efficientnet_b1").state_dict()), "not of efficientnet_b0"),
        (str(text), "cannot be read as weights"),
        (str(tmp_path / "none.pth"), "neither a file"),
    ]
    for source, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            create_model("efficientnet_b0", CLASSES, source)
        assert "\n" not in str(caught.value)


def test_a_failed_download_names_the_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "RA4_URL", "http://127.0.0.1:9/model.safetensors")
    torch_home = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    try:
        with pytest.raises(
            UserError, match=r"model\.name=efficientnet_lite0, .*model\.weights=path.* or .*model\.weights=none"
        ):
            create_model("efficientnet_b0", CLASSES, "imagenet")
    finally:
        torch.hub.set_dir(torch_home)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_imagenet_by_name_is_timms_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = lively(timm.create_model("efficientnet_b0", num_classes=1000))
    save_file(reference.state_dict(), tmp_path / "published.safetensors")
    monkeypatch.setattr(weights_module, "RA4_URL", (tmp_path / "published.safetensors").as_uri())
    torch_home = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    try:
        network = create_model("efficientnet_b0", 1000, "imagenet").eval()
    finally:
        torch.hub.set_dir(torch_home)
    assert network.mean == HALF
    assert difference(network, reference) < 1e-5
