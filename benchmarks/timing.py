"""Median wall time and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def timed_ms(function: Callable[[], object]) -> float:
    """Wall time of one call, including its work on the GPU."""
    _synchronize()
    started = time.perf_counter()
    function()
    _synchronize()
    return (time.perf_counter() - started) * 1e3


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parts_ms(parts: Mapping[str, tuple[object, str]], function: Callable[[], object]) -> dict[str, float]:
    """Milliseconds per part of one call of `function`, and "rest".

    A part is a callable attribute (object or module, name), which may return a task; its time excludes nested parts. On
    a GPU every part synchronises, so the total is longer than without this measurement.
    """
    spent = dict.fromkeys((*parts, "rest"), 0.0)
    active = ["rest"]
    since = time.perf_counter()

    def switch(names: list[str]) -> None:
        nonlocal active, since
        _synchronize()
        spent[active[-1]] += (time.perf_counter() - since) * 1e3
        active, since = names, time.perf_counter()

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_steps(steps: Generator[None, None, Any]) -> Generator[None, None, Any]:
            while True:
                switch([*active, name])
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value
                finally:
                    switch(active[:-1])
                yield

        def timed(*args: Any, **kwargs: Any) -> Any:
            switch([*active, name])
            try:
                found = call(*args, **kwargs)
            finally:
                switch(active[:-1])
            return timed_steps(found) if isinstance(found, Generator) else found

        return timed

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
            stack.enter_context(mock.patch.object(owner, attribute, watched(name, getattr(owner, attribute))))
        function()
        switch(active)
    return spent


def kernel_times(function: Callable[[], object], device: str = "cpu") -> tuple[float, dict[str, dict[str, float]]]:
    """Wall time of one call in milliseconds, and calls, time and share of the total of each kernel on a GPU, or of each
    operator on a CPU."""
    on_gpu = device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        wall_ms = timed_ms(function)
    times = {}
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0 and event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            times[event.key] = {"calls": event.count, "ms": microseconds / 1e3}
    total = sum(figures["ms"] for figures in times.values())
    return wall_ms, {name: {**figures, "share": figures["ms"] / total} for name, figures in times.items()}


class Measurement:
    """Time and memory of repeated calls. The first call measures the memory of the process on a CPU (sampled every
    2 ms), or of torch's allocator on a GPU.

    Attributes:
        mib: rise of memory during the first call.
        peak_mib: peak memory of the first call.
        ms: median time of the other calls, or the time of the first if it is the only one.
        result: result of the last call.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.mib = self.peak_mib = 0.0
        self.result: Any = None
        self._device = device
        self._times: list[float] = []

    @property
    def ms(self) -> float:
        return statistics.median(self._times[1:] or self._times)

    def run(self, function: Callable[[], Any]) -> None:
        gc.collect()
        if self._times:
            self._times.append(timed_ms(lambda: self._call(function)))
            return
        meter = _GpuMeter() if self._device != "cpu" else _ProcessMeter()
        with meter:
            self._times.append(timed_ms(lambda: self._call(function)))
        self.peak_mib, self.mib = meter.peak, meter.peak - meter.before

    def _call(self, function: Callable[[], Any]) -> None:
        self.result = function()


class _GpuMeter:
    def __enter__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() / 2**20

    def __exit__(self, *_: object) -> None:
        self.peak = torch.cuda.max_memory_allocated() / 2**20


class _ProcessMeter:
    def __enter__(self) -> None:
        # Return freed memory to the system; otherwise this call could reuse it unnoticed.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = self.peak = resident_mib()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self.peak = max(self.peak, resident_mib())

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, resident_mib())


def growth(step: Callable[[int], object], count: int, label: str) -> dict[str, float]:
    """Runs step(1) to step(count), count at least 2, and prints resident memory at intervals.

    change: growth of resident memory over the second half, relative to the middle. gpu_change: the same for torch's
    memory on a GPU; 0 without one.
    """
    half, interval = count // 2, max(count // 20, 1)
    half_mib = half_gpu = 0.0
    for number in range(1, count + 1):
        step(number)
        if number == half:
            half_mib, half_gpu = resident_mib(), _gpu_mib()
        if number % interval == 0:
            print(f"{label} {number:6d}  resident {resident_mib():8.1f} MiB", flush=True)
    end_mib = resident_mib()
    change = round((end_mib - half_mib) / half_mib, 4)
    gpu_change = round((_gpu_mib() - half_gpu) / half_gpu, 4) if half_gpu else 0.0
    resident = {"rss_mib_half": round(half_mib, 1), "rss_mib_end": round(end_mib, 1)}
    return {**resident, "change": change, "gpu_change": gpu_change}


def _gpu_mib() -> float:
    return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
