"""Where decoded images are kept, by their size and what is free."""

from __future__ import annotations

import shutil
from pathlib import Path

from effnet_lit.config import UserError


def choose_cache(asked: str, need: int, kept: int, cache_dir: Path, device_memory: int) -> tuple[str, tuple[str, ...]]:
    """(``data.cache`` resolved, a sentence where the disk is too small).

    In bytes: ``need`` for all images, ``kept`` of them on disk already, ``device_memory`` free on the GPU (0 without).

    Raises:
        UserError: device is asked for, and there is no GPU or too little memory on it.
    """
    if asked == "device" and not device_memory:
        raise UserError("data.cache=device needs a GPU to train on; use data.cache=disk.")
    if asked == "device" and need > 0.9 * device_memory:
        room = f"needs {need / 1e9:.1f} GB and the GPU has {device_memory / 1e9:.1f} GB"
        raise UserError(f"data.cache=device {room}; use data.cache=disk.")
    if asked != "auto":
        return asked, ()
    free = free_disk(cache_dir)
    if need - kept <= 0.9 * free:
        return ("device" if need <= device_memory / 4 else "disk"), ()
    short = f"The decoded images need {need / 1e9:.1f} GB and the disk of {cache_dir} has {free / 1e9:.1f} GB free"
    if need <= free_memory() / 2:
        return "ram", (f"{short}: they are kept in memory, and decoded at each start.",)
    return "off", (f"{short}: they are decoded again in every epoch; data.cache_dir can name another disk.",)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk where ``folder`` is or would be."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def free_memory() -> int:
    """Bytes of main memory that can be had; 0 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
