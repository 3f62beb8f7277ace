"""What an answer costs where the model will run: time of one core for one image."""

from __future__ import annotations

import time

import torch

from effnet_lit.model.modelfile import ImageClassifier

MOST_CALLS, MOST_SECONDS = 10, 1.0


@torch.inference_mode()
def image_seconds(classifier: ImageClassifier) -> float:
    """Seconds of one core for a classifier on the CPU, by PyTorch: the fastest of up to ten calls, which other programs
    delay least."""
    size = classifier.header.eval_size
    image, times = torch.zeros(1, size, size, 3, dtype=torch.uint8), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        classifier(image)  # the first call also prepares
        begin = time.perf_counter()
        while len(times) < MOST_CALLS and (not times or time.perf_counter() - begin < MOST_SECONDS):
            start = time.perf_counter()
            classifier(image)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)
