"""AutoGluon's part of ``fine_tuning_runs``, run by a Python that has AutoGluon, which does not take the PyTorch of this
project: from timm's Lite0 with the weights in a file. Its last line are the figures, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast


def main(parts: str, size: int, epochs: int, seed: int, settings: dict[str, Any], weights: str) -> dict[str, Any]:
    """Its medium quality, for the one network, at the size of the others, for at most as many epochs: it stops early
    where the validation part gets no better. How many it trained it does not tell, so no speed."""
    with_weights_from(weights)
    predictor_of = cast(Any, import_module("autogluon.multimodal")).MultiModalPredictor
    train, val, test = (table_of(Path(parts, part)) for part in ("train", "val", "test"))
    given = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": "tf_efficientnet_lite0",
        "model.timm_image.image_size": size,
        "optim.max_epochs": epochs,
        "env.accelerator": "cpu",
        "env.num_gpus": 0,
        "env.precision": "32",
    }
    with tempfile.TemporaryDirectory() as folder:
        predictor = predictor_of(
            label="label",
            problem_type="multiclass",
            eval_metric="accuracy",
            presets="medium_quality",
            path=str(Path(folder, "run")),
        )
        predictor.fit(train, tuning_data=val, seed=seed, hyperparameters=given | settings)
        right = [float((predictor.predict(part[["image"]]) == part["label"]).mean()) for part in (val, test)]
    return {
        "val": right[0],
        "test": right[1],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "images": len(test),
        "versions": {name: version(name) for name in ("autogluon.multimodal", "timm", "torch")},
    }


def with_weights_from(file: str) -> None:
    """timm's pretrained networks, as AutoGluon makes them, are read from there."""
    module = cast(Any, import_module("autogluon.multimodal.models.timm_image"))
    made = module.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"pretrained_cfg_overlay": {"file": file}} if pretrained else {}
        return made(name, pretrained=pretrained, **overlay, **options)

    module.create_model = create_model


def table_of(folder: Path) -> Any:
    """Images and labels of class folders."""
    files = sorted(folder.glob("*/*"))
    rows = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    return cast(Any, import_module("pandas")).DataFrame(rows)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
