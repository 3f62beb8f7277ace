"""The doctor: each fault is told with its override, weak evidence and healthy runs are not."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from effnet_lit import compose, fit
from effnet_lit.cli import app
from effnet_lit.config import Config, UserError
from effnet_lit.data.prepare import PreparedData, prepare
from effnet_lit.evaluation.advice import Advice
from effnet_lit.evaluation.doctor import WHILE_TRAINING, diagnose
from effnet_lit.evaluation.evidence import Evidence, read_evidence
from effnet_lit.evaluation.gather_evidence import copies_held_out, mirror_pairs
from effnet_lit.evaluation.metrics import wilson_interval

NAMES = tuple("abcdefghij")


def healthy(*settings: str, train: float = 0.97, test: float = 0.93, images: int = 1400) -> Evidence:
    """A run of ten classes, 400 held out, that nothing is wrong with."""
    config = compose("preset=medium", "model.weights=none", "data.image_size=64", *settings)
    config.training.micro_batch, config.data.workers, config.data.cache = config.batch_size, 0, "disk"
    found = round(test * 40)
    result: dict[str, Any] = {
        "test": {
            "accuracy": test,
            "accuracy_ci95": wilson_interval(round(test * 400), 400),
            "images": 400,
            "per_class": {name: {"recall": found / 40, "images": 40} for name in NAMES},
        },
        "val": {"accuracy": test, "accuracy_ci95": wilson_interval(round(test * 200), 200)},
        "baseline_accuracy": 0.1,
        "training_sample": {
            "images": 400,
            "right": round(train * 400),
            "accuracy": round(train * 400) / 400,
            "contradicted": 2,
        },
        "training_images": dict.fromkeys(NAMES, images // 10),
        "copies_held_out": {"images": 1, "right": 1},
        "mirror_pairs": [],
        "images": {"train": images, "val": 200, "test": 400},
        "class_names": list(NAMES),
        "data_wait_share": 0.01,
        "data_wait_by_epoch": [0.02, 0.01],
        "seconds_training": 200.0,
        "peak_memory_bytes": 1.4e9,
        "gpu_peak_memory_bytes": None,
        "device_memory_bytes": 8e9,
    }
    epochs = [{"train/loss": 2 / n, "val/loss": 2 / n} for n in range(1, 19)]
    return Evidence(config, result, epochs)


def kinds(seen: Evidence) -> list[str]:
    return [advice.kind for advice in diagnose(seen)]


def changed(seen: Evidence, **facts: Any) -> Evidence:
    return replace(seen, result={**seen.result, **facts})


def rare(seen: Evidence, kept: int, found: float) -> Evidence:
    """Few training images of class a, and the share of it that is found."""
    per_class = seen.result["test"]["per_class"] | {"a": {"recall": found, "images": 40}}
    counts = seen.result["training_images"] | {"a": kept}
    return changed(seen, training_images=counts, test=seen.result["test"] | {"per_class": per_class})


def trained_with(seen: Evidence, **training: Any) -> Evidence:
    """The same run with other settings under ``training``."""
    return replace(seen, config=replace(seen.config, training=replace(seen.config.training, **training)))


def contradicted(seen: Evidence, images: int) -> Evidence:
    return changed(seen, training_sample=seen.result["training_sample"] | {"contradicted": images})


def mirrors(taken: int) -> Evidence:
    pair = {"classes": ["a", "b"], "taken": taken, "images": 80}
    return changed(healthy("data.horizontal_flip=on"), mirror_pairs=[pair])


def loaded(preview: float, train: float, test: float) -> Evidence:
    """Fine-tuned, with what the last layer alone got right of 200 images."""
    seen = healthy("model.weights=imagenet", train=train, test=test)
    seen.config.training.layer_decay, seen.config.training.batchnorm = 0.9, "frozen"
    interval = wilson_interval(round(preview * 200), 200)
    return changed(seen, preview={"accuracy": preview, "interval": interval, "images": 200, "seconds": 9.0})


def restless(seen: Evidence, times: int) -> Evidence:
    """Validation loss above that of guessing in so many epochs."""
    return replace(seen, epochs=[{"val/loss": math.log(10) + 0.1 if n < times else 0.5} for n in range(-1, 17)])


FAULTS: dict[str, Callable[[], Evidence]] = {
    "leakage": lambda: changed(healthy(), copies_held_out={"images": 60, "right": 60}),
    "label_noise": lambda: contradicted(healthy(train=0.7, test=0.6), 70),
    "frozen": lambda: trained_with(healthy(train=0.4, test=0.35), strategy="probe"),
    "rate_low": lambda: healthy("learning_rate=1e-5", "limits=off", train=0.3, test=0.3),
    "rate_high": lambda: healthy("learning_rate=0.03", "limits=off", train=0.5, test=0.5),
    "few_steps": lambda: replace(healthy("epochs=5", train=0.3, test=0.3, images=700), epochs=[{"val/loss": 1.0}] * 5),
    "few_steps and half learnt": lambda: replace(
        healthy("epochs=1", "limits=off", train=0.55, test=0.5), epochs=[{"val/loss": 1.0}]
    ),
    "model_small": lambda: healthy(train=0.4, test=0.35, images=40_000),
    "underfitting": lambda: healthy(train=0.4, test=0.38),
    "distant_weights": lambda: loaded(0.2, train=0.6, test=0.3),
    "forgetting": lambda: loaded(0.9, train=0.97, test=0.8),
    "forgetting with moving statistics": lambda: trained_with(loaded(0.9, train=0.97, test=0.8), batchnorm="train"),
    "overfitting": lambda: healthy(train=0.99, test=0.7),
    "overfitting without augmentation": lambda: healthy("augmentation=none", train=1.0, test=0.92),
    "few_images": lambda: rare(healthy(), 20, 0.4),
    "imbalance": lambda: rare(healthy(images=8000), 60, 0.4),
    "label_changing_augmentation": lambda: mirrors(30),
    "data_slow": lambda: changed(healthy(), data_wait_share=0.4, data_wait_by_epoch=[0.38, 0.42]),
    "compute_slow": lambda: changed(healthy("data.image_size=224"), seconds_training=7200.0),
    "memory_edge": lambda: changed(healthy(), peak_memory_bytes=7.8e9),
    "memory_idle": lambda: trained_with(healthy(), micro_batch=8),
    "wrong_preset": lambda: healthy("preset=small", "augmentation=heavy", train=0.9, test=0.88, images=15_000),
}
WEAK: dict[str, Callable[[], Evidence]] = {
    "nothing": healthy,
    "two near-duplicates in a large set": lambda: changed(healthy(), copies_held_out={"images": 6, "right": 6}),
    "a few contradictions": lambda: contradicted(healthy(), 30),
    "a hard task, half learnt": lambda: healthy(train=0.65, test=0.58),
    "few steps, and learnt all the same": lambda: replace(
        healthy("epochs=5", train=0.93, test=0.9, images=700), epochs=[{"val/loss": 0.3}] * 5
    ),
    "a good model at an unusual rate": lambda: healthy("learning_rate=0.02", "limits=off", train=1.0, test=0.99),
    "weights that tell little, and learnt all the same": lambda: loaded(0.2, train=0.97, test=0.93),
    "a little less than the last layer alone": lambda: loaded(0.83, train=0.97, test=0.79),
    "weights that tell much": lambda: loaded(0.65, train=0.65, test=0.6),
    "a small gap": lambda: healthy(train=0.99, test=0.86),
    "few images, found all the same": lambda: rare(healthy(), 20, 0.93),
    "one epoch above guessing": lambda: restless(healthy(train=0.65, test=0.6), 1),
    "worse than guessing for long, and the training images learnt": lambda: restless(healthy(train=0.99, test=0.85), 9),
    "waiting in the first epoch alone": lambda: changed(
        healthy(), data_wait_share=0.2, data_wait_by_epoch=[0.39, 0.01]
    ),
    "memory half full": lambda: changed(healthy(), peak_memory_bytes=4e9),
    "two pairs mixed up by mirroring": lambda: mirrors(6),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_told_alone(kind: str) -> None:
    assert kinds(FAULTS[kind]()) == [kind.split()[0]]


@pytest.mark.parametrize("case", WEAK)
def test_weak_evidence_is_not_told(case: str) -> None:
    assert kinds(WEAK[case]()) == []


@pytest.mark.parametrize("kind", FAULTS)
def test_what_to_type_can_be_typed(kind: str) -> None:
    (advice,) = diagnose(FAULTS[kind]())
    assert any(letter.isdigit() for letter in advice.evidence) and advice.gain
    if kind != "few_images":  # more images are nothing to type
        compose("model.weights=imagenet", *shlex.split(advice.override))


@pytest.mark.parametrize(
    ("images", "epochs", "override"),
    [
        (1400, 1, "epochs=10"),
        (1400, 5, "epochs=10"),
        (160, 18, "epochs=50 batch_size=8"),
        (700, 18, "epochs=36"),
        (40, 300, "add images"),
    ],
)
def test_enough_steps_are_advised(images: int, epochs: int, override: str) -> None:
    seen = healthy(f"epochs={epochs}", "limits=off", train=0.4, test=0.4, images=images)
    (advice,) = diagnose(replace(seen, epochs=[{"val/loss": 1.0}] * epochs))
    assert advice.override == override


def test_a_run_that_was_stopped_early_is_not_told_to_last_longer() -> None:
    seen = trained_with(healthy(train=0.4, test=0.4), early_stopping=1)
    (advice,) = diagnose(replace(seen, epochs=[{"val/loss": 1.0}] * 2))
    assert advice.kind == "few_steps" and advice.override == "training.early_stopping=0"


def test_a_run_worse_than_guessing_has_too_high_a_rate() -> None:
    (advice,) = diagnose(restless(healthy(train=0.65, test=0.6), 9))
    assert advice.kind == "rate_high" and "9 of 17" in advice.evidence


@pytest.mark.parametrize(("train_loss", "told"), [(2.0, ["rate_high"]), (0.7, [])])
def test_while_training_the_training_loss_tells_overfitting_from_too_high_a_rate(
    train_loss: float, told: list[str]
) -> None:
    seen = restless(healthy(), 9)
    running = replace(seen, epochs=[row | {"train/loss": train_loss} for row in seen.epochs])
    del running.result["training_sample"]  # type: ignore[attr-defined]
    assert [advice.kind for advice in diagnose(running, WHILE_TRAINING)] == told


def test_a_model_that_was_hardly_taught_contradicts_no_labels() -> None:
    assert kinds(contradicted(FAULTS["few_steps"](), 120)) == ["few_steps"]


def test_an_unusual_rate_is_told_once() -> None:
    seen = restless(healthy("learning_rate=0.03", "limits=off", train=0.5, test=0.5), 9)
    assert kinds(seen) == ["rate_high"]


def test_the_interval_of_the_gap_as_published() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 = 0.2000 (0.0524 to 0.3339)."""
    seen = healthy()
    result = seen.result | {
        "training_sample": {"accuracy": 56 / 70, "right": 56, "images": 70, "contradicted": 0},
        "test": seen.result["test"] | {"accuracy": 48 / 80, "accuracy_ci95": wilson_interval(48, 80)},
    }
    assert replace(seen, result=result).gap == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_while_training_a_loss_that_is_no_number_is_told() -> None:
    seen = replace(healthy("learning_rate=4e-3", "limits=off"), epochs=[{"val/loss": 2.0}, {"val/loss": math.nan}])
    (advice,) = diagnose(seen, WHILE_TRAINING)
    assert advice.kind == "rate_high" and advice.override == f"learning_rate={Config.learning_rate:g}"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with copies of five of twenty held-out photographs in training."""
    folder = tmp_path_factory.mktemp("copied")
    paths = sorted(photos.photo_folder(folder / "images").glob("*/*.jpg"))
    rows = [(path, ("test", "train", "train", "val" if i % 8 == 3 else "train")[i % 4]) for i, path in enumerate(paths)]
    for path in [path for path, part in rows if part == "test"][::4]:
        copy = path.with_name(f"{path.stem} again.jpg")
        Image.open(path).save(copy, quality=70)
        rows.append((copy, "train"))
    lines = [f"{path},{path.parent.name},{part}" for path, part in rows]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *lines]) + "\n", encoding="utf-8")
    settings = ("limits=off", "epochs=2", "batch_size=16", "data.image_size=32", "model.weights=none")
    return fit(compose(f"data.manifest={folder / 'list.csv'}", *settings), folder / "run").run_dir


def test_a_finished_run_is_diagnosed(copied: Path) -> None:
    seen = read_evidence(copied)
    assert sum(seen.result["training_images"].values()) == seen.result["images"]["train"]
    assert seen.result["training_sample"]["images"] == seen.result["images"]["train"]  # all, as they are few
    assert seen.result["copies_held_out"]["images"] == 5
    answer = CliRunner().invoke(app, ["doctor", str(copied)])
    assert answer.exit_code == 0 and "Leakage" in answer.output and "near_duplicates=together" in answer.output
    told = json.loads(CliRunner().invoke(app, ["doctor", str(copied), "--json"]).output)
    assert [Advice(**one) for one in told] == diagnose(seen)
    for page in ("report.html", "report.md"):
        assert "Leakage: " in (copied / page).read_text(encoding="utf-8")


def test_what_is_no_finished_run_is_one_sentence(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json"):
        read_evidence(tmp_path)
    old = shutil.copytree(copied, tmp_path / "old")
    result = json.loads((old / "result.json").read_text(encoding="utf-8"))
    del result["training_sample"]
    (old / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match="older version"):
        read_evidence(old)
    answer = CliRunner().invoke(app, ["report", str(old)])
    assert answer.exit_code == 0 and "doctor" not in (old / "report.html").read_text(encoding="utf-8")


def test_while_training_it_is_told_once(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("limits=off", "epochs=3", "batch_size=16", "data.image_size=32", "model.weights=none")
    with pytest.raises(UserError, match="diverged"):
        fit(compose(f"data.dir={class_folder}", "learning_rate=1e3", *settings), tmp_path / "run")
    assert capsys.readouterr().out.count("Doctor   Learning rate too high") == 1


def arrows(folder: Path, second: str) -> PreparedData:
    """Arrows to the left, and arrows to the ``second`` side, by hand's slight differences."""
    shapes = {
        "left": [(8, 24), (40, 8), (40, 40)],
        "right": [(40, 24), (8, 8), (8, 40)],
        "down": [(24, 40), (8, 8), (40, 8)],
    }
    rng = np.random.default_rng(0)
    for name in ("left", second):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            image = Image.new("RGB", (48, 48), "black")
            ImageDraw.Draw(image).polygon(
                [(x + rng.integers(-3, 4), y + rng.integers(-3, 4)) for x, y in shapes[name]], "white"
            )
            image.save(folder / name / f"{i}.png")
    config = compose(f"data.dir={folder}", "data.image_size=32", "limits=off", "model.weights=none")
    assert isinstance(config.data.eval_size, int)
    return prepare(config.data, 0, False, config.data.eval_size, lambda done, total: None)


def test_classes_that_are_mirror_images_are_seen(tmp_path: Path) -> None:
    mixed_up, told_apart = [[3, 3], [3, 3]], [[6, 0], [0, 6]]
    pairs = list(mirror_pairs(arrows(tmp_path / "a", "right"), mixed_up))
    assert [pair["classes"] for pair in pairs] == [["left", "right"]] and pairs[0]["taken"] == 6
    assert list(mirror_pairs(arrows(tmp_path / "b", "down"), mixed_up)) == []
    assert list(mirror_pairs(arrows(tmp_path / "c", "right"), told_apart)) == []


def test_copies_count_with_their_answers(tmp_path: Path) -> None:
    data = arrows(tmp_path / "a", "right")
    test = data.part("test")
    twin = {"kind": "near_duplicates", "items": [{"paths": [data.paths[test[0]], data.paths[data.part("train")[0]]]}]}
    apart = {"kind": "near_duplicates", "items": [{"paths": [data.paths[test[1]], data.paths[test[2]]]}]}
    audit = {"findings": [twin, apart]}
    right = np.arange(len(test)) != 0
    assert copies_held_out(replace(data, audit=audit), right) == {"images": 1, "right": 0}
