"""Freed memory stays with the process: further tensors of a size cost no fresh pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from effnet_lit.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch
for _ in range(20):  # until the heap has places of the right size
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    """Page faults of five tensors of 64 MB."""
    command = [sys.executable, "-c", PROGRAM, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_further_tensors_need_no_fresh_pages() -> None:
    kept, usual = faults("kept"), faults("usual")
    assert kept < 100 < usual
