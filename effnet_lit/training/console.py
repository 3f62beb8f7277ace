"""What a run says on the screen: before it starts, and when it ends."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import nn

from effnet_lit.commands import typed
from effnet_lit.config import VERY_LARGE_SET, Config
from effnet_lit.data.prepare import PreparedData
from effnet_lit.training.hardware import Hardware, batch_advice
from effnet_lit.training.optim import peak_rate
from effnet_lit.training.progress import time_text
from effnet_lit.training.result import Result
from effnet_lit.training.step_plan import StepPlan


def introduce(
    config: Config,
    hardware: Hardware,
    data: PreparedData,
    network: nn.Module,
    plan: StepPlan,
    console: Console,
) -> None:
    """Say what is about to be trained on what, and what the card advises."""
    parts = ", ".join(f"{len(data.part(name)):,} {name}" for name in ("train", "val", "test"))
    source = config.data.dir or "embedded digits"
    size = sum(parameter.numel() for parameter in network.parameters())
    console.print(f"Data     {source}: {len(data.labels):,} images, {len(data.class_names)} classes ({parts})")
    where = {
        "disk": "",
        "device": ", copied to the GPU",
        "ram": ", images in memory",
        "off": ", images decoded each epoch",
    }
    console.print(f"Cache    {data.cache_bytes / 1e9:.3f} GB in {data.cache_dir}{where[data.cache]}")
    for note in data.notes:
        console.print(f"         {note}")
    console.print(f"Model    {config.model.name}, {size / 1e6:.2f} M parameters, {network.weights_description}")
    console.print(f"Device   {hardware.name}, precision {hardware.precision}")
    console.print(f"Memory   {plan.memory.sentence(config.training.batchnorm)}")
    if hardware.accelerator == "gpu":
        console.print(f"Kernels  {'our own' if plan.kernels.on else 'PyTorch'}: {plan.kernels.reason}")
    if config.training.compile != "off":
        console.print(f"Compiler {'on' if plan.compiling.on else 'off'}: {plan.compiling.reason}")
    if config.training.strategy == "probe":
        console.print(f"Recipe   {config.name}: the last layer alone")
        return
    held = f", first {config.training.frozen_layers} layers as loaded" if config.training.frozen_layers else ""
    console.print(
        f"Recipe   {config.name}: {config.epochs} epochs, batch {config.batch_size}, rate {peak_rate(config):g}, "
        f"dropout {config.dropout_rate:g}, {config.augmentation} augmentation{held}"
    )
    assert isinstance(config.batch_size, int)
    advice = [batch_advice(hardware, config.batch_size)]
    if len(data.labels) > VERY_LARGE_SET and config.model.name == "efficientnet_b0":
        advice.append(
            f"Over {VERY_LARGE_SET:,} images a larger model would reach more accuracy (model.name=efficientnet_b2 or "
            "vit_b_16); go on with B0 if deployment size is what counts."
        )
    if config.expectation:
        advice.append(f"Expected of this example: {config.expectation} (the project card's figure, not measured here).")
    for line in filter(None, advice):
        console.print(f"Advice   {line}")


def conclude(result: Result, console: Console) -> None:
    """The last lines: how good it is, which path to open, what to type next."""
    low, high = result.test["accuracy_ci95"]
    folder = shown(result.run_dir)
    console.print()
    console.print(
        f"{result.test['accuracy']:.1%} right on {result.test['images']:,} held-out images "
        f"(95% interval {low:.1%} to {high:.1%}; always answering the most frequent class: "
        f"{result.baseline_accuracy:.1%}), after {time_text(result.seconds)}.",
        style="bold",
    )
    if (result.run_dir / "learning_curves.png").is_file():
        console.print(f"Waiting  {result.data_wait:.1%} of the training time was spent waiting for images.")
    for advice in result.advice:
        console.print(f"Doctor   {advice.lines()}")
    console.print(f"Open     {folder}/report.html; all figures: {folder}/result.json")
    console.print(f"Model    {folder}/model.safetensors ({result.model_path.stat().st_size / 1e6:.1f} MB)")
    console.print(f"Next     {typed('effnet predict', folder)} IMAGE ...")


def shown(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path
