"""Workers as processes of this machine, or none: `--engine local`."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from decaf_ros.evaluation.tables.samples import Sample, SampleResult, SampleWorker, Work
from decaf_ros.evaluation.tables.scheduling import Event
from decaf_ros.segmentation.sam2 import Sam2


class OwnProcess:
    """A Pool of one worker in this process. See `SampleWorker` for the arguments."""

    def __init__(self, works: Sequence[Work], threads: int) -> None:
        self._works, self._threads = works, threads
        self._worker: SampleWorker | None = None
        self._number, self._ready = 0, False
        self._sent: Sample | None = None

    def start(self) -> int:
        """See `Pool.start`."""
        self._worker = SampleWorker(self._works, self._threads)
        self._number, self._ready = self._number + 1, False
        return self._number

    def send(self, worker: int, sample: Sample) -> None:
        """See `Pool.send`."""
        self._sent = sample

    def wait(self) -> list[Event]:
        """See `Pool.wait`."""
        if not self._ready:
            self._ready = True
            return [Event(self._number, place="")]
        assert self._sent is not None and self._worker is not None, "called after `start` and `send`"
        return [Event(self._number, self._worker(self._sent))]

    def end(self, worker: int) -> None:
        """See `Pool.end`. Frees the models. What CUDA cannot recover from stays with the process."""
        self._worker = None

    def close(self) -> None:
        """See `Pool.close`."""


class _Process(NamedTuple):
    process: BaseProcess
    connection: Connection
    device: str | None


class LocalPool:
    """A Pool of processes, each with its own models.

    Args:
        works: see `SampleWorker`.
        threads: threads of torch in each worker.
        devices: values of CUDA_VISIBLE_DEVICES that the workers take in turn; empty: they see what this process sees.
    """

    def __init__(self, works: Sequence[Work], threads: int, devices: Sequence[str] = ()) -> None:
        self._works, self._threads, self._devices = tuple(works), threads, devices
        # Forked from a process that has imported the packages, seconds of work, and nothing else: the threads of torch
        # and a renderer, which this process may have, do not survive a fork.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([SampleWorker.__module__, Sam2.__module__])
        self._workers: dict[int, _Process] = {}
        self._started = 0

    def start(self) -> int:
        """See `Pool.start`. The worker gets the device that fewest workers have."""
        used = [worker.device for worker in self._workers.values()]
        device = min(self._devices, key=used.count) if self._devices else None
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._works, self._threads, device), daemon=True, name="decaf-worker"
        )
        process.start()
        theirs.close()  # so that the end of the worker is the end of the connection
        self._started += 1
        self._workers[self._started] = _Process(process, ours, device)
        return self._started

    def send(self, worker: int, sample: Sample) -> None:
        """See `Pool.send`."""
        try:
            self._workers[worker].connection.send(sample)
        except OSError:
            pass  # the worker is dead: `wait` reads the end of the connection

    def wait(self) -> list[Event]:
        """See `Pool.wait`. A result that a worker has sent before it died still counts."""
        numbers = {worker.connection: number for number, worker in self._workers.items()}
        events = []
        for connection in wait(list(numbers)):
            assert isinstance(connection, Connection)
            number = numbers[connection]
            try:
                told: SampleResult | None = connection.recv()
                place = self._workers[number].device or ""
                events.append(Event(number, told) if told is not None else Event(number, place=place))
            except (EOFError, OSError):  # OSError: it died in the middle of a message
                self.end(number)
                events.append(Event(number))
        return events

    def close(self) -> None:
        """See `Pool.close`."""
        for number in list(self._workers):
            self.end(number)

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        ended = self._workers.pop(worker)
        ended.connection.close()
        ended.process.kill()
        ended.process.join()


def _serve(connection: Connection, works: Sequence[Work], threads: int, device: str | None) -> None:
    """Runs in a worker until the connection ends. Sends None when it is ready."""
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA is used
    worker = SampleWorker(works, threads)
    try:
        connection.send(None)
        while True:
            connection.send(worker(connection.recv()))
    except (EOFError, OSError):
        return
