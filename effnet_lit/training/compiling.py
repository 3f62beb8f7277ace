"""torch.compile with CUDA graphs, where the run is long enough to pay for it."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import nn

from effnet_lit.config import UserError

# On an H200's machine (docs/decisions/gpu.md) a training step took 97 to 142 s to compile, beside other programs, and
# at batch 256 compiled steps took 33% less time than eager ones.
COMPILE_SECONDS = 90.0
TIME_SAVED = 0.3
OLDEST_CAPABILITY = (7, 0)  # Triton's


class Decision(NamedTuple):
    """Whether to take a way of faster steps, and why in one sentence."""

    on: bool
    reason: str


def weigh(key: str, choice: str, obstacle: str, steps: int, seconds_saved: float, cost: float) -> Decision:
    """``choice`` is what ``key`` is set to; "auto" compares what compiling takes with what all steps win back.

    Args:
        obstacle: what stands against it, or nothing.
        seconds_saved: by each of ``steps``.
        cost: seconds of compiling.

    Raises:
        UserError: "on" where it cannot work.
    """
    if choice == "on" and obstacle:
        raise UserError(f"{key}=on cannot work: {obstacle}; use {key}=off.")
    if choice != "auto":
        return Decision(choice == "on", f"{key}={choice}")
    if obstacle:
        return Decision(False, obstacle)
    saved = steps * seconds_saved
    sums = f"{steps:,} steps would win back about {saved:,.0f} s of the {cost:.0f} s that compiling takes"
    return Decision(saved > cost, sums)


def decide(choice: str, accelerator: str, gradient_checkpointing: str, steps: int, step_seconds: float) -> Decision:
    """Whether to compile; ``choice`` is ``training.compile``.

    Args:
        step_seconds: of one eager step, measured.

    Raises:
        UserError: "on" where it cannot work.
    """
    obstacle = why_not(accelerator, gradient_checkpointing)
    return weigh("training.compile", choice, obstacle, steps, step_seconds * TIME_SAVED, COMPILE_SECONDS)


def why_not(accelerator: str, gradient_checkpointing: str) -> str:
    """What stands against compiling, or nothing."""
    if accelerator != "gpu":
        return "it gains nothing on this device"
    if gradient_checkpointing != "off":
        return f"the compiler recomputes by itself what gradient checkpointing {gradient_checkpointing} would"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return "the GPU is older than what Triton compiles for"
    return ""


def compile_network(network: nn.Module, backend: str = "inductor") -> None:
    """In place: names in the state dict, deep copies and evaluation go on with the same module.

    Call it when every parameter that will be trained has ``requires_grad`` set, and again after that has changed:
    compiled code keeps the gradients it was compiled for.
    """
    torch.compiler.reset()
    options = {"triton.cudagraphs": True} if backend == "inductor" else None  # what "reduce-overhead" means
    network.compile(backend=backend, dynamic=False, options=options)
