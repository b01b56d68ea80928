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

    def place(self) -> str:
        """Its machine. The answer means that Ray has placed and started the actor."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def process_id(self) -> int:
        """Its process on its machine."""
        return os.getpid()


class Cluster:
    """A connection to a cluster, until `close`.

    Args:
        threads: CPUs that Ray keeps for a worker. If the cluster has GPUs, a worker also gets one.
        address: of the cluster; empty: that of RAY_ADDRESS or of this machine, else a new one on this machine.

    Attributes:
        gpus: GPUs of the cluster.
        room: number of workers that have room on its machines.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
        ValueError: no machine has room for a worker.
    """

    def __init__(self, threads: int, address: str = "") -> None:
        import ray

        self.ray: Any = ray
        self._started_here = not ray.is_initialized()
        if self._started_here:
            ray.init(address=address or None, log_to_driver=False, include_dashboard=False if not address else None)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.threads, self.gpus = threads, int(sum(one.get("GPU", 0) for one in machines))
        # CPUs of one machine do not help another one.
        rooms = [int(one.get("CPU", 0)) // threads for one in machines]
        if self.gpus:
            rooms = [min(room, int(one.get("GPU", 0))) for room, one in zip(rooms, machines)]
        self.room = sum(rooms)
        if not self.room:
            most = max((int(one.get("CPU", 0)) for one in machines), default=0)
            self.close()
            raise ValueError(
                f"--threads {threads}: expected a machine of the cluster with as many CPUs"
                f"{' and a GPU' if self.gpus else ''}; the largest has {most} CPUs"
            )

    def close(self) -> None:
        """Ends the connection if it began here."""
        if self._started_here:
            self.ray.shutdown()


class RayPool:
    """A Pool of actors; each gets a GPU of its own if the cluster has any. See `SampleWorker` for `works`."""

    def __init__(self, works: Sequence[Work], cluster: Cluster) -> None:
        self._ray: Any = cluster.ray
        self._actor = self._ray.remote(num_cpus=cluster.threads, num_gpus=1 if cluster.gpus else 0, max_restarts=0)(
            RayWorker
        )
        # One copy a machine, not one a worker.
        self._works, self._threads = self._ray.put(tuple(works)), cluster.threads
        self._workers: dict[int, Any] = {}
        # Answers that are due, by reference: of `place` and of `run`.
        self._starting: dict[Any, int] = {}
        self._running: dict[Any, int] = {}
        self._started = 0

    def start(self) -> int:
        """See `Pool.start`. An actor that Ray has not placed yet waits until there is room."""
        self._started += 1
        actor = self._workers[self._started] = self._actor.remote(self._works, self._threads)
        self._starting[actor.place.remote()] = self._started
        return self._started

    def send(self, worker: int, sample: Sample) -> None:
        """See `Pool.send`."""
        self._running[self._workers[worker].run.remote(sample)] = worker

    def wait(self) -> list[Event]:
        """See `Pool.wait`."""
        ended, _ = self._ray.wait([*self._running, *self._starting], num_returns=1)
        events = []
        for reference in ended:
            starts = reference in self._starting
            worker = (self._starting if starts else self._running).pop(reference)
            try:
                told = self._ray.get(reference)
            except self._ray.exceptions.RayError:  # its process, its machine or its start failed
                self.end(worker)
                events.append(Event(worker))
            else:
                events.append(Event(worker, place=told) if starts else Event(worker, told))
        return events

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        for due in (self._starting, self._running):
            for reference in [one for one, by in due.items() if by == worker]:
                del due[reference]
        self._ray.kill(self._workers.pop(worker))

    def close(self) -> None:
        """See `Pool.close`."""
        for worker in list(self._workers):
            self.end(worker)
