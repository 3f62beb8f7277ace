"""Triton kernels: right in the interpreter, compilable for GPUs, right on a GPU where there is one."""

from __future__ import annotations

import ast
import gc
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from effnet_lit.config import UserError
from effnet_lit.model.zoo import create_model, use_kernels
try:
    use_kernels(create_model())
except UserError as error:
    print(error)
"""


def check(**environment: str) -> None:
    """Run ``kernel_checks`` in a process of its own: Triton decides at import whether it interprets."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernel_checks.py"]
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", minversion="3.9", reason="older interpreters fail under NumPy 2.4")
    check(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    check()


def test_without_triton() -> None:
    command = [sys.executable, "-c", WITHOUT_TRITON]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs Triton" in done.stdout


HALF = {"x", "y", "dx", "dy", "dz", "de", "e", "out", "skip"}
COUNTS = {"pixels", "groups", "turns", "programs", "runs", "steps", "size", "images", "H", "W", "OUT_H", "OUT_W"}
SHAPES = {"BLOCK_P": 32, "BLOCK_C": 32, "BLOCK_N": 16, "BLOCK_S": 16, "SKIP": True, "KEEP": True, "GATED": True}
NORM = {"MOMENTUM": 0.1, "EPS": 1e-5}


def compiled(kernel: Any, capability: int = 90, **constants: Any) -> Any:
    """For an NVIDIA GPU that need not be there."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(inspect.signature(kernel.fn).parameters)
    constants = {name: value for name, value in (constants | {"ACC": tl.float32}).items() if name in names}
    signature, aligned = {}, {}
    for i, name in enumerate(names):
        number = name in COUNTS or name in ("C", "S")
        pointer = None if number or name in constants else "*bf16" if name in HALF else "*fp32"
        signature[name] = "constexpr" if name in constants else pointer or "i32"
        if pointer or name == "C":
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target, {"num_warps": 4, "enable_fp_fusion": True})


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, not interpreting, with an empty cache."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("capability", [75, 90])
def test_kernels_compile(capability: int) -> None:
    """The interpreter runs things that the compiler refuses."""
    from effnet_lit.model.kernels import (
        activation_kernels,
        depthwise_kernels,
        norms_kernels,
        pointwise_kernels,
        squeeze_kernels,
    )

    for stride in (1, 2):
        window = {"KERNEL": 3, "STRIDE": stride, "ROWS": 2, "BLOCK_G": 4, "BLOCK_C": 32, "WHOLE": stride == 1}
        for kernel in (depthwise_kernels.forward_kernel, depthwise_kernels.backward_kernel):
            compiled(kernel, capability, **window)
    modules = (activation_kernels, norms_kernels, pointwise_kernels, squeeze_kernels)
    kernels = [value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")]
    assert len(kernels) == 14
    for kernel in kernels:
        compiled(kernel, capability, **SHAPES, **NORM)


class NoDevice:
    """A driver that compiles for Hopper and has none."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.mark.usefixtures("compiler")
def test_all_kernels_of_a_step_are_compiled_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    from effnet_lit.model import efficientnet
    from effnet_lit.model.kernels import (
        activation_kernels,
        depthwise_kernels,
        norms_kernels,
        pointwise_kernels,
        squeeze_kernels,
    )
    from effnet_lit.training.cuda_graph import compile_kernels

    monkeypatch.setattr("effnet_lit.model.cpu.suits.in_step", lambda x: False)
    monkeypatch.setattr(driver, "_active", NoDevice())
    network = efficientnet.EfficientNet(num_classes=2).train()
    network.stages, network.head = network.stages[:2], type(network.head)(24, 1280, 1, network.architecture)
    for block in network.blocks():
        block.kernels = True
    compile_kernels(network, torch.empty(2, 3, 32, 32))
    modules = (activation_kernels, depthwise_kernels, norms_kernels, pointwise_kernels, squeeze_kernels)
    kernels = [value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")]
    compiled_kernels = {kernel.fn.__name__: len(kernel.device_caches[0][0]) for kernel in kernels}
    assert all(compiled_kernels.values()), compiled_kernels
    assert compiled_kernels["forward_kernel"] == 3  # 3 x 3: stride 1 of 32 channels and of 144, stride 2 of 96


@pytest.fixture
def interrupted() -> Iterator[None]:
    """Threads take turns all the time, and garbage is collected, by Python code too, in the middle of everything."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    callback = lambda phase, info: sum(range(50))  # noqa: E731
    gc.callbacks.append(callback)
    yield
    gc.callbacks.remove(callback)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("compiler", "interrupted")
def test_threads_parse_kernels_in_turn() -> None:
    from effnet_lit.model.kernels.depthwise_kernels import backward_kernel
    from effnet_lit.model.kernels.launching import parsed_one_at_a_time

    with parsed_one_at_a_time(), ThreadPoolExecutor(4) as pool:
        trees = pool.map(lambda _: ast.dump(backward_kernel.parse()), range(200))
        assert len(set(trees)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_windows_and_sums_stay_in_registers(tmp_path: Path) -> None:
    from triton import knobs

    from effnet_lit.model.kernels.depthwise import BACKWARD, FORWARD
    from effnet_lit.model.kernels.depthwise_kernels import backward_kernel, forward_kernel

    for kernel, table in ((forward_kernel, FORWARD), (backward_kernel, BACKWARD)):
        for (size, stride), cut in table.items():
            shape = {"KERNEL": size, "STRIDE": stride, "ROWS": cut.rows, "BLOCK_G": cut.values // 32, "BLOCK_C": 32}
            binary = tmp_path / "kernel.cubin"
            binary.write_bytes(compiled(kernel, **shape, WHOLE=True).asm["cubin"])
            command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "STACK:0 " in usage and "LOCAL:0 " in usage, (shape, usage)
