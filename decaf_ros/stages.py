"""Tasks made of bounded units of work, and the report and timing of their stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeVar

Result = TypeVar("Result")
# A task: runs to the end of a unit at each `next`, and returns its result at the end. Between two units its caller may
# do anything else. `close` abandons it. No lock and no torch mode is held between two units.
Steps = Generator[None, None, Result]
Progress = Callable[[str, float], None]


def finish(steps: Steps[Result]) -> Result:
    """Runs a task to its end at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def no_progress(stage: str, fraction: float) -> None:
    """A `Progress` callback that does nothing."""


class StageClock:
    """Times consecutive stages and calls `progress` at the start of each.

    order: all stages in order, to compute the reported fraction. The time between two units of a task, in which a robot
    tracks frames, is not counted.
    """

    def __init__(self, order: tuple[str, ...], progress: Progress = no_progress) -> None:
        self._order = order
        self._progress = progress
        self._stage: str | None = None
        self._started_s = 0.0
        self._ms: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Ends the running stage and starts the next. Raises ValueError for a stage that is not in `order`."""
        if stage not in self._order:
            raise ValueError(f"stage: expected one of {', '.join(self._order)}, got {stage!r}")
        self.pause()
        self._progress(stage, self._order.index(stage) / len(self._order))
        self._resume(stage)

    def pause(self) -> None:
        """Ends the running stage."""
        if self._stage is not None:
            self._ms[self._stage] = self._ms.get(self._stage, 0.0) + (time.perf_counter() - self._started_s) * 1e3
            self._stage = None

    def run(self, stage: str, steps: Steps[Result]) -> Steps[Result]:
        """A task that is this stage: `steps`, timed without the pauses between its units."""
        self.start(stage)
        try:
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    result: Result = end.value
                    return result
                self.pause()
                yield
                self._resume(stage)
        finally:
            steps.close()
            self.pause()

    @property
    def stage_ms(self) -> tuple[tuple[str, float], ...]:
        """Wall time of every finished stage, in order of first start."""
        return tuple(self._ms.items())

    def _resume(self, stage: str) -> None:
        self._stage, self._started_s = stage, time.perf_counter()
