"""Starting kernels, and compiling all of them side by side before the first start."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.runtime import JITFunction

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


def launch(kernel: Any, programs: int, *arguments: Tensor | float, warps: int = 4, **options: Any) -> None:
    """Start so many programs; the first argument is a tensor. For tensors without contents, by which memory is counted,
    nothing is started; under ``compiled_side_by_side`` the kernel is compiled for such.

    Kernels multiply and add in one instruction; said here, since Triton is about to change its default.
    """
    options |= {"num_warps": warps, "enable_fp_fusion": True}
    if not isinstance(arguments[0], FakeTensor):
        kernel[(programs,)](*arguments, **options)
    elif _compiling.get():
        kinds = (argument.dtype if isinstance(argument, Tensor) else argument for argument in arguments)
        kernel.warmup(*kinds, grid=(programs,), **options)


@contextmanager
def compiled_side_by_side(threads: int) -> Iterator[None]:
    """Kernels that are launched within, on tensors without contents, are compiled when the block ends."""
    before = _compiling.set(True)
    try:
        with (
            torch.autograd.set_multithreading_enabled(False),  # backward, too, is to run within this context
            parsed_one_at_a_time(),
            ThreadPoolExecutor(threads) as pool,
            triton.AsyncCompileMode(pool),
        ):
            yield
    finally:
        _compiling.reset(before)


@contextmanager
def parsed_one_at_a_time() -> Iterator[None]:
    """Triton's threads take turns where they parse a kernel's source: Python 3.11 counts how deep it is in a tree for
    all threads together, and a thread that is interrupted there, to collect garbage, fails on another's count."""
    parse, turn = JITFunction.parse, RLock()

    def parse_in_turn(self: JITFunction) -> ast.Module:
        with turn:
            return parse(self)

    JITFunction.parse = parse_in_turn
    try:
        yield
    finally:
        JITFunction.parse = parse
