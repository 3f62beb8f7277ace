"""Heat maps against an independent implementation, and where the evidence is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from effnet_lit.config import UserError
from effnet_lit.evaluation.gradcam import heat_maps, overlay
from effnet_lit.model.modelfile import Header, ImageClassifier
from effnet_lit.model.zoo import create_model

SIZE = 96


def classifier(name: str = "efficientnet_b0") -> ImageClassifier:
    """With norms far from their start, so that maps and logits are not all but zero."""
    torch.manual_seed(0)
    network = create_model(name, 5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
    header = Header(network.architecture, list("abcde"), SIZE, SIZE, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    return ImageClassifier(network, header).eval()


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "layer"), [("efficientnet_b0", "head"), ("resnet50", "layer4")])
def test_the_same_as_pytorch_grad_cam(name: str, layer: str) -> None:
    package = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam")
    model, pixels, classes = classifier(name), images(), np.array([0, 3, 4])
    ours = heat_maps(model, pixels, classes)
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    targets = [package.utils.model_targets.ClassifierOutputTarget(int(c)) for c in classes]
    with package.GradCAM(model.network, [getattr(model.network, layer)]) as cam:
        theirs = cam(input_tensor=batch, targets=targets)
    assert ours.shape == theirs.shape == (3, SIZE, SIZE)
    assert theirs.std() > 0.05, "flat maps agree by themselves"
    assert np.abs(ours - theirs).max() < 1e-3


def test_the_evidence_is_where_it_was_put() -> None:
    """A head that answers "bright" points at the bright corner."""
    model = classifier("resnet50")
    network = model.network

    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x, 32).repeat(1, 700, 1, 1)[:, :2048]

    for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        setattr(network, part, nn.Identity())
    network.layer4 = Bright()
    nn.init.constant_(network.fc[1].weight, 1.0)  # type: ignore[index]
    picture = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    picture[:, :32, 64:] = 255
    (heat,) = heat_maps(model, picture, np.array([1]))
    assert heat[:16, 80:].min() > 0.9 and heat[50:, :40].max() < 0.01


def test_one_at_a_time_and_nothing_left_behind() -> None:
    model, pixels = classifier(), images(2)
    together = heat_maps(model, pixels, np.array([1, 2]))
    alone = heat_maps(model, pixels[1:], np.array([2]))
    assert np.abs(together[1] - alone[0]).max() < 1e-4
    assert all(not module._forward_hooks for module in model.network.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert heat_maps(model, pixels[:0], np.array([], int)).shape == (0, SIZE, SIZE)


@pytest.mark.parametrize("mode", ["activations", "blocks"])
def test_the_same_of_a_model_that_was_trained_with_checkpointing(mode: str) -> None:
    model, pixels = classifier(), images(1)
    plain = heat_maps(model, pixels, np.array([1]))
    model.network.set_gradient_checkpointing(mode)  # type: ignore[operator]
    assert np.abs(heat_maps(model, pixels, np.array([1])) - plain).max() < 1e-4
    assert model.network.gradient_checkpointing == mode


def test_overlays_keep_the_image_where_nothing_spoke() -> None:
    picture = images(1)[0]
    shown = overlay(picture, np.zeros((SIZE, SIZE), np.float32))
    assert shown.dtype == np.uint8 and shown.shape == picture.shape
    hot = overlay(picture, np.ones((SIZE, SIZE), np.float32))
    assert (hot[..., 0] > shown[..., 0]).mean() > 0.95


def test_networks_without_maps_say_so() -> None:
    network = create_model("vit_b_16", 5, image_size=SIZE)
    header = Header(network.architecture, list("abcde"), SIZE, SIZE, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="convolutional"):
        heat_maps(ImageClassifier(network, header).eval(), images(1), np.array([0]))
