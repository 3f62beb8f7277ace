"""What this process may use of its machine. Standard library only."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processor cores: as many as it may run on, and no more than its container is given time on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, quota() or allowed)


def quota() -> int:
    """Cores that the limit of a Linux control group comes to, rounded up; 0 where there is none."""
    try:
        texts = (CGROUPS / "cpu.max").read_text(encoding="ascii").split()  # version 2
    except OSError:
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            texts = [(CGROUPS / "cpu" / name).read_text(encoding="ascii") for name in names]  # version 1
        except OSError:
            return 0
    try:
        time, period = map(int, texts)
        return max(0, math.ceil(time / period))
    except (ValueError, ZeroDivisionError):  # "max", no limit
        return 0
