"""Model files round trip bit for bit; what is not one is refused in a sentence. The zoo behind one call."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from effnet_lit.config import UserError
from effnet_lit.model.modelfile import Header, ImageClassifier, load_model, read_header, write_model, write_whole
from effnet_lit.model.zoo import NAMES, build, create_model

SMALL = ["efficientnet_b0", "resnet50", "mobilenet_v3_small"]


def classifier(name: str = "efficientnet_b0", size: int = 64) -> ImageClassifier:
    torch.manual_seed(0)
    network = create_model(name, 3, image_size=size).eval()
    header = Header(
        network.architecture, ["a", "ä", "猫"], size, size, [0.5] * 3, [0.25] * 3, metrics={"accuracy": 0.9}
    )
    return ImageClassifier(network, header).eval()


def images(size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_bit_equal(name: str, tmp_path: Path) -> None:
    before, path = classifier(name), tmp_path / "model.safetensors"
    write_model(path, before)
    after = load_model(path)
    assert after.header == before.header == read_header(path)
    batch = images()
    with torch.inference_mode():
        expected = before(batch).numpy()
    assert np.array_equal(after(batch).numpy(), expected)  # without inference_mode: no gradients come along
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_folder_without_a_model_file_says_what_to_give(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "0"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(UserError, match="its run did not end"):
        load_model(run)
    (run / "result.json").touch()
    with pytest.raises(UserError, match="any more"):
        load_model(run)
    write_model(run / "model.safetensors", classifier("mobilenet_v3_small"))
    with pytest.raises(UserError, match=re.escape(f"is not one run; give one of those in it, such as {run}.")):
        load_model(run.parent)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("words", [b"0.9", b'\\"mean', b"class_names", b""], ids=str)
def test_damage_is_noticed(tmp_path: Path, words: bytes) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, classifier())
    content = bytearray(path.read_bytes())
    content[content.find(words) + len(words) - 1 if words else -5_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_model(path)


def test_probabilities_are_softmax_of_normalised_pixels() -> None:
    model, batch = classifier(), images()
    with torch.inference_mode():
        pixels = (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        expected = torch.softmax(model.network(pixels), 1)
        assert torch.allclose(model(batch), expected, atol=1e-6)
        assert torch.allclose(model(batch).sum(1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [images().float() / 255, images()[..., :1], images(32), images()[0], images().numpy()],
    ids=["floats", "grey", "size", "one", "array"],
)
def test_images_given_otherwise_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"uint8 tensor \(N, 64, 64, 3\)"):
        classifier()(given)


def test_temperature_softens() -> None:
    model, batch = classifier(), images()
    model.header.calibration["temperature"] = 2.0
    with torch.inference_mode():
        assert torch.allclose(model(batch), torch.softmax(model.logits(batch) / 2, 1))


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    text, bare = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    text.write_text("hello", encoding="utf-8")
    save_file({"x": torch.zeros(1)}, bare)
    for path, words in (
        (tmp_path / "c", "does not exist"),
        (text, "not a safetensors file"),
        (bare, "without effnet_lit's"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*SMALL, "vit_b_16"])
def test_every_kind_of_network_trains_and_rebuilds(name: str) -> None:
    size = 32
    network = create_model(name, 2, dropout_rate=0.4, image_size=size)
    loss = network(torch.randn(2, 3, size, size)).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.4 for m in network.modules())
    again = build(network.architecture)
    again.load_state_dict(network.state_dict())
    network.eval(), again.eval()
    with torch.inference_mode():
        batch = torch.randn(1, 3, size, size)
        assert torch.equal(again(batch), network(batch))


def test_an_unknown_network_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"efficientnet_b0, .*vit_b_16"):
        create_model("efficientnet_b9")
    assert len(NAMES) == 12


@pytest.mark.parametrize("name", SMALL)
def test_statistics_of_batchnorm_follow_within_a_short_run(name: str) -> None:
    """After 40 steps; at MobileNet's published momentum of 0.01 they would be two thirds of what they began as."""
    network = create_model(name, 3, dropout_rate=0.0).train()
    first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    means: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for _ in range(40):
            network(torch.ones(2, 3, 32, 32))
    assert means and first.running_mean is not None
    assert torch.linalg.norm(first.running_mean - means[-1]) < 0.05 * torch.linalg.norm(means[-1])
