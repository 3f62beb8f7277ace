"""An exported model: read and asked without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from effnet_lit.commands import typed
from effnet_lit.config import UserError

HEADER, CLASSES = "effnet_lit", "classes"  # keys in the file's metadata: the model file's header, and names


class Output(NamedTuple):
    """Of one image: probabilities (classes), whether the best one is sure, whether the image is unlike training's."""

    probabilities: np.ndarray
    sure: bool
    unlike: bool

    @property
    def verdict(self) -> tuple[int, bool, bool]:
        """The class and the doubts."""
        return int(self.probabilities.argmax()), self.sure, self.unlike


def ask(session: onnxruntime.InferenceSession, image: np.ndarray) -> Output:
    """About one image: uint8 (H, W, 3), upright RGB."""
    probabilities, sure, unlike = (np.asarray(output)[0] for output in session.run(None, {"image": image[None]}))
    return Output(probabilities, bool(sure), bool(unlike))


class OnnxModel:
    """A file that ``effnet export`` wrote, to be asked about ``threads`` images at once.

    Raises:
        UserError: ONNX Runtime cannot load it, or another program wrote it.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            self.beside = session_of(path, 1)  # other images: each computes with one thread
            self.alone = self.beside if threads == 1 else session_of(path, threads)
        except Exception as error:  # ONNX Runtime's errors share no class
            raise UserError(f"{path} is no ONNX file ({error}); give one written by effnet export.") from error
        texts = self.beside.get_modelmeta().custom_metadata_map
        if HEADER not in texts:
            raise UserError(f"{path} was not written by effnet export; give one that was.")
        self.header: dict[str, Any] = json.loads(texts[HEADER])
        self.class_names: list[str] = self.header["class_names"]
        self.size, self.resize = int(self.header["eval_size"]), str(self.header["resize"])
        for session in (self.alone, self.beside):  # the first answer is slow
            ask(session, np.zeros((self.size, self.size, 3), np.uint8))


def session_of(source: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """A file or its content, loaded; 0 threads an image are as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def exported_file(path: Path) -> Path:
    """The ONNX file itself, where a run folder or a model file was given.

    Raises:
        UserError: there is none, and how to write it.
    """
    if path.suffix == ".onnx" and path.is_file():
        return path
    folder, stem = (path, "model") if path.is_dir() else (path.parent, path.stem)
    for name in (f"{stem}.onnx", f"{stem}-small.onnx"):
        if (folder / name).is_file():
            return folder / name
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder, or a model.onnx.")
    raise UserError(f"{path} has not been exported; write its model.onnx with: {typed('effnet export', path)}")
