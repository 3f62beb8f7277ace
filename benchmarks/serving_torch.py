"""A network behind FastAPI by PyTorch, as users do it: ``python -m benchmarks.serving_torch MODEL PORT THREADS``.

Photographs are opened and resized as the libraries' own examples do, by Pillow and torchvision.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.serving_route import serve
from effnet_lit import load_model
from effnet_lit.model.modelfile import ImageClassifier


class Usual:
    """Decode, transform, network, softmax; each image's network with so many threads."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.classifier: ImageClassifier = load_model(model)
        header = self.classifier.header
        self.prepare = v2.Compose(
            [
                v2.Resize((header.eval_size, header.eval_size), antialias=True),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(header.mean, header.std),
            ]
        )

    def opened(self, content: bytes) -> torch.Tensor:
        """(1, 3, S, S)."""
        return self.prepare(Image.open(io.BytesIO(content)).convert("RGB"))[None]

    @torch.inference_mode()
    def answers(self, images: torch.Tensor) -> list[dict[str, Any]]:
        """(N, 3, S, S)."""
        values, classes = self.classifier.network(images).softmax(1).max(1)
        names = self.classifier.header.class_names
        pairs = zip(values.tolist(), classes.tolist(), strict=True)
        return [{"class": names[index], "probability": value} for value, index in pairs]


if __name__ == "__main__":
    usual = Usual(sys.argv[1], int(sys.argv[3]))
    serve(lambda content: usual.answers(usual.opened(content))[0], int(sys.argv[2]))
