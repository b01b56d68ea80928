"""The torch device of a model, and its memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def resolve_device(device: str) -> torch.device:
    """`auto`: cuda if available, else cpu. Other names are passed to torch."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device. On a CPU: what the system can give without swapping; elsewhere than on Linux,
    half of its memory. Limits of a container do not count."""
    if device.type == "cuda":
        # torch keeps freed memory for itself.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(available) * 1024
