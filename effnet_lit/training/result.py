"""The run folder: settings before training; model file, figures and plots after it."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from effnet_lit import __version__
from effnet_lit.config import Config, UserError, to_dict
from effnet_lit.data.audit import Item, suspected_labels, write_audit
from effnet_lit.data.audit_page import write_audit_page
from effnet_lit.data.prepare import PreparedData, pictures, pixels_of
from effnet_lit.data.split_file import SPLIT, write_split
from effnet_lit.evaluation.advice import Advice
from effnet_lit.evaluation.calibration import calibrate, calibration_error, calibration_interval
from effnet_lit.evaluation.doctor import diagnose
from effnet_lit.evaluation.evidence import read_evidence
from effnet_lit.evaluation.familiarity import fit_familiarity, unlike_above
from effnet_lit.evaluation.features import answers_and_features, training_sample
from effnet_lit.evaluation.gather_evidence import gather
from effnet_lit.evaluation.labels import likely_wrong_labels
from effnet_lit.evaluation.metrics import (
    baseline_accuracy,
    measure,
    wilson_interval,
)
from effnet_lit.evaluation.plots import plot_confusion_matrix, plot_learning_curves
from effnet_lit.evaluation.report import write_report
from effnet_lit.evaluation.rules_learning import undertaught
from effnet_lit.evaluation.speed import image_seconds
from effnet_lit.model.modelfile import Header, ImageClassifier, load_model, write_model
from effnet_lit.training.data_wait import DataWait
from effnet_lit.training.hardware import Hardware
from effnet_lit.training.head import Preview

SETTINGS = "config.yaml"
TINY = torch.finfo(torch.float32).tiny  # least probability whose logarithm is taken
VERSIONS_OF = ("torch", "torchvision", "lightning", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """What a run left behind; ``test`` was measured on the part that chose nothing."""

    run_dir: Path
    model_path: Path
    test: dict[str, Any]
    val_accuracy: float
    baseline_accuracy: float
    seconds: float
    data_wait: float  # share of the training time in which a step waited for its data
    val_images: int = 0
    val_baseline: float = 0.0  # as baseline_accuracy, of the validation images
    advice: tuple[Advice, ...] = ()  # the doctor's
    model_bytes: int = 0
    image_seconds: float = 0.0  # of one CPU core


def unused(run_dir: Path) -> Path:
    """``run_dir``, or the first of run_dir-2, run_dir-3 ... that holds no run: none is ever written over."""
    names = chain([run_dir.name], (f"{run_dir.name}-{number}" for number in count(2)))
    return next(folder for folder in map(run_dir.with_name, names) if not (folder / SETTINGS).exists())


def write_settings(run_dir: Path, config: Config, data: PreparedData) -> None:
    """config.yaml (what every ``auto`` became), split.csv and the audit; a resumed run keeps its own.

    Raises:
        UserError: the folder cannot be written, or another run has just taken it.
    """
    if config.resume:
        return
    page = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with open(run_dir / SETTINGS, "x", encoding="utf-8") as file:
            file.write(page)
    except FileExistsError as error:
        raise UserError(f"{run_dir} has just been taken by another run; start this one again.") from error
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written ({error.strerror}); start from another folder.") from error
    names = [data.class_names[label] for label in data.labels]
    write_split(run_dir / SPLIT, data.paths, names, data.splits.tolist())
    write_audit_files(run_dir, data, data.audit | {"fingerprint": data.fingerprint})


def write_audit_files(folder: Path, data: PreparedData, content: dict[str, Any]) -> None:
    """audit.json, and audit.html with thumbnails of the decoded images."""
    write_audit(folder / "audit.json", content)
    write_audit_page(folder / "audit.html", content, pictures(data))


def header(config: Config, data: PreparedData, network: nn.Module) -> Header:
    """What model.safetensors says of itself, before it was measured."""
    assert isinstance(config.data.image_size, int) and isinstance(config.data.eval_size, int)
    assert config.data.mean is not None and config.data.std is not None
    return Header(
        architecture=network.architecture,  # type: ignore[arg-type]
        class_names=list(data.class_names),
        image_size=config.data.image_size,
        eval_size=config.data.eval_size,
        resize=config.data.resize,
        mean=list(config.data.mean),
        std=list(config.data.std),
        calibration={"temperature": 1.0},
        metrics={},
        data={"fingerprint": data.fingerprint, "images": len(data.labels)},
        training={"seed": config.seed, "epochs": config.epochs, "weights": config.model.weights},
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Python's and the main packages' versions."""
    ours = {"effnet_lit": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in VERSIONS_OF}


class Answers(NamedTuple):
    """Calibrated probabilities (N, classes) of the val and test images and of a sample of the training images, what
    calibration found, and how many test images are unlike the training ones."""

    val: Tensor
    test: Tensor
    sample: Tensor
    calibration: dict[str, float]
    unlike: int


def finish(
    config: Config,
    data: PreparedData,
    classifier: ImageClassifier,
    run_dir: Path,
    hardware: Hardware,
    seconds: dict[str, float],
    data_wait: DataWait,
    preview: Preview | None = None,
) -> Result:
    """Calibrate on val, measure on val and test, then write model file, result.json, predictions and plots."""
    labels = {part: data.labels[data.part(part)] for part in ("train", "val", "test")}
    answers = calibrated_answers(classifier, data, labels["val"])
    val, test = (
        measure(found, torch.from_numpy(labels[part]), data.class_names)
        for part, found in (("val", answers.val), ("test", answers.test))
    )
    model_path = run_dir / "model.safetensors"
    summary = {key: test[key] for key in ("accuracy", "accuracy_ci95", "images", "f1_macro")}
    classifier.header = replace(classifier.header, metrics={"test": summary})
    write_model(model_path, classifier)
    cost = {"model_bytes": model_path.stat().st_size, "image_seconds": image_seconds(load_model(model_path))}
    baseline = baseline_accuracy(labels["train"], labels["test"])
    mirrors = config.data.horizontal_flip == "on" and config.augmentation != "none"
    calibration = calibration_figures(answers.test, labels["test"], answers.calibration)
    write_json(
        run_dir / "result.json",
        {
            "test": test,
            "val": val,
            "baseline_accuracy": baseline,
            "calibration": answers.calibration | calibration | {"unlike": answers.unlike},
            **times(seconds, data_wait),
            "preview": preview and preview._asdict(),
            **gather(data, answers.sample, answers.test, test["confusion_matrix"], mirrors),
            **surroundings(config, data, classifier, hardware),
            "images": {part: len(values) for part, values in labels.items()},
            **cost,
        },
    )
    advice = advise(run_dir, data, answers)
    write_predictions(run_dir / "test_predictions.csv", data, answers.test)
    draw(run_dir, data, classifier, test)
    val_baseline = baseline_accuracy(labels["train"], labels["val"])
    figures = val["accuracy"], baseline, seconds["total"], data_wait.share, val["images"], val_baseline
    return Result(run_dir, model_path, test, *figures, advice, *cost.values())


def times(seconds: dict[str, float], data_wait: DataWait) -> dict[str, Any]:
    """What the run took, in seconds, and the share of training in which steps waited for images."""
    return {
        "seconds": seconds["total"],
        "seconds_training": seconds["training"],
        "data_wait_share": data_wait.share,
        "data_wait_by_epoch": data_wait.shares,
    }


def advise(run_dir: Path, data: PreparedData, answers: Answers) -> tuple[Advice, ...]:
    """What the doctor says of the run's files; labels that the answers contradict are added to the audit, but where
    the network was taught too little and would contradict by chance."""
    seen = read_evidence(run_dir)
    advice = tuple(diagnose(seen))
    if not undertaught(seen) or any(one.kind == "label_noise" for one in advice):
        add_suspected_labels(run_dir, data, {"val": answers.val, "test": answers.test})
    return advice


def draw(run_dir: Path, data: PreparedData, classifier: ImageClassifier, test: dict[str, Any]) -> None:
    """The plots and the report of what the other files of the run say."""
    if (run_dir / "metrics.csv").is_file():  # not after a probe
        plot_learning_curves(run_dir / "metrics.csv", run_dir / "learning_curves.png")
    plot_confusion_matrix(test["confusion_matrix"], data.class_names, run_dir / "confusion_matrix.png")
    write_report(run_dir, classifier, pixels_of(data))


def calibrated_answers(classifier: ImageClassifier, data: PreparedData, val_labels: np.ndarray) -> Answers:
    """Give ``classifier`` its temperature, its threshold for "not sure" and its measure of familiarity, by the val and
    training images, and ask it."""
    raw, val_features = answers_and_features(classifier, data, data.part("val"))
    raw = raw.clamp_min(TINY).log()
    found = calibrate(raw, torch.from_numpy(val_labels))
    classifier.header = replace(classifier.header, calibration=found)
    sample, sample_features = answers_and_features(classifier, data, training_sample(data))
    familiarity = fit_familiarity(sample_features)
    if len(val_features):
        found["unlike_above"] = unlike_above(familiarity(val_features))
    classifier.familiarity = familiarity
    test, test_features = answers_and_features(classifier, data, data.part("test"))
    unlike = int((familiarity(test_features) > found.get("unlike_above", math.inf)).sum())
    return Answers(torch.softmax(raw / found["temperature"], 1), test, sample, found, unlike)


def surroundings(config: Config, data: PreparedData, classifier: ImageClassifier, hardware: Hardware) -> dict[str, Any]:
    """What was trained, on what, and what it took, for result.json."""
    return {
        "class_names": list(data.class_names),
        "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
        "cache_bytes": data.cache_bytes,
        "data_fingerprint": data.fingerprint,
        "device": hardware.name,
        "precision": hardware.precision,
        "peak_memory_bytes": peak_memory(),
        "gpu_peak_memory_bytes": torch.cuda.max_memory_allocated() if hardware.accelerator == "gpu" else None,
        "device_memory_bytes": hardware.memory or ram(),
        "name": config.name,
        "versions": versions(),
    }


def calibration_figures(probabilities: Tensor, labels: np.ndarray, found: dict[str, float]) -> dict[str, Any]:
    """How far confidence is from the share right on the held-out images, before and after calibration, and what the
    threshold for "not sure" gives there."""
    before = torch.softmax(probabilities.clamp_min(TINY).log() * found["temperature"], 1).max(1).values.numpy()
    confidence, answer = (values.numpy() for values in probabilities.max(1))
    right = answer == labels
    answered = confidence >= found["abstain_below"]
    return {
        "test_error": calibration_error(confidence, right),
        "test_error_ci95": list(calibration_interval(confidence, right)),
        "test_error_before": calibration_error(before, right),
        "answered": int(answered.sum()),
        "answered_right": int(right[answered].sum()),
        "answered_ci95": list(wilson_interval(int(right[answered].sum()), int(answered.sum()))),
    }


def add_suspected_labels(run_dir: Path, data: PreparedData, probabilities: dict[str, Tensor]) -> None:
    """Tell in the audit which held-out images probably carry a wrong label."""
    held_out = np.concatenate([data.part(part) for part in probabilities])
    predicted = np.concatenate([values.numpy() for values in probabilities.values()])
    suspected = likely_wrong_labels(predicted, data.labels[held_out])
    if len(suspected) == 0:
        return
    names = data.class_names
    items = [
        Item([data.paths[held_out[i]]], f"{names[data.labels[held_out[i]]]}, looks like {names[predicted[i].argmax()]}")
        for i in suspected
    ]
    content = json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))
    content["findings"].append(asdict(suspected_labels(items)))
    write_audit_files(run_dir, data, content)


def peak_memory() -> int | None:
    """Most bytes of main memory this process has held; unknown on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ram() -> int | None:
    """Bytes of main memory; unknown on Windows."""
    return None if sys.platform == "win32" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Beside the target first, then renamed: never half a file."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def write_predictions(path: Path, data: PreparedData, probabilities: Tensor) -> None:
    """One row a held-out image: path, true class, predicted class, every class's probability."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class", *data.class_names])
        for i, row in zip(data.part("test"), probabilities, strict=True):
            names = data.class_names[data.labels[i]], data.class_names[int(row.argmax())]
            writer.writerow([data.paths[i], *names, *(repr(float(value)) for value in row)])


def point_latest(run_dir: Path, folder: Path | None = None) -> None:
    """``latest`` in ``folder`` (the one the run lies in) is this run: a link, or a text file without links."""
    folder = folder or run_dir.parent
    latest, unfinished = folder / "latest", folder / ".latest.unfinished"
    if latest.is_dir() and not latest.is_symlink():
        return  # the user's own folder
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.symlink_to(os.path.relpath(run_dir, folder), target_is_directory=True)
    except OSError:
        unfinished.write_text(str(run_dir.resolve()), encoding="utf-8")
    os.replace(unfinished, latest)
