"""How long a query waits for key frames before it is answered without them."""

from __future__ import annotations

import time


class Patience:
    """Measures from now on how long a query has waited, and what came meanwhile.

    While images come, their times of arrival are the clock, from the first image after the query on: the same bag gives
    the same answers. While none comes, or their time stands still (a paused simulation), it is the wall clock. The time
    of groundings does not count, also of one that a restart of the stream ended.
    """

    def __init__(self) -> None:
        self._waited_ns = 0
        self._arrival_ns: int | None = None
        self._moved_at = time.monotonic()
        self._images = self._rejected = self._resets = 0
        self._reason = ""

    def image(self, arrival_ns: int, is_waiting: bool, rejected: str = "") -> None:
        """An image came. is_waiting: whether the query has waited since the one before. rejected: why it could not be
        used."""
        self._images += 1
        if rejected:
            self._rejected += 1
            self._reason = rejected
        if self._arrival_ns is None or arrival_ns > self._arrival_ns:
            self._moved_at = time.monotonic()
            if is_waiting and self._arrival_ns is not None:
                self._waited_ns += arrival_ns - self._arrival_ns
        self._arrival_ns = arrival_ns

    def reset(self, reason: str) -> None:
        """The stream restarted, which empties the window."""
        self._resets += 1
        self._reason = reason

    def is_over(self, patience_s: float) -> bool:
        """Whether the query has waited for too long, by either clock."""
        return self._waited_ns >= patience_s * 1e9 or time.monotonic() - self._moved_at >= patience_s

    @property
    def missing(self) -> str:
        """Text about the images that came instead of key frames."""
        if not self._images:
            return "no image came"
        if self._resets:
            return f"the stream restarted {self._resets} times, last because {self._reason}"
        if self._rejected:
            return f"{self._rejected} of {self._images} images were rejected, last: {self._reason}"
        return f"{self._images} images came, but none later than the last key frame by window.keyframe_period_s"
