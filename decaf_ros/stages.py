"""Reports and times the stages of a running grounding."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str, float], None]


def no_progress(stage: str, fraction: float) -> None:
    """A `Progress` callback that does nothing."""


class StageClock:
    """Times consecutive stages and calls `progress` at the start of each, which may raise to abort.

    order: all stages in order, to compute the reported fraction. Time spent in `progress` (a robot tracks frames there)
    is not counted.
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
        self._stage = stage
        self._progress(stage, self._order.index(stage) / len(self._order))
        self._started_s = time.perf_counter()

    def tick(self) -> None:
        """Calls `progress` in the middle of a stage."""
        if self._stage is not None:
            self.start(self._stage)

    def pause(self) -> None:
        """Ends the running stage."""
        if self._stage is not None:
            self._ms[self._stage] = self._ms.get(self._stage, 0.0) + (time.perf_counter() - self._started_s) * 1e3
            self._stage = None

    @property
    def stage_ms(self) -> tuple[tuple[str, float], ...]:
        """Wall time of every finished stage, in order of first start."""
        return tuple(self._ms.items())
