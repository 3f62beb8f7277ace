"""model.safetensors: weights, and a header from which alone they can be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from effnet_lit.commands import going_on
from effnet_lit.config import UserError
from effnet_lit.model.familiarity import Familiarity
from effnet_lit.model.zoo import build, last_layer

KEY, DIGEST = "effnet_lit", "sha256"
FORMAT_VERSION = 1
MOST_TOGETHER, CPU_PIXELS = 64, 2**20  # images, and of all of them on a CPU: 16 of 256 x 256
FAMILIARITY = "familiarity."  # before the names of its tensors
DAMAGED = "{} is damaged: it is not what was written; copy it again, or train again."
NEXT = "give a model.safetensors written by effnet_lit"


@dataclass(frozen=True)
class Header:
    """What a model file says of itself. Sizes in pixels; mean and std per channel of pixels in 0-1."""

    architecture: dict[str, Any]
    class_names: list[str]
    image_size: int
    eval_size: int
    mean: list[float]
    std: list[float]
    resize: str = "squish"
    calibration: dict[str, float] = field(default_factory=lambda: {"temperature": 1.0})
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


class ImageClassifier(nn.Module):
    """A network with everything between an image's pixels and its probabilities."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, header: Header, familiarity: Familiarity | None = None) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.familiarity = familiarity
        self.header = header
        self.register_buffer("mean", torch.tensor(header.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(header.std).view(1, 3, 1, 1), persistent=False)

    @property
    def batch(self) -> int:
        """Images to ask about together. Batches that are always cut at the same places give the same bits for the same
        images in the same order; and more of them are no faster on a CPU, but take a GB."""
        on_gpu = self.mean.device.type != "cpu"
        return MOST_TOGETHER if on_gpu else max(4, min(MOST_TOGETHER, CPU_PIXELS // self.header.eval_size**2))

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (N, S, S, 3), S = eval_size -> float32 (N, classes).

        Raises:
            UserError: the images are given otherwise, on which the answers would be wrong without a sign of it.
        """
        size = self.header.eval_size
        fits = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape[1:] == (size, size, 3)
        if not fits:
            raise UserError(f"A classifier takes a uint8 tensor (N, {size}, {size}, 3) with values from 0 to 255.")
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S), channels_last as it is a view of NHWC
        return self.network((pixels - self.mean) / self.std).float()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> calibrated probabilities, float32 (N, classes)."""
        return torch.softmax(self.logits(images) / self.header.calibration["temperature"], dim=1)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, S, S, 3) -> the same probabilities, and what reaches the last layer, float32 (N, F)."""
        seen: list[Tensor] = []
        handle = last_layer(self.network).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            probabilities = self(images)
        finally:
            handle.remove()
        return probabilities, seen[0].float()

    def with_familiarity(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, S, S, 3) -> probabilities, and the share of each image that is unlike training, float32 (N,);
        zeros where the model file says nothing about it."""
        probabilities, features = self.with_features(images)
        if self.familiarity is None:
            return probabilities, torch.zeros_like(probabilities[:, 0])
        return probabilities, self.familiarity(features)


def write_model(path: Path, classifier: ImageClassifier) -> None:
    """A reader finds the old file or the new one, never half."""
    tensors = dict(classifier.network.state_dict())
    if classifier.familiarity is not None:
        tensors |= {FAMILIARITY + name: tensor for name, tensor in classifier.familiarity.state_dict().items()}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    header = json.dumps(asdict(classifier.header), ensure_ascii=False)
    write_whole(path, save(tensors, metadata={KEY: header, DIGEST: digest(header, tensors)}))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside ``path``, then rename it; where that fails nothing is left of it. A link stays one: what it
    points to is written. OSError passes through."""
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that the file says, by which damage is noticed."""
    found = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_header(path: Path) -> Header:
    """The header of a model file.

    Raises:
        UserError: no file, not safetensors, without our header, of a newer format, or damaged.
    """
    return parse_header(path, read_metadata(path)[KEY])


def parse_header(path: Path, text: str) -> Header:
    """The header from its JSON.

    Raises:
        UserError: it is of a newer format, or damaged.
    """
    try:
        values = json.loads(text)
        if values.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer effnet_lit; update effnet_lit to read it.")
        known = {item.name for item in fields(Header)}
        return Header(**{key: value for key, value in values.items() if key in known})
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise UserError(DAMAGED.format(path)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The texts of a model file.

    Raises:
        UserError: as ``read_header``.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; {NEXT}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}); {NEXT}.") from error
    if KEY not in metadata:
        raise UserError(
            f"{path} holds weights without effnet_lit's header, so its classes are unknown; "
            f"{NEXT}, or start a training from it with model.weights={path}."
        )
    return metadata


def model_file(path: Path) -> Path:
    """The model file itself, where a run folder was given.

    Raises:
        UserError: the folder holds none.
    """
    if not path.is_dir():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    runs = sorted(file.parent for file in path.glob("*/model.safetensors"))
    if runs:
        raise UserError(f"{path} is not one run; give one of those in it, such as {runs[0]}.")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder; give one under runs/, or a model.safetensors.")
    if (path / "result.json").is_file():
        raise UserError(f"{path} holds no model.safetensors any more; give the file itself, or another run.")
    raise UserError(f"{path} holds no model.safetensors: its run did not end; go on with: {going_on(path)}")


def load_model(path: str | Path) -> ImageClassifier:
    """The classifier of a model file or a run folder, in eval mode on the CPU; its answers carry no gradients.

    Raises:
        UserError: as ``read_header``, or the file is damaged.
    """
    path = model_file(Path(path))
    metadata = read_metadata(path)
    tensors = load_file(path)
    if metadata.get(DIGEST) not in (None, digest(metadata[KEY], tensors)):
        raise UserError(DAMAGED.format(path))
    header = parse_header(path, metadata[KEY])
    network = build(header.architecture)
    known = {name: tensors.pop(FAMILIARITY + name) for name in Familiarity.NAMES if FAMILIARITY + name in tensors}
    network.load_state_dict(tensors)
    familiarity = Familiarity(**known) if known else None
    return ImageClassifier(network, header, familiarity).eval().requires_grad_(False)
