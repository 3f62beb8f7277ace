"""What an answer costs where the model will run: time of one core for one image."""

from __future__ import annotations

from timeit import Timer

import torch

from effnet_lit.model.modelfile import ImageClassifier

MOST_CALLS, ABOUT_SECONDS = 10, 1.0


@torch.inference_mode()
def image_seconds(classifier: ImageClassifier) -> float:
    """Seconds of one core for an image, by PyTorch, of a classifier on the CPU: the fastest of up to ten calls, which
    other programs delay least."""
    size = classifier.header.eval_size
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timer = Timer(lambda: classifier(image))
        calls = max(1, min(MOST_CALLS, int(ABOUT_SECONDS / timer.timeit(1))))  # the first call also prepares
        return min(timer.repeat(calls, 1))
    finally:
        torch.set_num_threads(threads)
