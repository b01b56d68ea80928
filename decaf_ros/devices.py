"""The torch device of a model, its memory, its streams, and the type of numbers it is best at."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def resolve_device(device: str) -> torch.device:
    """`auto`: cuda if available, else cpu. Other names are passed to torch."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on cuda and on a CPU with matrix units for it, else float32. `cuda_bfloat16`: bfloat16 on cuda,
    else float32. Other names are torch's."""
    if dtype in ("auto", "cuda_bfloat16"):
        fast = device.type == "cuda" or dtype == "auto" and device.type == "cpu" and has_bfloat16_units()
        return torch.bfloat16 if fast else torch.float32
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def avoid_planned_attention(device: torch.device) -> None:
    """Switches cuDNN's attention off for this process, if the device is a GPU; SDPA's other kernels stay.

    cuDNN plans anew for every length, which takes longer than the pass itself, and here lengths change all the time:
    chunks of a prefix, texts, the memory of SAM 2.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def foreground(device: torch.device) -> AbstractContextManager[object]:
    """For the thread that follows targets in a live stream: on a GPU its kernels overtake those of `in_background`,
    which the host queues faster than the device runs them. May be entered again.

    The two share no tensor: maps leave the background through the host's memory. Waits for what was queued before.
    """
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.synchronize(device)
    urgent = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(urgent)


def in_background(steps: Generator[Unit, None, Result], device: torch.device) -> Generator[Unit, None, Result]:
    """A task whose units run on the default stream of a GPU, which has the lowest priority."""
    if device.type != "cuda":
        return (yield from steps)
    stream = torch.cuda.default_stream(device)
    try:
        while True:
            with torch.cuda.stream(stream):
                try:
                    unit = next(steps)
                except StopIteration as end:
                    result: Result = end.value
                    return result
            yield unit  # outside the block: no stream is set between two units
    finally:
        with torch.cuda.stream(stream):
            steps.close()


def has_bfloat16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has matrix units for bfloat16 (AMX) that torch uses. False elsewhere than on Linux.

    By the kernel's list of flags: torch has no public function for it before 2.9.
    """
    uses_units = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not uses_units or not cpuinfo.exists():
        return False
    return re.search(r"^flags\s*:.*\bamx_bf16\b", cpuinfo.read_text(), re.MULTILINE) is not None


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
