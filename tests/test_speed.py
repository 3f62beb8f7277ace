"""The time for an image: more for larger ones, and nothing is changed by measuring it."""

from __future__ import annotations

import torch

from effnet_lit.evaluation.speed import image_seconds
from effnet_lit.model.modelfile import Header, ImageClassifier
from effnet_lit.model.zoo import create_model


def test_larger_images_take_longer_and_threads_stay() -> None:
    network = create_model("mobilenet_v3_small", 3).eval()

    def classifier(size: int) -> ImageClassifier:
        return ImageClassifier(network, Header({}, list("abc"), size, size, [0.5] * 3, [0.5] * 3)).eval()

    threads = torch.get_num_threads()
    assert 0 < 2 * image_seconds(classifier(32)) < image_seconds(classifier(512))  # 256 times the pixels
    assert torch.get_num_threads() == threads
