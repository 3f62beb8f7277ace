"""The share of time that steps wait for their data is measured: a slow loader shows, a fast one does not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from effnet_lit.composition import compose
from effnet_lit.data.datamodule import Gather
from effnet_lit.training.fit import fit


def share(class_folder: Path, run_dir: Path) -> float:
    config = compose(
        f"data.dir={class_folder}",
        "preset=medium",
        "data.image_size=32",
        "batch_size=8",
        "epochs=5",
        "model.weights=none",
        "limits=off",
        "trainer.limit_train_batches=4",
        "trainer.accelerator=cpu",
    )
    result = fit(config, run_dir)
    stored = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["data_wait_share"]
    assert stored == result.data_wait
    return result.data_wait


def test_a_slow_loader_shows(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = share(class_folder, tmp_path / "fast")
    assert 0 < fast < 0.3
    assert f"{fast:.1%} of the training time was spent waiting" in capsys.readouterr().out
    gather = Gather.__getitem__

    def slowly(self: Gather, batch: object) -> object:
        time.sleep(0.5)
        return gather(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Gather, "__getitem__", slowly)
    assert share(class_folder, tmp_path / "slow") > 0.5
    assert "Try      data.workers=4" in capsys.readouterr().out
