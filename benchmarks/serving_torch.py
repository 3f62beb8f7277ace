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

    @torch.inference_mode()
    def answer(self, content: bytes) -> dict[str, Any]:
        """About an image file."""
        image = self.prepare(Image.open(io.BytesIO(content)).convert("RGB"))  # (3, S, S)
        value, index = self.classifier.network(image[None]).softmax(1)[0].max(0)
        return {"class": self.classifier.header.class_names[int(index)], "probability": float(value)}


if __name__ == "__main__":
    serve(Usual(sys.argv[1], int(sys.argv[3])).answer, int(sys.argv[2]))
