"""Medians of wall time, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed_ms(function: Callable[[], object]) -> float:
    """Wall time of one call; on a GPU until all of its work is done."""
    _wait()
    since = time.perf_counter()
    function()
    _wait()
    return (time.perf_counter() - since) * 1e3


def median_ms(function: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    for _ in range(warm_up):
        function()
    return statistics.median(timed_ms(function) for _ in range(repeats))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def extra_mib(function: Callable[[], object], device: str = "cpu") -> float:
    """How far memory rises above what is held before, while a function runs: of the process on a CPU (sampled every
    2 ms), of torch's allocator on a GPU."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What earlier calls have freed goes back to the system, or it would hide what this one takes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, over = resident_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        over.set()
        watcher.join()
    return max(peak, resident_mib()) - before


def growth(step: Callable[[int], object], count: int, what: str) -> dict[str, float]:
    """Runs step(1) to step(count), count at least 2, and prints resident memory on the way. change: how far it grew
    over the second half, relative to its middle."""
    half, interval = count // 2, max(count // 20, 1)
    half_mib = 0.0
    for number in range(1, count + 1):
        step(number)
        if number == half:
            half_mib = resident_mib()
        if number % interval == 0:
            print(f"{what} {number:6d}  resident {resident_mib():8.1f} MiB", flush=True)
    end_mib = resident_mib()
    change = round((end_mib - half_mib) / half_mib, 4)
    return {"rss_mib_half": round(half_mib, 1), "rss_mib_end": round(end_mib, 1), "change": change}


def resident_mib() -> float:
    """This process's resident memory, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
