"""Watches the worker thread: names a unit of work that takes too long, and answers the queries that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from decaf_ros.nodes.camera import Camera
from decaf_ros.nodes.worker import Activity, Worker
from decaf_ros.online.turns import Turns

_OPTION = "node.stage_timeout_s"


class Watchdog:
    """Runs on the executor's thread, which no model blocks. A hanging unit goes on; the answers do not wait for it.

    Args:
        worker: whose thread it watches.
        turns: what it grounds.
        cameras: by name.
        timeout_s: returns `node.stage_timeout_s`; 0: nothing is too long.
        log: called with level ("warn", "error") and text.
    """

    def __init__(
        self,
        worker: Worker,
        turns: Turns,
        cameras: Mapping[str, Camera],
        timeout_s: Callable[[], float],
        log: Callable[[str, str], None],
    ) -> None:
        self._worker = worker
        self._turns = turns
        self._cameras = cameras
        self._timeout_s = timeout_s
        self._log = log
        # The unit that is too long, and how it was called.
        self._stuck: tuple[Activity, str] | None = None

    def check(self) -> None:
        """Answers with FAILED the queries that have waited for `node.stage_timeout_s` while a unit of work has taken
        longer. To be called now and then."""
        activity, timeout_s = self._worker.activity, self._timeout_s()
        if self._stuck is not None and self._stuck[0] is not activity:
            self._log("warn", f"{self._stuck[1]} has ended; the node goes on")
            self._stuck = None
        if activity is None or not timeout_s or time.monotonic() - activity.since_s < timeout_s:
            return
        name = self._stuck[1] if self._stuck else self._name(activity)
        text = f"{name} has not ended within {timeout_s:g} s ({_OPTION})"
        if self._stuck is None:
            self._stuck = activity, name
            self._log("error", f"{text}; the node waits for it, and answers queries with FAILED")
        for camera in self._cameras.values():
            camera.fail_unanswered(timeout_s, text)

    @property
    def problem(self) -> str:
        """The unit that is too long, and for how long it runs; empty if none is."""
        if self._stuck is None or self._worker.activity is not self._stuck[0]:
            return ""
        activity, name = self._stuck
        return f"{name} runs for {time.monotonic() - activity.since_s:.0f} s, more than {_OPTION}"

    def busy_with(self) -> str:
        """The work of the thread now; empty if it waits for some."""
        activity = self._worker.activity
        return f"{self._name(activity)}, {time.monotonic() - activity.since_s:.1f} s" if activity else ""

    def _name(self, activity: Activity) -> str:
        camera = f" of camera {activity.camera}" if activity.camera else ""
        if activity.kind == "image":
            return f"tracking on an image{camera}"
        query = self._turns.query if activity.kind == "grounding" else None
        if query is None:
            return f"a unit of work ({activity.kind})"
        stages = (each.handlers.statistics.stage for each in self._cameras.values() if each.handlers)
        stage = next((one.stage for one in stages if one is not None and one.query.id == query.id), "grounding")
        return f"stage {stage} of query {query.id}"
