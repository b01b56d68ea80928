"""The worker thread during a grounding, and how it stops."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from decaf_ros.nodes.worker import Worker


class _Setting(contextlib.AbstractContextManager):
    """Notes the threads that enter and leave it."""

    def __init__(self, notes: list[tuple[str, str]]) -> None:
        self.notes = notes

    def __enter__(self) -> None:
        self.notes.append(("entered", threading.current_thread().name))

    def __exit__(self, *error: object) -> None:
        self.notes.append(("left", threading.current_thread().name))


class _Stream:
    """A worker that records its work in `done`. The image "ground" begins a grounding of three units; each unit that
    `held` allows for waits for `go_on`.
    """

    def __init__(self, keep_latest: bool = False, slice_s: float = 0.0) -> None:
        self.done: list = []
        self.errors: list[Exception] = []
        self.settings: list[tuple[str, str]] = []
        self.units = 0
        self.held = 0
        self.prepared: int | None = None
        self.in_unit = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.worker = Worker(
            keep_latest,
            self._on_image,
            self._advance,
            self._prepare,
            lambda: slice_s,
            self._on_stop,
            self.errors.append,
            _Setting(self.settings),
        )

    def _on_image(self, image: str) -> None:
        if image == "bad":
            raise RuntimeError("unexpected")
        self.done.append(image)
        if image == "ground":
            self.units = 3

    def _advance(self) -> bool:
        if self.units == 0:
            return False
        if self.held:
            self.held -= 1
            self.in_unit.release()
            assert self.go_on.acquire(timeout=5)
        self.units -= 1
        self.done.append("unit")
        return self.units > 0

    def _prepare(self) -> bool:
        if self.prepared is None:
            return False
        self.prepared += 1
        return True

    def _on_stop(self) -> None:
        self.units = 0
        self.done.append("stop")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("slice_s", "expected"),
    [
        # A command and an image come in the first unit. Then every image waits for one unit, or for the slice.
        (0.0, ["ground", "unit", "query", "unit", "a", "unit", "b", "stop"]),
        (60.0, ["ground", "unit", "query", "unit", "unit", "a", "b", "stop"]),
    ],
)
def test_images_wait_for_a_slice_of_the_grounding_and_commands_for_a_unit(slice_s, expected):
    stream = _Stream(slice_s=slice_s)
    stream.held = 1
    stream.worker.start()
    stream.worker.put_image("ground")
    assert stream.in_unit.acquire(timeout=5)
    stream.worker.put_image("a")
    stream.worker.put_image("b")
    stream.worker.put_command(lambda: stream.done.append("query"))
    stream.go_on.release()
    _wait(lambda: "b" in stream.done)
    stream.worker.stop()
    assert stream.done == expected


def test_an_image_of_each_camera_waits_for_one_slice_together():
    stream = _Stream()
    stream.held = 1
    stream.worker.start()
    stream.worker.put_image("ground", "a")
    assert stream.in_unit.acquire(timeout=5)
    for camera in ("a", "b", "c"):
        stream.worker.put_image(camera, camera)
    stream.go_on.release()
    _wait(lambda: stream.done[-1] == "unit" and "c" in stream.done)
    stream.worker.stop()
    assert stream.done[:6] == ["ground", "unit", "a", "b", "c", "unit"]


def test_the_next_grounding_goes_on_after_one_that_raises():
    stream = _Stream()
    units = iter([RuntimeError("first"), True, False])

    def advance() -> bool:
        unit = next(units, False)
        if isinstance(unit, Exception):
            raise unit
        stream.done.append("unit")
        return unit

    stream.worker._advance = advance
    stream.worker.start()
    stream.worker.put_image("a")
    _wait(lambda: stream.done == ["a", "unit", "unit"])
    stream.worker.stop()
    assert [str(error) for error in stream.errors] == ["first"]


def test_stopping_and_commands_come_before_further_units():
    stream = _Stream()
    stream.held = 1
    stream.worker.start()
    stream.worker.put_image("ground")
    assert stream.in_unit.acquire(timeout=5)
    for number in range(3):
        stream.worker.put_command(lambda number=number: stream.done.append(number))
    stopper = threading.Thread(target=stream.worker.stop)
    stopper.start()
    _wait(lambda: not stream.worker.put_command(lambda: None))
    stream.go_on.release()
    stopper.join(timeout=5)
    assert stream.done == ["ground", "unit", 0, 1, 2, "stop"]


def test_a_grounding_goes_on_without_images():
    stream = _Stream()
    stream.worker.start()
    stream.worker.put_image("ground")
    _wait(lambda: stream.done == ["ground", "unit", "unit", "unit"])
    stream.worker.stop()


def test_what_a_later_question_needs_is_prepared_while_nothing_else_is_to_do():
    stream = _Stream()
    stream.prepared = 0
    stream.worker.start()
    stream.worker.put_image("a")
    _wait(lambda: stream.prepared > 10)
    stream.worker.put_image("ground")
    _wait(lambda: stream.done == ["a", "ground", "unit", "unit", "unit"])
    stream.worker.put_command(lambda: stream.done.append("query"))
    _wait(lambda: stream.done[-1] == "query")
    stream.worker.stop()
    assert stream.done[-1] == "stop" and not stream.errors


def test_stopping_ends_a_grounding_after_the_next_unit():
    stream = _Stream()
    stream.held = 1
    stream.worker.start()
    stream.worker.put_image("ground")
    assert stream.in_unit.acquire(timeout=5)
    stopper = threading.Thread(target=stream.worker.stop)
    stopper.start()
    _wait(lambda: not stream.worker.put_command(lambda: None))
    stream.go_on.release()
    stopper.join(timeout=5)
    assert not stopper.is_alive()
    assert stream.done == ["ground", "unit", "stop"]


def test_an_error_in_a_unit_is_reported_and_the_thread_goes_on():
    stream = _Stream()

    def advance():
        raise RuntimeError("unit")

    stream.worker._advance = advance
    stream.worker.start()
    stream.worker.put_image("a")
    _wait(lambda: stream.errors)
    stream.worker.put_image("b")
    _wait(lambda: "b" in stream.done)
    stream.worker.stop()
    assert {str(error) for error in stream.errors} == {"unit"}


def test_an_error_is_reported_and_the_thread_goes_on():
    stream = _Stream()
    stream.worker.start()
    stream.worker.put_image("bad")
    stream.worker.put_image("good")
    _wait(lambda: "good" in stream.done)
    stream.worker.stop()
    assert [str(error) for error in stream.errors] == ["unexpected"]


def test_it_can_be_started_again():
    stream = _Stream()
    for image in ("a", "b"):
        stream.worker.start()
        assert stream.worker.put_command(lambda image=image: stream.done.append(image))
        stream.worker.stop()
        assert not stream.worker.put_command(lambda: None)
    stream.worker.stop()
    assert stream.done == ["a", "stop", "b", "stop"]


def test_its_thread_has_the_setting_from_start_to_stop():
    stream, settings = _Stream(), [("entered", "decaf worker"), ("left", "decaf worker")]
    for count in (1, 2):
        stream.worker.start()
        stream.worker.put_image("a")
        _wait(lambda count=count: stream.done.count("a") == count)
        assert len(stream.settings) == 2 * count - 1
        stream.worker.stop()
        assert stream.settings == settings * count
