"""Finds the depth image of each frame: the one with its exact stamp, else the nearest one within a slop.

Messages are kept as they came; only those that are used are decoded.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from decaf_ros.io.messages import stamp_ns

# Depth images kept for frames that have not been taken yet: half a second at 30 Hz, as an image may be late.
_RECENT = 16
# A depth image that is so much later is of another time: a bag that loops.
_OTHER_TIME_NS = 1_000_000_000


class Search:
    """The search of one frame for its depth. `settled`: no better message is expected."""

    def __init__(self, stamp_ns: int) -> None:
        self.stamp_ns = stamp_ns
        self.settled = False
        self.nearest: Any = None
        self.distance_ns: int | None = None

    def look_at(self, message: Any) -> None:
        own_ns = stamp_ns(message.header.stamp)
        distance_ns = abs(own_ns - self.stamp_ns)
        if self.distance_ns is None or distance_ns < self.distance_ns:
            self.nearest, self.distance_ns = message, distance_ns
        # Messages come in the order of their stamps, so after a later one the exact one is not expected any more.
        self.settled = self.settled or 0 <= own_ns - self.stamp_ns < _OTHER_TIME_NS

    def found(self, slop_s: float) -> Any:
        """The message to use; None if none is within the slop."""
        return self.nearest if self.distance_ns is not None and self.distance_ns <= slop_s * 1e9 else None


class DepthMatcher:
    """The newest depth images of a camera, and the searches of its frames. Thread-safe.

    keep_all: keep every depth image until a frame with a later stamp seeks, for frames that wait in a queue; else the
    newest 16.
    """

    def __init__(self, keep_all: bool = False) -> None:
        self._recent: deque[Any] = deque(maxlen=None if keep_all else _RECENT)
        self._searches: list[Search] = []
        self._lock = threading.Lock()

    def put(self, message: Any) -> None:
        with self._lock:
            self._recent.append(message)
            for search in self._searches:
                search.look_at(message)

    def seek(self, stamp_ns: int) -> Search:
        """Begins a search, which goes on until `end`."""
        search = Search(stamp_ns)
        with self._lock:
            for message in self._recent:
                search.look_at(message)
            if self._recent.maxlen is None and search.nearest is not None:
                while self._recent[0] is not search.nearest:
                    self._recent.popleft()
            self._searches.append(search)
        return search

    def end(self, search: Search) -> None:
        with self._lock:
            self._searches.remove(search)
