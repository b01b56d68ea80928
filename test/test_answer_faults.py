"""Errors around answers and in decoding, bursts, changing cameras: all queries are answered, all frames counted."""
# ruff: noqa: E402

from __future__ import annotations

import array

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from handler_run import ANSWERS, Run, image, tiny_models

from decaf_ros.msg import QueryStatus
from decaf_ros.online import handlers as handlers_module
from decaf_ros.online import segmenter as segmenter_module
from decaf_ros.online.follower import Follower
from decaf_ros.pipeline import Decaf
from decaf_ros.types import QueryEvent, QueryState

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir) -> Decaf:
    return tiny_models(tiny_mllm_dir, tiny_sam2_dir)


@pytest.fixture
def run(models) -> Run:
    run = Run(models)
    run.show(*map(image, range(4)))
    return run


def _break_publishing(run: Run, *states: QueryState) -> None:
    """The next status with each of these states is not published."""
    left, publish = list(states), run.published.append

    def publish_or_raise(*output) -> None:
        state = getattr(output[1], "state", None)
        if output[0] == "status" and state in left:
            left.remove(state)
            raise RuntimeError("not sent")
        publish(output)

    run.handlers._publish = publish_or_raise


def test_an_answer_that_cannot_be_published_becomes_a_failure(run):
    _break_publishing(run, QueryState.TRACKING)
    with pytest.raises(RuntimeError, match="not sent"):
        run.ask("the red disc")
    run.handlers.settle()
    assert run.states("q1")[-1] == QueryStatus.FAILED and run.answers("q1") == [QueryStatus.FAILED]
    assert run.on("status")[-1].text == "unexpected error: RuntimeError: not sent"
    run.show(image(4))
    assert run.on("tracklets")[-1].tracklets == []


def test_a_question_that_the_core_has_lost_is_answered(run):
    """Neither the answer nor the failure after it was published."""
    _break_publishing(run, QueryState.TRACKING, QueryState.FAILED)
    with pytest.raises(RuntimeError, match="not sent"):
        run.ask("the red disc")
    assert run.answers("q1") == []
    run.handlers.settle()
    run.handlers.settle()
    assert run.answers("q1") == [QueryStatus.FAILED]
    assert run.on("status")[-1].text == "its answer was lost in an unexpected error"


def test_an_error_before_the_message_of_an_answer_fails_the_question(run, monkeypatch):
    def broken(*_) -> str:
        raise KeyError("category")

    monkeypatch.setattr(segmenter_module, "tracking_text", broken)
    with pytest.raises(KeyError):
        run.ask("the red disc")
    assert run.answers("q1") == [QueryStatus.FAILED]


def test_an_error_after_the_message_of_an_answer_gives_no_second_one(models):
    def watch(output) -> None:
        if isinstance(output, QueryEvent) and output.state == QueryState.TRACKING:
            raise RuntimeError("a watcher that raises")

    run = Run(models, watch=watch)
    run.show(*map(image, range(4)))
    with pytest.raises(RuntimeError, match="a watcher"):
        run.ask("the red disc")
    assert run.states("q1")[-2:] == [QueryStatus.TRACKING, QueryStatus.ENDED]


def test_an_error_while_a_question_is_dropped_does_not_keep_its_answer(run, monkeypatch):
    def drop(*_) -> None:
        raise RuntimeError("a target that cannot be dropped")

    query = run.handlers.new_query("the red disc", 0)
    monkeypatch.setattr(Follower, "drop", drop)
    with pytest.raises(RuntimeError, match="cannot be dropped"):
        run.handlers.on_query(query), run.handlers.cancel(query.id, "no longer needed")
    monkeypatch.undo()
    assert run.states("q1")[-1] in (QueryStatus.CANCELLED, QueryStatus.ENDED) and len(run.answers("q1")) == 1


@pytest.mark.parametrize("error", [RuntimeError("a decoder"), MemoryError(), KeyError("field"), ValueError("a size")])
def test_every_frame_is_counted_whatever_its_decoding_raises(run, monkeypatch, error):
    decode = handlers_module.frame_from_message

    def broken(message, index, *options):
        if message.header.stamp.nanosec % 100_000_000:
            raise error
        return decode(message, index, *options)

    monkeypatch.setattr(handlers_module, "frame_from_message", broken)
    run.show(*map(image, range(4, 10)))
    statistics = run.handlers.statistics
    assert (statistics.used, statistics.rejected) == (4 + 3, 3)
    assert len(run.on("masks")) == 7 and "image rejected: " in run.warnings()[0]
    assert (type(error).__name__ in statistics.problem.text) is not isinstance(error, ValueError)


def test_each_of_a_thousand_questions_is_answered_once(models):
    run = Run(models)
    query_ids = [run.ask(f"object {number}") for number in range(1000)]
    run.handlers.cancel_unanswered("the end")
    answers: dict[str, list[int]] = {query_id: [] for query_id in query_ids}
    for status in run.on("status"):
        if status.state in ANSWERS:
            answers[status.query_id].append(status.state)
    assert list(answers.values()) == [[QueryStatus.SUPERSEDED]] * 999 + [[QueryStatus.CANCELLED]]


def test_a_camera_that_changes_its_encoding_and_its_frame_goes_on(run):
    run.ask("the red disc")
    for number, (encoding, channels) in enumerate((("rgb8", 3), ("bgr8", 3), ("mono8", 1), ("rgba8", 4)), 4):
        data = array.array("B", np.full((48, 64, channels), 90, np.uint8).tobytes())
        message = image(number, encoding=encoding, step=64 * channels, data=data)
        message.header.frame_id = f"camera_{encoding}"
        run.show(message)
    run.show(image(8))
    frame_ids = [message.header.frame_id for message in run.on("masks")]
    assert frame_ids == ["camera"] * 4 + [f"camera_{one}" for one in ("rgb8", "bgr8", "mono8", "rgba8")] + ["camera"]
    assert run.handlers.statistics.rejected == 0 and run.answers("q1") == [QueryStatus.TRACKING]
