"""glibc keeps freed memory for the next batch instead of handing it back to the kernel.

By default blocks of some megabytes go back to the kernel when they are freed, and every batch pays again for each fresh
page: a sixth to a third of a training step's time on a CPU (docs/decisions/training_step.md), half of an answer's.
"""

from __future__ import annotations

import ctypes
import platform
import sys

# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GROWTH_BYTES = 64 * 2**20  # the heap grows by so much at once


def keep_freed_memory() -> None:
    """For this process from now on; does nothing where the C library is not glibc. Call it before the first tensor."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, GROWTH_BYTES)
