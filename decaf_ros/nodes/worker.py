"""The thread that owns the models and the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from decaf_ros.nodes.inbox import Inbox, InboxCounts


class Worker:
    """Runs the work of an inbox on its own thread. All callbacks run on that thread.

    Args:
        keep_latest: see `Inbox`.
        on_image: handles an image message.
        on_stop: ends the stream. Called when the worker stops, and before that in a running grounding, to end it.
        on_error: reports an exception from a callback or command. The thread goes on.
    """

    def __init__(
        self,
        keep_latest: bool,
        on_image: Callable[[Any], None],
        on_stop: Callable[[], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._inbox = Inbox(on_image, keep_latest)
        self._on_stop = on_stop
        self._on_error = on_error
        self._thread: threading.Thread | None = None

    def put_image(self, message: Any) -> None:
        self._inbox.put_image(message)

    def put_command(self, command: Callable[[], None]) -> bool:
        """Runs `command` on the thread. Returns False if the worker is stopped; the command will not run then."""
        return self._inbox.put_command(command)

    @property
    def counts(self) -> InboxCounts:
        return self._inbox.counts

    def start(self) -> None:
        self._inbox.open()
        self._thread = threading.Thread(target=self._run, name="decaf worker")
        self._thread.start()

    def stop(self) -> None:
        """Ends the stream and waits for the thread. Does not interrupt a stage of a grounding."""
        if self._thread is not None:
            self._inbox.close()
            self._thread.join()
            self._thread = None

    def between_stages(self) -> None:
        """Runs waiting work between two stages of a grounding. To be called on the thread.

        Stops after one image: otherwise a tracker slower than the camera would block the grounding.
        """
        if self._inbox.closed:
            self._on_stop()
        while (work := self._inbox.take(wait=False)) is not None:
            self._do(work.run)
            if work.is_image:
                break

    def _run(self) -> None:
        while (work := self._inbox.take()) is not None:
            self._do(work.run)
        self._do(self._on_stop)

    def _do(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # the stream must survive unexpected errors
            self._on_error(error)
