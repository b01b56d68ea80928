"""Queue of the worker thread: the newest image of each camera (or all), and commands in the order of arrival."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple


class Work(NamedTuple):
    """A piece of work for the worker thread. camera: whose image it is; None for a command."""

    run: Callable[[], None]
    camera: str | None


class InboxCounts(NamedTuple):
    """Image counts of a camera since the inbox was made. waiting: not taken yet."""

    received: int = 0
    dropped: int = 0
    waiting: int = 0


class Inbox:
    """A thread-safe queue, filled by ROS callbacks and emptied by one worker thread. Closed until `open`.

    Commands (queries, cancellations) come before images. At most one command overtakes a waiting image, so commands
    cannot starve the streams. With `keep_latest` a new image replaces the waiting one of its camera, which counts as
    dropped. Otherwise all images wait. That is for evaluation only: memory is unbounded if the cameras are faster than
    the worker. Cameras with waiting images take turns, so a fast one does not starve a slow one.
    """

    def __init__(self, handle_image: Callable[[Any], None], keep_latest: bool) -> None:
        self._handle_image = handle_image
        self._keep_latest = keep_latest
        # The waiting images of each camera that has any, the camera whose turn is next first.
        self._images: OrderedDict[str, deque[Any]] = OrderedDict()
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._received: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._closed = True
        self._image_is_next = False

    def put_image(self, message: Any, camera: str = "") -> None:
        with self._changed:
            self._received[camera] += 1
            if self._closed:
                self._dropped[camera] += 1
                return
            waiting = self._images.setdefault(camera, deque())
            if self._keep_latest:
                self._dropped[camera] += len(waiting)
                waiting.clear()
            waiting.append(message)
            self._changed.notify()

    def put_command(self, command: Callable[[], None]) -> bool:
        """Returns False if the inbox is closed; the command will not run then."""
        with self._changed:
            if not self._closed:
                self._commands.append(command)
                self._changed.notify()
            return not self._closed

    def take(self, wait: bool = True) -> Work | None:
        """Takes the next work, waiting for it if `wait`. None: there is none, or the inbox is closed and empty."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._commands or self._images)
            if self._images and (self._image_is_next or not self._commands):
                self._image_is_next = False
                camera, message = self._take_image()
                return Work(partial(self._handle_image, message), camera)
            if self._commands:
                self._image_is_next = bool(self._images)
                return Work(self._commands.popleft(), None)
            return None

    def open(self) -> None:
        with self._changed:
            self._closed = False

    def close(self) -> None:
        """Closes the inbox and drops waiting images. Waiting commands still run."""
        with self._changed:
            self._closed = True
            for camera, waiting in self._images.items():
                self._dropped[camera] += len(waiting)
            self._images.clear()
            self._changed.notify_all()

    @property
    def has_command(self) -> bool:
        return bool(self._commands)

    @property
    def has_image(self) -> bool:
        return bool(self._images)

    @property
    def next_camera(self) -> str | None:
        """Whose image is taken next; None if none waits."""
        with self._changed:
            return next(iter(self._images), None)

    @property
    def closed(self) -> bool:
        return self._closed

    def counts(self, camera: str = "") -> InboxCounts:
        with self._changed:
            return InboxCounts(self._received[camera], self._dropped[camera], len(self._images.get(camera, ())))

    def _take_image(self) -> tuple[str, Any]:
        """The camera whose turn it is, and its oldest image. The camera then comes last."""
        camera, waiting = self._images.popitem(last=False)
        message = waiting.popleft()
        if waiting:
            self._images[camera] = waiting
        return camera, message
