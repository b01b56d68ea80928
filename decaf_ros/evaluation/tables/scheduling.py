"""Runs samples on a pool of workers: dynamic, with repeated attempts, and with workers that may die or go bad.

A worker takes the samples of one clip one after the other, because they share frames, features and embeddings. When
every clip has been taken, it takes over samples from the worker with the most. A sample that failed is tried on another
worker, elsewhere if there is one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Protocol

from decaf_ros.evaluation.tables.samples import Sample, SampleResult

# Attempts for a sample before it counts as failed.
ATTEMPTS = 3
# Errors one after the other before a worker that had a result before is replaced: after an error of CUDA all later ones
# fail.
ERRORS = 2
# For each worker: samples whose worker died before there was any result, or workers that died in a row before they were
# ready, before the run gives up.
DEATHS = 3


class Event(NamedTuple):
    """News of a worker: `place`, or `result`; neither: it died.

    Attributes:
        worker: its number.
        result: of the sample that it was sent.
        place: it is ready, on this machine or device.
    """

    worker: int
    result: SampleResult | None = None
    place: str | None = None


class Pool(Protocol):
    """Workers by number; each has one sample at a time."""

    def start(self) -> int:
        """Starts a worker and returns its number, which no other worker has had. `wait` tells when it is ready, which
        may be never."""

    def send(self, worker: int, sample: Sample) -> None:
        """Sends a sample to a ready worker without one. A worker that is dead already is an event of `wait`."""

    def wait(self) -> list[Event]:
        """Waits for the next events, at least one. A worker that died is forgotten by the pool."""

    def end(self, worker: int) -> None:
        """Ends a worker, which is forgotten by the pool. There are no events of it any more."""

    def close(self) -> None:
        """Ends all workers."""


class Outcome(NamedTuple):
    """The final result of a sample. attempts: number of attempts. deaths: of these, how many ended with a worker."""

    result: SampleResult
    attempts: int
    deaths: int


class WorkersDiedError(RuntimeError):
    """Workers die without any result, so that the run ends before all samples have an outcome."""


def run_samples(samples: Iterable[Sample], pool: Pool, workers: int) -> Iterator[Outcome]:
    """The outcome of every sample, once, in the order in which they end. The caller closes the pool.

    Workers that never become ready are not waited for. Raises WorkersDiedError.
    """
    return _Run(samples, pool, workers).outcomes()


class _Run:
    """See `run_samples`."""

    def __init__(self, samples: Iterable[Sample], pool: Pool, workers: int) -> None:
        self._waiting = deque(deque(group) for _, group in groupby(samples, lambda one: (one.work, one.clip)))
        self._retries: list[Sample] = []
        self._pool, self._most = pool, workers
        # Samples that only a worker has taken, by worker; of ready workers, their places.
        self._taken: dict[int, deque[Sample]] = {}
        self._places: dict[int, str] = {}
        self._running: dict[int, Sample] = {}
        # Workers and places of failed attempts.
        self._failures: defaultdict[Sample, list[tuple[int, str]]] = defaultdict(list)
        self._deaths: defaultdict[Sample, int] = defaultdict(int)
        self._errors: dict[int, int] = {}  # in a row, of workers that had a result
        self._any_result = False
        self._never_ready = 0  # in a row

    def outcomes(self) -> Iterator[Outcome]:
        for _ in range(min(self._most, sum(map(len, self._waiting)))):
            self._start()
        while True:
            for worker in self._places:
                if worker not in self._running and (sample := self._next_for(worker)) is not None:
                    self._running[worker] = sample
                    self._pool.send(worker, sample)
            if not self._running and not self._waiting and not self._retries and not any(self._taken.values()):
                return
            for event in self._pool.wait():
                if event.place is not None:
                    self._places[event.worker], self._never_ready = event.place, 0
                    continue
                outcome = self._died(event.worker) if event.result is None else self._ended(event.worker, event.result)
                if outcome is not None:
                    yield outcome

    def _start(self) -> None:
        self._taken[self._pool.start()] = deque()

    def _next_for(self, worker: int) -> Sample | None:
        own = self._taken[worker]
        if not own and self._waiting:
            own.extend(self._waiting.popleft())
        if own:
            return own.popleft()
        longest = max(self._taken.values(), key=len)
        if longest:
            return longest.pop()
        sample = next((one for one in self._retries if self._may_retry(worker, one)), None)
        if sample is not None:
            self._retries.remove(sample)
        return sample

    def _may_retry(self, worker: int, sample: Sample) -> bool:
        """Whether no other ready worker suits a failed sample better: one that has not failed it, elsewhere first."""
        workers, places = ({failure[part] for failure in self._failures[sample]} for part in (0, 1))
        others = [one for one in self._places if one not in workers]
        elsewhere = [one for one in others if self._places[one] not in places]
        return worker in (elsewhere or others or self._places)

    def _ended(self, worker: int, result: SampleResult) -> Outcome | None:
        sample = self._running.pop(worker)
        assert sample == result.sample, "a worker has one sample at a time"
        if not result.error:
            self._any_result, self._errors[worker] = True, 0
            return self._outcome(result, 1)
        self._failures[sample].append((worker, self._places[worker]))
        # One that never had a result is no better when it is started again: it lacks a file, or the data are bad.
        if worker in self._errors:
            self._errors[worker] += 1
            if self._errors[worker] >= ERRORS:
                self._pool.end(worker)
                self._replace(worker)
        return self._failed(result)

    def _died(self, worker: int) -> Outcome | None:
        sample = self._running.pop(worker, None)
        if worker not in self._places:
            self._never_ready += 1
        if sample is not None:
            self._failures[sample].append((worker, self._places[worker]))
            self._deaths[sample] += 1
        killers = 0 if self._any_result else len(self._deaths)
        if max(killers, self._never_ready) >= DEATHS * self._most:
            when = "while they started" if self._never_ready > killers else "before there was any result"
            raise WorkersDiedError(f"{max(killers, self._never_ready)} workers died {when}")
        self._replace(worker)
        return None if sample is None else self._failed(SampleResult(sample, None, error="its worker died"))

    def _replace(self, worker: int) -> None:
        self._places.pop(worker, None)
        self._errors.pop(worker, None)
        if left := self._taken.pop(worker):
            self._waiting.appendleft(left)
        self._start()

    def _failed(self, result: SampleResult) -> Outcome | None:
        if len(self._failures[result.sample]) < ATTEMPTS:
            self._retries.append(result.sample)
            return None
        return self._outcome(result, 0)

    def _outcome(self, result: SampleResult, succeeded: int) -> Outcome:
        return Outcome(result, len(self._failures[result.sample]) + succeeded, self._deaths[result.sample])
