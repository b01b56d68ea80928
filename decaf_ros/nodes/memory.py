"""Memory of the process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gpu_bytes() -> list[tuple[str, int]]:
    """Allocated and reserved GPU memory of this process, summed over all devices; empty without a GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    devices = range(torch.cuda.device_count())
    return [
        ("allocated", sum(torch.cuda.memory_allocated(device) for device in devices)),
        ("reserved", sum(torch.cuda.memory_reserved(device) for device in devices)),
    ]


def give_back_memory() -> None:
    """Gives the memory of dropped models back to the system.

    glibc keeps freed memory in an arena for each thread, so a node that is configured again and again grows;
    `malloc_trim` returns whole free pages of every arena. Other C libraries have no such function.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
