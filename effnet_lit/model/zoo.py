"""Every network by name behind one call: EfficientNets from here, three others from torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet50, vit_b_16
from torchvision.models.vision_transformer import Encoder

from effnet_lit.config import UserError
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.kernels.mbconv import available
from effnet_lit.model.scaling import LITE, SCALES
from effnet_lit.model.weights import HALF, apply_weights, load_weights

TORCHVISION = ("resnet50", "mobilenet_v3_small", "vit_b_16")
NAMES = (*SCALES, *TORCHVISION)
EARLY_STAGES = 3  # of EfficientNets (docs/decisions/fine_tuning.md)


def create_model(
    name: str = "efficientnet_b0",
    num_classes: int = 1000,
    weights: str | None = None,
    *,
    dropout_rate: float = 0.2,
    drop_path_rate: float = 0.2,
    image_size: int = 224,
) -> nn.Module:
    """A network (N, 3, H, W) -> logits (N, num_classes) with random or published weights.

    It carries ``architecture`` (what ``build`` needs), ``mean`` and ``std`` (of pixels in 0-1, as its weights expect)
    ``weights_description`` and ``new_head`` (weights were loaded, but for the last layer).

    Args:
        weights: imagenet, imagenet-tv, a file, or None or "none" for random ones.
        drop_path_rate: of the EfficientNets; the others have none.
        image_size: of vit_b_16 alone, whose position embedding has one size.

    Raises:
        UserError: an unknown name, or weights that cannot be had or do not fit.
    """
    if name not in NAMES:
        raise UserError(f"model.name={name} is not a network here; use one of: {', '.join(NAMES)}.")
    loaded = None if weights in (None, "none") else load_weights(str(weights), name)
    architecture: dict[str, Any] = {"name": name, "num_classes": num_classes, "dropout_rate": dropout_rate}
    if name in SCALES:
        architecture["drop_path_rate"] = drop_path_rate
    if name == "vit_b_16":
        architecture["image_size"] = image_size
    if loaded is not None:
        architecture |= loaded.architecture
    network: Any = build(architecture)
    network.mean, network.std, network.weights_description, network.new_head = HALF, HALF, "random weights", False
    if loaded is not None:
        swapped = apply_weights(network, loaded)
        network.mean, network.std = loaded.mean, loaded.std
        network.weights_description = loaded.description + (", new head" if swapped else "")
        network.new_head = bool(swapped)
    return network


def set_gradient_checkpointing(network: nn.Module, mode: str) -> None:
    """See ``EfficientNet.set_gradient_checkpointing``.

    Raises:
        UserError: the network is not an EfficientNet and ``mode`` is not "off".
    """
    if isinstance(network, EfficientNet):
        network.set_gradient_checkpointing(mode)
    elif mode != "off":
        raise UserError(
            f"model.gradient_checkpointing={mode} works with EfficientNets; "
            "use model.gradient_checkpointing=off or another model.name."
        )


def freeze_batchnorm(network: nn.Module, everywhere: bool = True) -> None:
    """Mean and variance stay as they are until the next ``train()``: everywhere, though scales and shifts are trained,
    or only in layers that are not trained."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and (everywhere or not module.weight.requires_grad):
            module.eval()


def freeze_layers(network: nn.Module, count: int) -> None:
    """The first so many of ``layers`` are not trained from now on, nor what belongs to none, as ViT's positions.

    Raises:
        UserError: the last would be among them.
    """
    most = len(layers(network)) - 1
    if count > most:
        raise UserError(
            f"training.frozen_layers={count} leaves nothing to train; this network has {most} layers before its last: "
            "use fewer, or training.strategy=probe."
        )
    trained = {parameter for layer in layers(network)[count:] for parameter in layer.parameters()}
    for parameter in network.parameters():
        if count and parameter not in trained:
            parameter.requires_grad_(False)


def early_layers(network: nn.Module) -> int:
    """How many of ``layers`` there are up to maps of an eighth of the image's side; 0 where that was not tried."""
    if not isinstance(network, EfficientNet):
        return 0
    return 1 + sum(len(stage) for stage in network.stages[:EARLY_STAGES])  # type: ignore[arg-type]


def last_layer(network: nn.Module) -> nn.Linear:
    """The layer that gives the logits."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def layers(network: nn.Module) -> list[nn.Module]:
    """Stem, blocks and last layers, from the images to the logits; each has parameters of its own."""
    if isinstance(network, EfficientNet):
        return [network.stem, *network.blocks(), network.head, network.classifier]
    parts: list[nn.Module] = []
    for child in network.children():
        child = child.layers if isinstance(child, Encoder) else child
        parts += list(child) if isinstance(child, nn.Sequential) else [child]
    return [part for part in parts if next(part.parameters(), None) is not None]


def use_kernels(network: nn.Module) -> None:
    """Train MBConv by the Triton kernels from now on.

    Raises:
        UserError: the network is not an EfficientNet, or Triton or a GPU for it is missing.
    """
    if not has_kernels(network):
        raise UserError(
            "model.kernels=on works with efficientnet_b0 to b7; use model.kernels=off or another model.name."
        )
    if not available():
        raise UserError("model.kernels=on needs Triton and a CUDA GPU, not found here; use model.kernels=off.")
    assert isinstance(network, EfficientNet)
    for block in network.blocks():
        block.kernels = True


def has_kernels(network: nn.Module) -> bool:
    """Whether the Triton kernels are for this network: EfficientNet-B0 to B7."""
    return isinstance(network, EfficientNet) and network.architecture["name"] != LITE


def build(architecture: dict[str, Any]) -> nn.Module:
    """The network that an ``architecture`` describes, with random weights."""
    name, options = architecture["name"], dict(architecture)
    if name in SCALES:
        return EfficientNet(**options)
    network = build_torchvision(name, options["num_classes"], options["dropout_rate"], options.get("image_size", 224))
    network.architecture = options  # type: ignore[assignment]
    return network


def build_torchvision(name: str, num_classes: int, dropout_rate: float, image_size: int) -> nn.Module:
    """torchvision's network with our dropout before its last layer."""
    if name == "resnet50":
        network = resnet50(num_classes=num_classes)
        network.fc = with_dropout(network.fc, dropout_rate)  # type: ignore[assignment]
        return network
    if name == "mobilenet_v3_small":
        # Its momentum of 0.01 is for the steps of ImageNet: statistics would still be those of the first ones.
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1)
        return mobilenet_v3_small(num_classes=num_classes, dropout=dropout_rate, norm_layer=norm)
    network = vit_b_16(num_classes=num_classes, image_size=image_size)
    assert isinstance(network, VisionTransformer)
    network.heads.head = with_dropout(network.heads.head, dropout_rate)
    return network


def with_dropout(layer: nn.Module | Tensor, rate: float) -> nn.Module:
    """Dropout, then the layer."""
    assert isinstance(layer, nn.Module)
    return nn.Sequential(nn.Dropout(rate), layer)
