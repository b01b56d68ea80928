"""The thread that owns the models and the streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from decaf_ros.nodes.inbox import Inbox, InboxCounts


class Worker:
    """Runs the work of an inbox on its own thread. All callbacks run on that thread.

    Args:
        keep_latest: see `Inbox`.
        on_image: handles an image message.
        advance: runs the next unit of a grounding; returns whether there is another.
        prepare: runs a unit of work for a later grounding, while nothing else is to do; returns whether it ran one.
        slice_s: how long groundings may go on while an image waits. Read at each use.
        on_stop: ends the streams. Called when the worker stops.
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

    def put_image(self, message: Any, camera: str = "") -> None:
        self._inbox.put_image(message, camera)

    def put_command(self, command: Callable[[], None]) -> bool:
        """Runs `command` on the thread. Returns False if the worker is stopped; the command will not run then."""
        return self._inbox.put_command(command)

    def counts(self, camera: str = "") -> InboxCounts:
        return self._inbox.counts(camera)

    def start(self) -> None:
        self._inbox.open()
        self._thread = threading.Thread(target=self._run, name="decaf worker")
        self._thread.start()

    def stop(self) -> None:
        """Ends the streams and waits for the thread. Does not interrupt a unit of a grounding."""
        if self._thread is not None:
            self._inbox.close()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with self._setting:
            self._work()

    def _work(self) -> None:
        busy = False
        # Cameras whose image came since groundings went on.
        served: set[str] = set()
        while True:
            # Read first: a command that was accepted before the inbox closed still runs.
            closed = self._inbox.closed
            work = self._inbox.take(wait=not busy)
            if work is not None:
                self._do(work.run)
                if work.camera is not None:
                    served.add(work.camera)
                    if self._inbox.next_camera not in (None, *served):
                        busy = True
                        continue
            elif closed:
                break
            served.clear()
            busy = self._go_on()
        self._do(self._on_stop)

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
            try:
                if not self._advance():
                    break
            except Exception as error:  # ends one grounding; the next one may have begun
                self._on_error(error)
            if inbox.has_image and time.monotonic() >= until_s:
                return True
        while not (inbox.closed or inbox.has_command or inbox.has_image) and self._step(self._prepare):
            pass
        return False

    def _step(self, run: Callable[[], bool]) -> bool:
        try:
            return run()
        except Exception as error:  # the stream must survive unexpected errors
            self._on_error(error)
            return False

    def _do(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # the stream must survive unexpected errors
            self._on_error(error)
