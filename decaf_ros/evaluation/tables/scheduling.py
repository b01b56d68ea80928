"""Runs samples on a pool of workers: dynamic, with repeated attempts, and with workers that may die.

A worker takes the samples of one clip one after the other, because they share frames, features and embeddings. When
every clip has been taken, it takes over samples from the worker with the most.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Protocol

from decaf_ros.evaluation.tables.samples import Sample, SampleResult

# Attempts for a sample before it counts as failed.
ATTEMPTS = 3
# Workers that die one after the other, with no result between them, before the run gives up, for each worker.
DEATHS = 3


class Event(NamedTuple):
    """What a worker did. result: of the sample that it was sent; None: it died."""

    worker: int
    result: SampleResult | None


class Pool(Protocol):
    """Workers by number; each has one sample at a time."""

    def start(self) -> int:
        """Starts a worker and returns its number, which no other worker has had. It may not be ready yet."""

    def send(self, worker: int, sample: Sample) -> None:
        """Sends a sample to a worker without one. A worker that is dead already is an event of `wait`."""

    def wait(self) -> list[Event]:
        """Waits for the next events, at least one. A worker that died is forgotten by the pool."""

    def close(self) -> None:
        """Ends all workers."""


class Outcome(NamedTuple):
    """The final result of a sample. attempts: number of attempts. deaths: of these, how many ended with a worker."""

    result: SampleResult
    attempts: int
    deaths: int


def run_samples(samples: Iterable[Sample], pool: Pool, workers: int) -> Iterator[Outcome]:
    """The outcome of every sample, once, in the order in which they end. The caller closes the pool.

    Raises RuntimeError if workers die again and again without any result.
    """
    waiting = deque(deque(group) for _, group in groupby(samples, lambda one: (one.work, one.clip)))
    taken: dict[int, deque[Sample]] = {pool.start(): deque() for _ in range(min(workers, sum(map(len, waiting))))}
    running: dict[int, Sample] = {}
    attempts: Counter[Sample] = Counter()
    deaths: Counter[Sample] = Counter()
    deaths_in_a_row = 0

    def next_for(worker: int) -> Sample | None:
        own = taken[worker]
        if not own and waiting:
            own.extend(waiting.popleft())
        if own:
            return own.popleft()
        longest = max(taken.values(), key=len)
        return longest.pop() if longest else None

    while True:
        for worker in taken:
            if worker not in running and (sample := next_for(worker)) is not None:
                running[worker] = sample
                attempts[sample] += 1
                pool.send(worker, sample)
        if not running:
            return
        for worker, result in pool.wait():
            sample = running.pop(worker, None)
            if result is None:
                deaths_in_a_row += 1
                if deaths_in_a_row >= DEATHS * workers:
                    raise RuntimeError(f"{deaths_in_a_row} workers died one after the other without any result")
                if left := taken.pop(worker):
                    waiting.appendleft(left)
                taken[pool.start()] = deque()
                if sample is None:
                    continue
                deaths[sample] += 1
                result = SampleResult(sample, None, error="its worker died")
            else:
                deaths_in_a_row = 0
                assert sample == result.sample, "a worker has one sample at a time"
            if result.error and attempts[result.sample] < ATTEMPTS:
                waiting.append(deque([result.sample]))
                continue
            yield Outcome(result, attempts[result.sample], deaths[result.sample])
