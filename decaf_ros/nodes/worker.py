"""The thread that owns the models and the streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from decaf_ros.nodes.inbox import Inbox, InboxCounts
from decaf_ros.stages import Result

# Longest time between two calls of `meanwhile`.
_MEANWHILE_S = 0.05


class Activity(NamedTuple):
    """A unit of work that is running. kind: image, command, grounding, preparation or end. camera: of an image.
    since_s: when it began (time.monotonic)."""

    kind: str
    camera: str
    since_s: float


class Worker:
    """Runs the work of an inbox on its own thread. All callbacks run on that thread.

    A thread cannot be stopped within a unit of work, such as a call of a model. `activity` shows another thread what it
    does and since when, `stop` waits for a limited time, and `abandon` makes the thread end without any further effect
    if the unit returns after all.

    Args:
        keep_latest: see `Inbox`.
        on_image: handles an image message.
        advance: runs the next unit of a grounding; returns whether there is another.
        prepare: runs a unit of work for a later grounding, while nothing else is to do; returns whether it ran one.
        slice_s: how long groundings may go on while an image waits. Read at each use.
        on_stop: ends the streams. Called when the worker stops, unless it was abandoned.
        on_error: reports an exception from a callback or command. The thread goes on.
        setting: entered on the thread while it runs; once for each `start`.
    """

    def __init__(
        self,
        keep_latest: bool,
        on_image: Callable[[Any], None],
        advance: Callable[[], bool],
        prepare: Callable[[], bool],
        slice_s: Callable[[], float],
        on_stop: Callable[[], None],
        on_error: Callable[[Exception], None],
        setting: AbstractContextManager[object],
    ) -> None:
        self._inbox = Inbox(on_image, keep_latest)
        self._advance = advance
        self._prepare = prepare
        self._slice_s = slice_s
        self._on_stop = on_stop
        self._on_error = on_error
        self._setting = setting
        self._thread: threading.Thread | None = None
        self._is_abandoned = False
        self._activity: Activity | None = None

    @property
    def activity(self) -> Activity | None:
        """The work of the thread now; None if it waits for some."""
        return self._activity

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def put_image(self, message: Any, camera: str = "") -> None:
        self._inbox.put_image(message, camera)

    def put_command(self, command: Callable[[], None]) -> bool:
        """Runs `command` on the thread. Returns False if the worker is stopped; the command will not run then."""
        return self._inbox.put_command(command)

    def counts(self, camera: str = "") -> InboxCounts:
        return self._inbox.counts(camera)

    def start(self) -> None:
        """Starts the thread. To be called when `stop` has returned true, or the first time."""
        assert not self.is_alive, "stop has returned true"
        self._inbox.open()
        self._thread = threading.Thread(target=self._run, name="decaf worker")
        self._thread.start()

    def stop(self, within_s: float = threading.TIMEOUT_MAX, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Ends the streams and waits for the thread. Returns whether it has ended.

        within_s: a unit of work that takes longer goes on; the thread then ends after it. meanwhile: called now and
        then while it waits.
        """
        if self._thread is None:
            return True
        self._inbox.close()
        until_s = time.monotonic() + within_s
        self._thread.join(min(within_s, _MEANWHILE_S))
        while self._thread.is_alive() and (left_s := until_s - time.monotonic()) > 0:
            meanwhile()
            self._thread.join(min(left_s, _MEANWHILE_S))
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Leaves the thread behind, after `stop`: it ends after its unit, without ending the streams."""
        self._is_abandoned = True

    def _run(self) -> None:
        with self._setting:
            self._work()

    def _work(self) -> None:
        busy = False
        # Cameras whose image came since groundings went on.
        served: set[str] = set()
        while not self._is_abandoned:
            # Read first: a command that was accepted before the inbox closed still runs.
            closed = self._inbox.closed
            work = self._inbox.take(wait=not busy)
            if work is not None:
                self._do("command" if work.camera is None else "image", work.run, work.camera or "")
                if work.camera is not None:
                    served.add(work.camera)
                    if self._inbox.next_camera not in (None, *served):
                        busy = True
                        continue
            elif closed:
                break
            served.clear()
            busy = self._go_on()
        if not self._is_abandoned:
            self._do("end", self._on_stop)

    def _go_on(self) -> bool:
        """Advances groundings until something else is to do. Returns whether they go on.

        Images wait for at most a slice, so the cameras are tracked; groundings have a slice after an image of each
        camera, so a tracker slower than the cameras does not block them. Commands, and the end, take effect after the
        running unit.
        """
        until_s = time.monotonic() + self._slice_s()
        inbox = self._inbox
        while True:
            if inbox.closed or inbox.has_command:
                return True
            # An error ends one grounding; the next one may have begun.
            if self._do("grounding", self._advance) is False:
                break
            if inbox.has_image and time.monotonic() >= until_s:
                return True
        while not (inbox.closed or inbox.has_command or inbox.has_image) and self._do("preparation", self._prepare):
            pass
        return False

    def _do(self, kind: str, run: Callable[[], Result], camera: str = "") -> Result | None:
        """Runs a unit of work. Returns its result, None after an error."""
        self._activity = Activity(kind, camera, time.monotonic())
        try:
            return run()
        except Exception as error:  # the stream must survive unexpected errors
            if not self._is_abandoned:
                self._on_error(error)
            return None
        finally:
            self._activity = None
