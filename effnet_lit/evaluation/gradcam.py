"""Where in an image a class was seen: Grad-CAM (arXiv 1610.02391)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from effnet_lit.config import UserError
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.modelfile import ImageClassifier

BATCH = 16
STRENGTH = 0.5  # of the colours over the image


def last_maps(network: nn.Module) -> nn.Module:
    """The layer whose output is the last that still has a height and a width.

    Raises:
        UserError: the network has none.
    """
    if isinstance(network, EfficientNet):
        return network.head
    for name in ("layer4", "features"):  # torchvision's ResNet-50 and MobileNetV3
        if hasattr(network, name):
            return getattr(network, name)
    raise UserError("Heat maps need a convolutional network; this model's has no maps to show.")


def heat_maps(classifier: ImageClassifier, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each place spoke for a class, (N, S, S) float32 from 0 to 1; all 0 where nothing did.

    Args:
        images: uint8 (N, S, S, 3), S = eval_size.
        classes: (N,) class numbers.
    """
    found = [
        of_batch(classifier, torch.tensor(images[i : i + BATCH]), torch.tensor(classes[i : i + BATCH]))
        for i in range(0, len(images), BATCH)
    ]
    return np.concatenate(found) if found else np.zeros((0, *images.shape[1:3]), np.float32)


def of_batch(classifier: ImageClassifier, images: Tensor, classes: Tensor) -> np.ndarray:
    """The same for a few images: the maps of the last layer, weighted by how the class's logit grows with each."""
    device = next(classifier.parameters()).device
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    network = classifier.network
    mode = network.gradient_checkpointing if isinstance(network, EfficientNet) else "off"
    handle = last_maps(network).register_forward_hook(keep)
    try:
        if isinstance(network, EfficientNet):
            network.set_gradient_checkpointing("off")  # what is computed again passes by the hook
        with torch.enable_grad():
            logits = classifier.logits(images.to(device))
            chosen = logits.gather(1, classes.to(device)[:, None]).sum()
            (slope,) = torch.autograd.grad(chosen, kept)
    finally:
        handle.remove()
        if isinstance(network, EfficientNet):
            network.set_gradient_checkpointing(mode)
    maps = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).detach().float().relu()  # (N, 1, h, w)
    heat = functional.interpolate(maps, images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    heat = heat - heat.amin((1, 2), keepdim=True)
    return (heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-7)).cpu().numpy()


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, uint8 (S, S, 3), grey where nothing spoke for the class and red where most did."""
    grey = image.mean(axis=2, keepdims=True)
    colour = np.stack([255 * np.ones_like(heat), 170 * (1 - heat), 40 * (1 - heat)], axis=2)
    share = STRENGTH * heat[..., None]
    return np.clip((1 - share) * (0.5 * grey + 0.5 * image) + share * colour, 0, 255).astype(np.uint8)
