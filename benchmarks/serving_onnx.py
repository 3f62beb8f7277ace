"""An export behind FastAPI, by the README's lines: ``python -m benchmarks.serving_onnx MODEL PORT``."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from benchmarks.serving_route import serve

if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

    def answer(content: bytes) -> dict[str, Any]:
        """A whole photograph into the file."""
        image = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
        probabilities = np.asarray(session.run(["probabilities"], {"image": image[None]})[0])[0]
        return {"class": names[probabilities.argmax()], "probability": float(probabilities.max())}

    serve(answer, int(sys.argv[2]))
