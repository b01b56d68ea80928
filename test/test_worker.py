"""The worker thread during a grounding, and how it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from decaf_ros.nodes.worker import Worker


class _Stream:
    """A worker that records its work in `done`. The image "ground" holds a grounding stage open until `go_on`."""

    def __init__(self, keep_latest: bool = True) -> None:
        self.done: list = []
        self.errors: list[Exception] = []
        self.in_stage = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.worker = Worker(keep_latest, self._on_image, lambda: self.done.append("stop"), self.errors.append)

    def _on_image(self, image: str) -> None:
        if image == "bad":
            raise RuntimeError("unexpected")
        self.done.append(image)
        if image == "ground":
            self.in_stage.release()
            assert self.go_on.acquire(timeout=5)
            self.worker.between_stages()
            self.done.append("grounded")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_between_stages_commands_and_at_most_one_image_run():
    stream = _Stream(keep_latest=False)
    stream.worker.start()
    stream.worker.put_image("ground")
    assert stream.in_stage.acquire(timeout=5)
    stream.worker.put_image("a")
    stream.worker.put_image("b")
    stream.worker.put_command(lambda: stream.done.append("query"))
    stream.go_on.release()
    _wait(lambda: "b" in stream.done)
    stream.worker.stop()
    assert stream.done == ["ground", "query", "a", "grounded", "b", "stop"]


def test_stopping_ends_a_grounding_between_two_stages():
    stream = _Stream()
    stream.worker.start()
    stream.worker.put_image("ground")
    assert stream.in_stage.acquire(timeout=5)
    stopper = threading.Thread(target=stream.worker.stop)
    stopper.start()
    _wait(lambda: not stream.worker.put_command(lambda: None))
    stream.go_on.release()
    stopper.join(timeout=5)
    assert not stopper.is_alive()
    assert stream.done == ["ground", "stop", "grounded", "stop"]


def test_an_error_is_reported_and_the_thread_goes_on():
    stream = _Stream(keep_latest=False)
    stream.worker.start()
    stream.worker.put_image("bad")
    stream.worker.put_image("good")
    _wait(lambda: "good" in stream.done)
    stream.worker.stop()
    assert [str(error) for error in stream.errors] == ["unexpected"]


def test_it_can_be_started_again():
    stream = _Stream(keep_latest=False)
    for image in ("a", "b"):
        stream.worker.start()
        assert stream.worker.put_command(lambda image=image: stream.done.append(image))
        stream.worker.stop()
        assert not stream.worker.put_command(lambda: None)
    stream.worker.stop()
    assert stream.done == ["a", "stop", "b", "stop"]
