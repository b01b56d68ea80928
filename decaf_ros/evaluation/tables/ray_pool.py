"""Workers as actors of a Ray cluster: `--engine ray`.

Ray is an extra (`decaf_ros[ray]`). Every machine needs this package, the data and the checkpoints at the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from decaf_ros.evaluation.tables.samples import Sample, SampleResult, SampleWorker, Work
from decaf_ros.evaluation.tables.scheduling import Event


class RayWorker:
    """An actor; see `SampleWorker`."""

    def __init__(self, works: Sequence[Work], threads: int) -> None:
        self._worker = SampleWorker(works, threads)

    def run(self, sample: Sample) -> SampleResult:
        """Evaluates a sample."""
        return self._worker(sample)

    def process_id(self) -> int:
        """Its process on its machine."""
        return os.getpid()


class RayPool:
    """A Pool of actors; each gets a GPU of its own if the cluster has any.

    Args:
        works: see `SampleWorker`.
        threads: threads of torch in each worker, and CPUs that Ray keeps for it.
        address: of the cluster; empty: that of RAY_ADDRESS or of this machine, else a new one on this machine.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """

    def __init__(self, works: Sequence[Work], threads: int, address: str = "") -> None:
        import ray

        self._ray: Any = ray
        self._started_here = not ray.is_initialized()
        if self._started_here:
            ray.init(address=address or None, log_to_driver=False, include_dashboard=False if not address else None)
        resources = ray.cluster_resources()
        self.gpus, self.cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self._actor = ray.remote(num_cpus=threads, num_gpus=1 if self.gpus else 0, max_restarts=0)(RayWorker)
        # One copy a machine, not one a worker.
        self._works, self._threads = ray.put(tuple(works)), threads
        self._workers: dict[int, Any] = {}
        self._running: dict[Any, int] = {}
        self._started = 0

    def start(self) -> int:
        """See `Pool.start`. It waits, as an actor that Ray has not placed yet, until there is room."""
        self._started += 1
        self._workers[self._started] = self._actor.remote(self._works, self._threads)
        return self._started

    def send(self, worker: int, sample: Sample) -> None:
        """See `Pool.send`."""
        self._running[self._workers[worker].run.remote(sample)] = worker

    def wait(self) -> list[Event]:
        """See `Pool.wait`."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1)
        events = []
        for reference in ended:
            worker = self._running.pop(reference)
            try:
                events.append(Event(worker, self._ray.get(reference)))
            except self._ray.exceptions.RayError:  # its process, its machine or its start failed
                self._ray.kill(self._workers.pop(worker))
                events.append(Event(worker, None))
        return events

    def process_ids(self) -> list[int]:
        """Processes of the workers. Waits until all are placed."""
        return [self._ray.get(worker.process_id.remote()) for worker in self._workers.values()]

    def close(self) -> None:
        """See `Pool.close`."""
        for worker in self._workers.values():
            self._ray.kill(worker)
        self._workers.clear()
        if self._started_here:
            self._ray.shutdown()
