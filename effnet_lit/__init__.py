"""Train EfficientNet on a folder of images. The four names load on first use, so importing this stays light."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from effnet_lit.machine import cores, quota

if TYPE_CHECKING:
    from effnet_lit.composition import compose
    from effnet_lit.model.modelfile import load_model
    from effnet_lit.model.zoo import create_model
    from effnet_lit.training.fit import fit

__version__ = "0.1.0"
__all__ = ["compose", "create_model", "fit", "load_model"]

_HOMES = {"compose": "composition", "create_model": "model.zoo", "fit": "training.fit", "load_model": "model.modelfile"}

# A container with time on two cores of many gets two threads, not many that stop each other.
if 0 < quota() < (os.cpu_count() or 1):
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
# torch's threads wait for each other by spinning, which starves them where another program wants the same cores. To be
# read by its OpenMP, this must stand here before torch is imported (docs/decisions/training_step.md).
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'effnet_lit' has no attribute {name!r}")
    return getattr(import_module(f"effnet_lit.{_HOMES[name]}"), name)
