"""The one thread that owns the models and the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from decaf_ros.nodes.inbox import Inbox, InboxCounts


class Worker:
    """Empties an inbox on its own thread while it runs.

    on_image(message): handles an image. on_stop(): ends the stream; called on the thread when the worker stops, and
    once more if that is in the middle of a grounding, which has to end. on_error(error): told of an exception that
    escaped; the thread goes on.
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
        """Runs `command` on the thread; False while there is none."""
        return self._inbox.put_command(command)

    @property
    def counts(self) -> InboxCounts:
        return self._inbox.counts

    def start(self) -> None:
        self._inbox.open()
        self._thread = threading.Thread(target=self._run, name="decaf worker")
        self._thread.start()

    def stop(self) -> None:
        """Ends the stream and waits for the thread; a stage of a grounding is not interrupted."""
        if self._thread is not None:
            self._inbox.close()
            self._thread.join()
            self._thread = None

    def between_stages(self) -> None:
        """On the thread, between the stages of a grounding: handles what waits, but one image at most, because a
        tracker that is slower than the camera must not hold up the grounding for ever."""
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
        except Exception as error:  # the stream outlives an error that nobody foresaw
            self._on_error(error)
