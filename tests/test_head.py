"""The last layer fitted first: against an independent solver, honest about itself, and in whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from effnet_lit import compose, fit, load_model
from effnet_lit.composition import LAYER_DECAY
from effnet_lit.config import Config, UserError
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.deploy.eight_bits import rounded
from effnet_lit.evaluation.features import answers_and_features
from effnet_lit.evaluation.metrics import predict_probabilities, wilson_interval
from effnet_lit.model.efficientnet import EfficientNet
from effnet_lit.model.modelfile import Header, ImageClassifier
from effnet_lit.model.zoo import create_model, early_layers, freeze_layers, last_layer, layers
from effnet_lit.training.head import descend, fit_head, fit_linear

TINY = ("limits=off", "epochs=1", "batch_size=16", "data.image_size=32", "seed=3")


def blobs(count: int, classes: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds, far from zero and of different widths, as features are."""
    drawn = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=drawn)
    centres = torch.randn(classes, dimensions, generator=drawn)
    widths = torch.rand(dimensions, generator=drawn) * 5 + 0.1
    return (centres[labels] + torch.randn(count, dimensions, generator=drawn)) * widths + 3, labels


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_the_same_as_scikit_learn(decay: float) -> None:
    x, labels = blobs(300, 4, 10)
    z = ((x - x.mean(0)) / x.std(0)).double()
    weight, bias = descend(z, labels, 4, decay)
    reference = LogisticRegression(C=1 / (2 * decay * len(z)), tol=1e-10, max_iter=10_000)
    reference.fit(z.numpy(), labels.numpy())
    ours = torch.softmax(z @ weight.t() + bias, 1).numpy()
    assert np.abs(ours - reference.predict_proba(z.numpy())).max() < 1e-4


def test_raw_features_give_the_same_as_standardised_ones() -> None:
    x, labels = blobs(400, 3, 6)
    weight, bias = fit_linear(x, labels, 3)
    shifted, moved = fit_linear(x * 100 - 7, labels, 3)
    assert torch.allclose(x @ weight.t() + bias, (x * 100 - 7) @ shifted.t() + moved, atol=1e-2)
    assert ((x @ weight.t() + bias).argmax(1) == labels).float().mean() > 0.8


def test_a_constant_feature_does_no_harm() -> None:
    x, labels = blobs(200, 3, 6)
    x[:, 2] = 0.0
    weight, bias = fit_linear(x, labels, 3)
    assert weight.isfinite().all() and bias.isfinite().all()


def test_a_feature_that_hardly_any_image_shows_does_not_drown_the_others() -> None:
    x, labels = blobs(600, 4, 10)
    drawn = torch.Generator().manual_seed(1)
    rare = 0.01 * (torch.rand(600, 200, generator=drawn) < 0.004)
    x, seen = torch.cat([x, rare], 1), torch.arange(600) < 300
    weight, bias = fit_linear(x[seen], labels[seen], 4)
    expected = (x[~seen] @ weight.t() + bias).argmax(1)
    integers, scale = rounded(weight.numpy())
    in_8_bits = torch.from_numpy(integers * scale)
    assert ((x[~seen] @ in_8_bits.t() + bias).argmax(1) != expected).float().mean() < 0.02
    x[:, 10:] *= 10
    assert ((x[~seen] @ weight.t() + bias).argmax(1) != expected).float().mean() < 0.05


@pytest.fixture
def colours(class_folder: Path, tmp_path: Path) -> tuple[ImageClassifier, PreparedData]:
    """A network that has seen nothing, and the fixture's images at 32 px."""
    torch.manual_seed(0)
    network = EfficientNet(num_classes=3)
    header = Header(network.architecture, ["blue", "green", "red"], 32, 32, [0.5] * 3, [0.5] * 3)
    data = prepare(
        compose(f"data.dir={class_folder}", *TINY, "model.weights=none").data, 0, False, 32, lambda done, total: None
    )
    return ImageClassifier(network, header).eval(), data


def test_features_are_what_reaches_the_last_layer(colours: tuple[ImageClassifier, PreparedData]) -> None:
    classifier, data = colours
    numbers = data.part("test")
    _, found = answers_and_features(classifier, data, numbers)
    images = torch.from_numpy(np.stack([data.images[row] for row in data.rows[numbers]]))
    with torch.inference_mode():
        expected = classifier.logits(images)
        layer = last_layer(classifier.network)
        assert torch.allclose(found @ layer.weight.t() + layer.bias, expected, atol=1e-6)
    assert not layer._forward_pre_hooks


def test_the_preview_is_a_full_evaluation_of_that_head(colours: tuple[ImageClassifier, PreparedData]) -> None:
    classifier, data = colours
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    preview = fit_head(classifier, data)
    val = data.part("val")
    right = int(
        (predict_probabilities(classifier, data.images[data.rows[val]]).argmax(1).numpy() == data.labels[val]).sum()
    )
    assert preview.accuracy == right / len(val) and preview.images == len(val)
    assert preview.interval == wilson_interval(right, len(val))
    assert preview.accuracy > 0.6, "three plain colours, even through random layers"
    changed = [name for name, value in classifier.network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A network for seven other classes."""
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in EfficientNet(num_classes=7).state_dict().items()}, path)
    return path


def run(folder: Path, weights: Path, *overrides: str) -> Config:
    return compose(f"data.dir={folder}", *TINY, f"model.weights={weights}", *overrides)


def test_a_probe_changes_the_last_layer_alone(class_folder: Path, weights_file: Path, tmp_path: Path) -> None:
    result = fit(run(class_folder, weights_file, "training.strategy=probe"), tmp_path / "run")
    start, end = load_file(weights_file), load_file(result.model_path)
    changed = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    page = json.loads((result.run_dir / "result.json").read_text())
    assert page["preview"]["accuracy"] == page["val"]["accuracy"]
    assert not (result.run_dir / "metrics.csv").exists()
    assert load_model(result.model_path).header.class_names == ["blue", "green", "red"]


def test_a_whole_run_starts_from_the_fitted_head(
    class_folder: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(class_folder, weights_file, "training.frozen_layers=0")
    assert config.training.layer_decay == LAYER_DECAY
    result = fit(config, tmp_path / "run")
    assert "Preview  " in capsys.readouterr().out
    start, end = load_file(weights_file), load_file(result.model_path)
    assert torch.equal(start["stem.norm.running_mean"], end["stem.norm.running_mean"])
    assert not torch.equal(start["stem.conv.weight"], end["stem.conv.weight"])
    moved = {name: float((end[name] - start[name]).abs().mean()) for name in ("stem.norm.weight", "head.norm.weight")}
    assert moved["stem.norm.weight"] < 0.5 * moved["head.norm.weight"], "layers near the images move less"
    assert json.loads((result.run_dir / "result.json").read_text())["preview"]["images"] > 0


@pytest.mark.parametrize("override", ["training.head_first=off", "model.weights=none"])
def test_no_preview_where_none_is_wanted(
    override: str, class_folder: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["model.weights=none"] if "weights" in override else [f"model.weights={weights_file}", override]
    fit(compose(f"data.dir={class_folder}", *TINY, *weights, "trainer.max_steps=1"), tmp_path / "run")
    assert "Preview" not in capsys.readouterr().out


def test_weights_with_their_own_head_keep_it(class_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    path = tmp_path / "same.safetensors"
    save_file({name: value.contiguous() for name, value in EfficientNet(num_classes=3).state_dict().items()}, path)
    fit(run(class_folder, path, "trainer.max_steps=1"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["preview"] is None


def moved_parts(start: Path, end: Path) -> set[str]:
    """Layers and stages any weight or buffer of which is another."""
    before, after = load_file(start), load_file(end)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    return {".".join(name.split(".")[:2]) if name.startswith("stages") else name.split(".")[0] for name in changed}


def test_first_layers_stay_as_loaded(
    class_folder: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their BatchNorm too, where it follows the batches elsewhere."""
    late = {"stages.3", "stages.4", "stages.5", "stages.6", "head", "classifier"}
    result = fit(run(class_folder, weights_file), tmp_path / "run")
    assert moved_parts(weights_file, result.model_path) == late
    assert "first 6 layers as loaded" in capsys.readouterr().out
    assert "frozen_layers: 6" in (result.run_dir / "config.yaml").read_text()
    following = ("training.frozen_layers=2", "training.batchnorm=train")
    result = fit(run(class_folder, weights_file, *following), tmp_path / "following")
    assert moved_parts(weights_file, result.model_path) == {"stages.1", "stages.2", *late}


def test_all_layers_move_where_batchnorm_follows(class_folder: Path, weights_file: Path, tmp_path: Path) -> None:
    result = fit(run(class_folder, weights_file, "training.batchnorm=train"), tmp_path / "run")
    assert "frozen_layers: 0" in (result.run_dir / "config.yaml").read_text()
    assert {"stem", "stages.0"} <= moved_parts(weights_file, result.model_path)


def test_too_many_frozen_layers(class_folder: Path, weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.frozen_layers=19 leaves nothing.* 18 layers before its last"):
        fit(run(class_folder, weights_file, "training.frozen_layers=19"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fit(run(class_folder, weights_file, "training.frozen_layers=18", "trainer.max_steps=1"), tmp_path / "last")


@pytest.mark.parametrize(("name", "count"), [("efficientnet_b0", 6), ("efficientnet_b2", 9), ("resnet50", 0)])
def test_early_layers(name: str, count: int) -> None:
    assert early_layers(create_model(name, 3)) == count


def test_what_belongs_to_no_layer_is_frozen_with_the_first() -> None:
    """Such as the positions, which come before all blocks."""
    network = create_model("vit_b_16", 3, image_size=32)
    freeze_layers(network, 0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    freeze_layers(network, len(layers(network)) - 1)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"heads.head.1.weight", "heads.head.1.bias"}


@pytest.mark.parametrize("setting", ["strategy=probe", "batchnorm=frozen", "head_first=on", "frozen_layers=3"])
def test_random_weights_have_nothing_to_keep(setting: str, class_folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs.* weights.*model\.weights"):
        compose(f"data.dir={class_folder}", *TINY, "model.weights=none", f"training.{setting}")
