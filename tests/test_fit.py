"""Whole runs on small folders: what they leave, that they repeat, that they go on after a stop."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import images
import pytest
import torch
import yaml
from safetensors.torch import load_file

from effnet_lit import compose, fit, load_model
from effnet_lit.config import Config, UserError
from effnet_lit.training.checkpoint import LAST

TINY = ("limits=off", "epochs=2", "batch_size=16", "data.image_size=32", "model.weights=none", "seed=3")


def tiny(folder: Path, *overrides: str) -> Config:
    """A run of seconds on the fixture's folder; later overrides win."""
    keys = {override.split("=")[0] for override in overrides}
    return compose(f"data.dir={folder}", *(o for o in TINY if o.split("=")[0] not in keys), *overrides)


@pytest.fixture(scope="module")
def finished(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished tiny run."""
    return fit(tiny(class_folder), tmp_path_factory.mktemp("runs") / "first").run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's model file."""
    return load_file(run_dir / "model.safetensors")


def metrics(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "model.safetensors", "result.json", "metrics.csv", "config.yaml", "audit.json",
        "learning_curves.png", "confusion_matrix.png", "test_predictions.csv", "checkpoints",
    }  # fmt: skip
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    low, high = result["test"]["accuracy_ci95"]
    assert 0 <= low <= result["test"]["accuracy"] <= high <= 1
    assert result["test"]["images"] == result["images"]["test"] == 24
    assert result["baseline_accuracy"] == pytest.approx(1 / 3)
    assert 0 < result["image_seconds"] < 1
    assert result["model_bytes"] == (finished / "model.safetensors").stat().st_size
    assert result["seconds"] > result["seconds_training"] > 0
    rows = metrics(finished)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row[key]) >= 0 for row in rows for key in row)


def test_settings_hold_no_auto(finished: Path) -> None:
    text = (finished / "config.yaml").read_text(encoding="utf-8")
    assert "auto" not in text
    assert yaml.safe_load(text)["data"]["eval_size"] == 32


def test_latest_points_to_the_run(finished: Path) -> None:
    assert (finished.parent / "latest").resolve() == finished.resolve()


def test_the_model_file_explains_itself(finished: Path) -> None:
    header = load_model(finished / "model.safetensors").header
    assert header.class_names == ["blue", "green", "red"]
    assert (header.image_size, header.eval_size) == (32, 32)
    assert header.metrics["test"]["images"] == 24


def test_same_seed_same_weights_whatever_the_workers(finished: Path, class_folder: Path, tmp_path: Path) -> None:
    again = fit(tiny(class_folder, "data.workers=2"), tmp_path / "again").run_dir
    assert equal(weights(finished), weights(again))
    other = fit(tiny(class_folder, "seed=4"), tmp_path / "other").run_dir
    assert not equal(weights(finished), weights(other))


def test_gradient_checkpointing_gives_the_same_weights(finished: Path, class_folder: Path, tmp_path: Path) -> None:
    again = fit(tiny(class_folder, "model.gradient_checkpointing=blocks"), tmp_path / "again").run_dir
    assert equal(weights(finished), weights(again))


@pytest.mark.parametrize("steps", [3, 5])  # 5 steps an epoch: in its middle, and at its end
def test_a_stopped_run_goes_on_to_the_same_weights(
    finished: Path, class_folder: Path, tmp_path: Path, steps: int
) -> None:
    run_dir = tmp_path / "run"
    stopped = stopped_at(steps, tmp_path, f"data.dir={class_folder}", *TINY, f"hydra.run.dir={run_dir}")
    assert stopped.returncode == 130, stopped.stderr
    assert f"saved after step {steps}" in stopped.stderr
    assert f"resume={run_dir}" in stopped.stderr
    assert not (run_dir / "model.safetensors").exists()
    checkpoint = torch.load(run_dir / "checkpoints" / LAST, weights_only=True)
    checkpoint["callbacks"]["DataWait"]["seconds"] += 1000
    torch.save(checkpoint, run_dir / "checkpoints" / LAST)
    resumed = fit(compose(f"resume={run_dir}"), tmp_path / "unused")
    assert resumed.run_dir == run_dir
    assert equal(weights(finished), weights(run_dir))
    stored = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    assert len(stored["data_wait_by_epoch"]) == 2 and max(stored["data_wait_by_epoch"]) < 0.9
    assert 1000 < resumed.seconds < 1100
    rows = metrics(run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_a_stopped_run_from_weights_keeps_as_loaded_what_is_not_trained(
    finished: Path, class_folder: Path, tmp_path: Path
) -> None:
    start = finished / "model.safetensors"
    others = (override for override in TINY if not override.startswith("model.weights"))
    settings = f"data.dir={class_folder}", *others, f"model.weights={start}"
    whole = fit(compose(*settings), tmp_path / "whole").run_dir
    before, after = load_file(start), weights(whole)
    assert not any("running" in name for name in before if not torch.equal(before[name], after[name]))
    run_dir = tmp_path / "run"
    assert stopped_at(3, tmp_path, *settings, f"hydra.run.dir={run_dir}").returncode == 130
    assert equal(weights(whole), weights(fit(compose(f"resume={run_dir}"), tmp_path / "unused").run_dir))


def stopped_at(steps: int, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run that Ctrl-C meets in that step."""
    script = folder / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from effnet_lit.training.module import Classifier\n"
        "from effnet_lit.train_command import main\n"
        "inner = Classifier.training_step\n"
        "def step(self, batch, index):\n"
        f"    if self.global_step == {steps - 1}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return inner(self, batch, index)\n"
        "Classifier.training_step = step\n"
        "main()\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), *overrides]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_cut_off_after_its_last_epoch_still_ends_in_the_averaged_weights(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "cut off"
    shutil.copytree(finished, run_dir)
    (run_dir / "model.safetensors").unlink()
    assert equal(weights(finished), weights(fit(compose(f"resume={run_dir}"), tmp_path / "unused").run_dir))
    with pytest.raises(UserError, match="is finished"):
        compose(f"resume={run_dir}")


def test_no_run_is_written_over(finished: Path, class_folder: Path) -> None:
    before = (finished / "model.safetensors").stat().st_mtime_ns
    again = fit(tiny(class_folder, "epochs=1"), finished).run_dir
    assert again.name == f"{finished.name}-2"
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_killed_while_saving_leaves_a_readable_checkpoint(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from effnet_lit.training.checkpoint import AtomicCheckpointIO\n"
        "for i in range(10**6):\n"
        "    state = {'number': i, 'values': torch.full((200_000,), float(i))}\n"
        "    AtomicCheckpointIO().save_checkpoint(state, Path(sys.argv[1]))\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / LAST
    root = Path(__file__).resolve().parent.parent
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for kept in (path, path.with_name("previous.ckpt")):
            if kept.exists():
                state = torch.load(kept, weights_only=True)
                assert (state["values"] == state["number"]).all()


def test_a_dirty_folder_ends_in_a_trained_model(class_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos, and more"
    shutil.copytree(class_folder, folder)
    for name, write in (images.READABLE | images.READABLE_GREY).items():
        write(folder / "red" / name)
    for name, (write, _) in images.UNREADABLE.items():
        write(folder / "green" / name)
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("stray", encoding="utf-8")
    (folder / "blue" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "single").mkdir()
    images.noise(folder / "single" / "the only one.png", 1)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    config = tiny(class_folder, "epochs=1")
    config.data.dir = str(folder)
    result = fit(config, tmp_path / "run")
    audit = json.loads((result.run_dir / "audit.json").read_text(encoding="utf-8"))
    told = [item for finding in audit["findings"] if finding["severity"] == "error" for item in finding["items"]]
    assert {Path(path).name for item in told for path in item["paths"]} == set(images.UNREADABLE)
    assert audit["classes"]["single"] == {"train": 1, "val": 0, "test": 0}
    assert "truncated.jpg" in (result.run_dir / "audit.html").read_text(encoding="utf-8")
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before, "the user's files were touched"


@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_uneven_classes_are_balanced(class_folder: Path, tmp_path: Path, balance: str) -> None:
    folder = tmp_path / "uneven"
    shutil.copytree(class_folder, folder)
    for path in sorted((folder / "red").iterdir())[8:]:
        path.unlink()
    plain, balanced = (
        fit(tiny(folder, "epochs=1", f"data.balance={kind}"), tmp_path / kind).run_dir for kind in ("none", balance)
    )
    assert not equal(weights(plain), weights(balanced))


def test_a_model_that_learnt_nothing_suspects_no_labels(class_folder: Path, tmp_path: Path) -> None:
    config = tiny(class_folder, "epochs=1", "learning_rate=1e-8")
    audit = json.loads((fit(config, tmp_path / "run").run_dir / "audit.json").read_text(encoding="utf-8"))
    assert "likely_wrong_label" not in {finding["kind"] for finding in audit["findings"]}


def test_early_stopping_stops(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(class_folder, "epochs=12", "learning_rate=1e-12", "training.early_stopping=1")
    run_dir = fit(config, tmp_path / "run").run_dir
    rows = metrics(run_dir)
    assert len(rows) < 12
    assert f"Stopped early after {len(rows)} of 12 epochs" in capsys.readouterr().out


def test_a_run_is_not_resumed_on_other_images(finished: Path, class_folder: Path, tmp_path: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / class_folder.name
    shutil.copytree(finished, run_dir)
    (run_dir / "model.safetensors").unlink()
    shutil.copytree(class_folder, folder)
    moved = fit(compose(f"resume={run_dir}", f"data.dir={folder}"), tmp_path / "unused").run_dir
    assert equal(weights(finished), weights(moved))
    (run_dir / "model.safetensors").unlink()
    parts = (run_dir / "split.csv").read_text(encoding="utf-8")
    (run_dir / "split.csv").write_text(parts.replace("red,val", "red,train", 1), encoding="utf-8")
    with pytest.raises(UserError, match="their split have changed"):
        fit(compose(f"resume={run_dir}"), tmp_path / "unused")
    (run_dir / "split.csv").write_text(parts, encoding="utf-8")
    next((folder / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="have changed since that run began"):
        fit(compose(f"resume={run_dir}", f"data.dir={folder}"), tmp_path / "unused")


def test_a_diverged_run_leaves_no_model(class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged.*try learning_rate="):
        fit(tiny(class_folder, "learning_rate=1e3"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=0", "nothing to train"),
        ("trainer.limit_train_batches=0", "nothing to train"),
        ("trainer.limit_train_batches=abc", "must be a number"),
        ("trainer.accumulate_grad_batches=0", "must be a number from 1 up"),
    ],
)
def test_a_schedule_without_steps_is_one_sentence(
    class_folder: Path, tmp_path: Path, override: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        fit(tiny(class_folder, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_without_validation_have_no_validation_figures(class_folder: Path, tmp_path: Path) -> None:
    config = tiny(class_folder, "epochs=3", "trainer.check_val_every_n_epoch=2")
    rows = metrics(fit(config, tmp_path / "run").run_dir)
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False]


def test_what_lightning_refuses_is_one_sentence_and_leaves_nothing(class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.\* has a value that Lightning refuses"):
        fit(tiny(class_folder, "trainer.precision=nonsense"), tmp_path / "run")
    with pytest.raises(UserError, match=r"use one of: auto, gpu, mps, cpu"):
        fit(tiny(class_folder, "trainer.accelerator=quantum"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fit_leaves_the_callers_config_alone(class_folder: Path, tmp_path: Path) -> None:
    config = tiny(class_folder, "epochs=1")
    fit(config, tmp_path / "run")
    assert config == tiny(class_folder, "epochs=1")


def test_wandb_that_does_not_start_is_one_sentence_and_leaves_nothing(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(*args: object, **options: object) -> None:
        (tmp_path / "run" / "wandb" / "run-1").mkdir(parents=True)
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb fails \(No API key configured\); run wandb login"):
        fit(tiny(class_folder, "log.wandb=online"), tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
def test_wandb_offline_needs_no_account(class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = fit(tiny(class_folder, "epochs=1", "log.wandb=offline"), tmp_path / "run").run_dir
    assert list(run_dir.glob("wandb/offline-run-*"))
