"""Counters and moving averages of one camera stream."""

from __future__ import annotations

import time
from dataclasses import dataclass

from decaf_ros.types import Notice, QueryEvent, StageEvent

# Weight of the newest frame in the moving averages.
_NEWEST = 0.1


@dataclass
class Statistics:
    """State of one stream, for diagnostics. One thread writes it, any thread may read it.

    Attributes:
        used: images handed to the core.
        rejected: images that could not be decoded.
        queries: queries received, including empty and refused ones.
        decode_ms: wall time per frame for decoding, exponential moving average.
        track_ms: the same for tracking.
        publish_ms: the same for publishing.
        result_ns: stamp of the last published frame; 0 before the first.
        targets: targets in the last published frame.
        located: frames with 3D outputs; None if they are not enabled.
        unlocated: frames without 3D outputs, for want of depth.
        ready: share of the window that is prepared for a question, in [0, 1]; 0 if nothing is prepared ahead.
        event: last event of the newest current query; without a current query, the last event.
        live: last event of each current query, in the order of asking.
        stage: last stage reached by a grounding.
        stage_ms: stage times of the last answer that had any.
        problem: the last notice.
        problem_at: time of the last notice (time.monotonic).
    """

    used: int = 0
    rejected: int = 0
    queries: int = 0
    decode_ms: float = 0.0
    track_ms: float = 0.0
    publish_ms: float = 0.0
    result_ns: int = 0
    targets: int = 0
    located: int | None = None
    unlocated: int = 0
    ready: float = 0.0
    event: QueryEvent | None = None
    live: tuple[QueryEvent, ...] = ()
    stage: StageEvent | None = None
    stage_ms: tuple[tuple[str, float], ...] = ()
    problem: Notice | None = None
    problem_at: float = 0.0

    @property
    def events(self) -> tuple[QueryEvent, ...]:
        """The last event of each current query; without a current query, the last event, if any."""
        return self.live or ((self.event,) if self.event else ())

    def average(self, name: str, seconds: float) -> None:
        """Updates the moving average `name` with one wall time."""
        mean, newest = getattr(self, name), 1000 * seconds
        setattr(self, name, mean + _NEWEST * (newest - mean) if mean else newest)

    def note(self, notice: Notice) -> None:
        """Records `notice` as the last problem."""
        self.problem, self.problem_at = notice, time.monotonic()
