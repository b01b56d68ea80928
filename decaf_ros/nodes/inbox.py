"""What waits for the worker thread: the newest image, or all of them, and commands in the order of their arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple


class Work(NamedTuple):
    """The next thing to do."""

    run: Callable[[], None]
    is_image: bool


class InboxCounts(NamedTuple):
    """Images since the inbox was made. waiting: not taken yet."""

    received: int = 0
    dropped: int = 0
    waiting: int = 0


class Inbox:
    """Filled by ROS callbacks, emptied by one worker thread. Closed until `open`.

    Commands (a query, a cancellation) go first, so a new query counts at once; but an image that one of them has passed
    over goes before the next, so that no flood of them stops the stream. Of the images only the newest waits when
    `keep_latest`, and those that it replaces are counted as dropped. Else all of them wait, without a bound: where
    images come faster than they are handled for long, memory runs out, so this is for evaluation only.
    """

    def __init__(self, handle_image: Callable[[Any], None], keep_latest: bool) -> None:
        self._handle_image = handle_image
        self._keep_latest = keep_latest
        self._images: deque[Any] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._received = 0
        self._dropped = 0
        self._closed = True
        self._images_turn = False

    def put_image(self, message: Any) -> None:
        with self._changed:
            self._received += 1
            if self._keep_latest or self._closed:
                self._drop_waiting()
            if self._closed:
                self._dropped += 1
            else:
                self._images.append(message)
                self._changed.notify()

    def put_command(self, command: Callable[[], None]) -> bool:
        """False while the inbox is closed: the command will not run."""
        with self._changed:
            if not self._closed:
                self._commands.append(command)
                self._changed.notify()
            return not self._closed

    def take(self, wait: bool = True) -> Work | None:
        """The next thing to do, waiting for it where `wait`. None: nothing to do, or closed."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._commands or self._images)
            if self._images and (self._images_turn or not self._commands):
                self._images_turn = False
                return Work(partial(self._handle_image, self._images.popleft()), is_image=True)
            if self._commands:
                self._images_turn = bool(self._images)
                return Work(self._commands.popleft(), is_image=False)
            return None

    def open(self) -> None:
        with self._changed:
            self._closed = False

    def close(self) -> None:
        """Takes nothing in any more. Waiting images are dropped; commands that came before still run."""
        with self._changed:
            self._closed = True
            self._drop_waiting()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def counts(self) -> InboxCounts:
        with self._changed:
            return InboxCounts(self._received, self._dropped, len(self._images))

    def _drop_waiting(self) -> None:
        self._dropped += len(self._images)
        self._images.clear()
