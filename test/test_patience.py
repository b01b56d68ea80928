"""Queries of cameras whose stamps are useless are answered, and no query waits for ever."""
# ruff: noqa: E402

from __future__ import annotations

import array

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from handler_run import PERIOD_NS, START_NS, Run, image, tiny_models

from decaf_ros.config import replace
from decaf_ros.io.messages import header
from decaf_ros.msg import QueryStatus
from decaf_ros.nodes.message_factory import make_message
from decaf_ros.pipeline import Decaf

pytestmark = pytest.mark.ros

ARRIVALS = [START_NS + 10**12 + number * PERIOD_NS for number in range(200)]


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir) -> Decaf:
    return tiny_models(tiny_mllm_dir, tiny_sam2_dir)


@pytest.fixture
def run(models) -> Run:
    return Run(models)


@pytest.fixture
def patient(models):
    """A run with a short patience; the configuration of the models is restored."""
    run, before = Run(models), models.config
    run.handlers.change_config(replace(before, {"window.patience_s": 2.0}))
    yield run
    run.handlers.change_config(before)


def useless(number: int, kind: str) -> int:
    """The number of the frame whose stamp frame `number` has."""
    return {
        "frozen": 3,
        "frozen later": min(number, 2),
        "jumping": number - 80 * (number // 8 % 2),
        "alternating": number - 80 * (number % 2),
    }[kind]


@pytest.mark.parametrize("kind", ["frozen", "frozen later", "jumping", "alternating", "zero", "half zero"])
def test_a_query_is_answered_though_the_stamps_are_useless(run, kind):
    query = run.ask("the red disc")
    for number in range(60):
        if "zero" in kind:
            message = image(number)
            if kind == "zero" or number % 2:
                message.header.stamp.sec = message.header.stamp.nanosec = 0
        else:
            message = image(number, header=header(make_message, START_NS + useless(number, kind) * PERIOD_NS, "camera"))
        run.handlers.on_image(message, ARRIVALS[number])
    assert run.answers(query) == [QueryStatus.TRACKING]
    said = [text for text in run.warnings() if "times of arrival are used instead" in text]
    assert len(said) == 1 and len(run.on("masks")) == 60
    assert sum("stream reset" in text for text in run.warnings()) <= 2
    if kind == "zero":
        assert run.stamps("masks") == ARRIVALS[:60]
    assert (np.diff(run.stamps("masks")[40:]) == PERIOD_NS).all()


def test_patience_ends_with_what_is_missing(patient):
    """One image, then only such as cannot be used; measured by their arrival, so it is the same in each replay."""
    query = patient.ask("the red disc")
    patient.handlers.on_image(image(0), ARRIVALS[0])
    states = []
    for number in range(1, 60):
        patient.handlers.on_image(image(number, data=array.array("B", bytes(10))), ARRIVALS[number])
        states.append(patient.answers(query))
    status = patient.on("status")[-1]
    assert (status.state, status.query_id) == (QueryStatus.FAILED, query)
    assert states.index([QueryStatus.FAILED]) == 2 * 10**9 // PERIOD_NS - 1
    assert (
        "expected 2 key frames within 2 s (window.patience_s), got 1: 40 of 41 images were rejected, last: "
        in status.text
    )
    assert not patient.handlers.is_waiting


def test_patience_with_a_stream_that_restarts_again_and_again(patient):
    """Another size each time: no window is ever long enough."""
    query = patient.ask("the red disc")
    for number in range(60):
        patient.handlers.on_image(image(number, (48, 64 + 2 * (number % 2))), ARRIVALS[number])
    assert patient.answers(query) == [QueryStatus.FAILED]
    assert "restarted 40 times, last because the image size changed" in patient.on("status")[-1].text


@pytest.mark.parametrize("stands_still", [False, True])
def test_patience_without_images_is_measured_on_the_wall_clock(patient, monkeypatch, stands_still):
    """The node calls check_patience now and then. A simulated clock that stands still is no clock."""
    now = [100.0]
    monkeypatch.setattr("decaf_ros.online.patience.time.monotonic", lambda: now[0])
    query = patient.ask("the red disc")
    if stands_still:
        patient.handlers.on_image(image(0), ARRIVALS[0])
    for waited_s, expected in ((0.9, []), (1.9, []), (2.1, [QueryStatus.FAILED])):
        now[0] = 100.0 + waited_s
        if stands_still:
            patient.handlers.on_image(image(0), ARRIVALS[0])
        patient.handlers.check_patience()
        assert patient.answers(query) == expected
    missing = "got 1: 4 images came" if stands_still else "got 0: no image came"
    assert missing in patient.on("status")[-1].text


def test_a_camera_that_was_silent_for_long_before_the_query_is_waited_for(patient):
    patient.handlers.on_image(image(0), ARRIVALS[0])
    query = patient.ask("the red disc")
    for number in range(100, 104):
        patient.handlers.on_image(image(number), ARRIVALS[number])
    assert patient.answers(query) == [QueryStatus.TRACKING]


def test_a_refused_query_does_not_renew_patience(patient):
    query = patient.ask("the red disc")
    for number in range(45):
        patient.handlers.on_image(image(0, header=image(0).header, data=array.array("B")), ARRIVALS[number])
        if number == 30:
            patient.ask("x" * 100)
    assert patient.answers(query) == [QueryStatus.FAILED]


def test_a_superseding_query_has_its_own_patience(patient):
    first = patient.ask("the red disc")
    for number in range(60):
        if number == 30:
            second = patient.ask("the blue disc")
        patient.handlers.on_image(image(number, data=array.array("B")), ARRIVALS[number])
    assert patient.answers(first) == [QueryStatus.SUPERSEDED] and patient.answers(second) == []
    for number in range(60, 75):
        patient.handlers.on_image(image(number, data=array.array("B")), ARRIVALS[number])
    assert patient.answers(second) == [QueryStatus.FAILED]


def test_questions_that_wait_at_the_same_time_have_their_own_patience(patient, models):
    patient.handlers.change_config(replace(models.config, {"queries.mode": "add"}))
    first = patient.ask("the red disc")
    for number in range(60):
        if number == 30:
            second = patient.ask("the blue disc")
        patient.handlers.on_image(image(number, data=array.array("B")), ARRIVALS[number])
    assert patient.answers(first) == [QueryStatus.FAILED] and patient.answers(second) == []
    for number in range(60, 75):
        patient.handlers.on_image(image(number, data=array.array("B")), ARRIVALS[number])
    assert patient.answers(second) == [QueryStatus.FAILED] and not patient.handlers.is_waiting


def test_a_grounding_that_a_restart_ends_costs_no_patience(models):
    """A slow one: images of the restarted stream come minutes after the query."""
    before = models.config
    late = iter([image(60, (48, 72))])

    def between() -> None:
        for message in late:
            run.handlers.on_image(message, ARRIVALS[60] + 10**11)

    run = Run(models, between=between)
    run.handlers.change_config(replace(before, {"window.patience_s": 2.0}))
    try:
        query = run.ask("the red disc")
        for number in range(3):
            run.handlers.on_image(image(number), ARRIVALS[number])
            run.go_on()
        assert any("stream reset" in text for text in run.warnings()) and run.handlers.is_waiting
        run.handlers.on_image(image(64, (48, 72)), ARRIVALS[64] + 10**11)
        run.go_on()
        assert run.answers(query) == [QueryStatus.TRACKING]
    finally:
        run.handlers.change_config(before)
