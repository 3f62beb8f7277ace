"""Checkpoints that survive a crash while they are written, and a stop by Ctrl-C that loses nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from effnet_lit.config import UserError
from effnet_lit.data.prepare import PreparedData
from effnet_lit.data.split_file import SPLIT, read_split

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class StoppedByUser(Exception):
    """Ctrl-C was pressed; the text says how much is saved."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a reader finds the old file or the new one, never half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.unfinished")
        with open(unfinished, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.replace(target, target.with_name(PREVIOUS))
        os.replace(unfinished, target)
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can (Windows cannot)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def checkpoint_to_resume(run_dir: Path, data: PreparedData) -> Path:
    """The newest checkpoint of a run.

    Raises:
        UserError: there is none, or the images are not those that the run began with: they would be split anew, and
            some that were trained on would be held out.
    """
    audit = json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))
    same_parts = read_split(run_dir / SPLIT) == dict(zip(data.paths, data.splits.tolist(), strict=True))
    if audit["fingerprint"] != data.fingerprint or not same_parts:
        raise UserError(
            f"resume={run_dir}: the images in {data.root} or their split have changed since that run began; "
            "put them back, or start a new run."
        )
    for name in (LAST, PREVIOUS):
        path = run_dir / "checkpoints" / name
        if path.is_file():
            return path
    raise UserError(f"resume={run_dir} has no checkpoint to go on from (checkpoints/{LAST}); start the run again.")


class KeepLast(Callback):
    """Saves after every epoch, and between two steps when Ctrl-C is pressed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LAST
        self.stop_asked = False
        self.trained = False
        self.former_handler: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self.former_handler = signal.signal(signal.SIGINT, self.ask_to_stop)
        except ValueError:  # not the main thread: the notebook's own interrupt stays
            self.former_handler = None

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_asked:  # pressed again: now, without saving
            raise StoppedByUser("Stopped; what was learned up to the end of the last epoch is saved.")
        self.stop_asked = True
        print("\nStopping after this step (press Ctrl-C again to stop at once) ...", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Here every counter stands at the last finished batch; at a batch's end Lightning has not counted it yet.
        if self.stop_asked and batch_idx % trainer.accumulate_grad_batches == 0:  # half a sum of gradients is not saved
            trainer.save_checkpoint(self.path)
            raise StoppedByUser(f"Stopped and saved after step {trainer.global_step}.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.former_handler is not None:
            signal.signal(signal.SIGINT, self.former_handler)
