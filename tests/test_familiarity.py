"""Images unlike the training ones: the share outside their directions, a threshold that keeps its promise, a file with
both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from effnet_lit.deploy.predict import predict
from effnet_lit.evaluation import familiarity
from effnet_lit.evaluation.familiarity import fit_familiarity, unlike_above
from effnet_lit.model.modelfile import Header, ImageClassifier, load_model, write_model
from effnet_lit.model.weights import load_weights
from effnet_lit.model.zoo import create_model

FEATURES = 40


@pytest.fixture(autouse=True)
def five_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiarity, "DIRECTIONS", 5)


def drawn(count: int, seed: int) -> torch.Tensor:
    """Features that differ mostly in five directions, and a little in all."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(99))
    return 3 + torch.randn(count, 5, generator=draw) @ wide + 0.3 * torch.randn(count, FEATURES, generator=draw)


def test_the_share_is_what_sklearns_pca_leaves() -> None:
    train, asked = drawn(500, 0), drawn(20, 1)
    pca = PCA(5).fit(train.double().numpy())
    centred = asked.double().numpy() - pca.mean_
    left = centred - pca.transform(asked.double().numpy()) @ pca.components_
    expected = (left**2).sum(1) / (centred**2).sum(1)
    assert fit_familiarity(train)(asked).numpy() == pytest.approx(expected, abs=1e-5)


def test_few_like_the_training_ones_are_flagged_and_all_others_are() -> None:
    found = fit_familiarity(drawn(1000, 0))
    least = unlike_above(found(drawn(2000, 1)))
    flagged = float((found(drawn(4000, 2)) > least).float().mean())
    assert flagged == pytest.approx(familiarity.FALSE_ALARMS, abs=0.015)
    others = 3 + torch.randn(100, FEATURES, generator=torch.Generator().manual_seed(3))
    assert (found(others) > least).all()


def test_strength_does_not_matter() -> None:
    found = fit_familiarity(drawn(1000, 0))
    asked = drawn(20, 1)
    fainter = found.mean + 0.1 * (asked - found.mean)
    assert found(fainter).numpy() == pytest.approx(found(asked).numpy(), abs=1e-4)


def test_few_images_are_survived() -> None:
    found = fit_familiarity(drawn(2, 0))
    assert torch.isfinite(found(drawn(5, 1))).all() and torch.isfinite(found(found.mean[None])).all()
    assert unlike_above(torch.tensor([3.0, 1.0, 2.0])) == 3.0
    assert unlike_above(torch.arange(1.0, 200.0)) == 190.0  # of 199: rank 200 * 0.95


def test_the_model_file_carries_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("efficientnet_b0", 2)
    header = Header(network.architecture, ["a", "b"], 32, 32, [0.5] * 3, [0.5] * 3)  # type: ignore[arg-type]
    classifier = ImageClassifier(network, header).eval()
    write_model(tmp_path / "without.safetensors", classifier)
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    with torch.inference_mode():
        probabilities, features = classifier.with_features(torch.from_numpy(noise))
        assert torch.equal(probabilities, classifier(torch.from_numpy(noise)))
    classifier.familiarity = fit_familiarity(features)
    limit = unlike_above(classifier.familiarity(features))
    classifier.header = replace(header, calibration={"temperature": 1.0, "unlike_above": limit})
    write_model(tmp_path / "with.safetensors", classifier)
    Image.fromarray(noise[0]).save(tmp_path / "noise.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    asked = [tmp_path / "noise.png", tmp_path / "white.png"]
    answers = [item.unlike for item in predict(load_model(tmp_path / "with.safetensors"), asked)]
    assert answers == [False, True]
    assert not any(item.unlike for item in predict(load_model(tmp_path / "without.safetensors"), asked))
    again = load_weights(str(tmp_path / "with.safetensors"), "efficientnet_b0")
    assert set(again.state) == set(network.state_dict())
