"""The real node process with faults: models that hang, raise or run out of memory, odd questions, namesakes, QoS."""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

import rclpy
from node_process import Robot, SegmenterProcess, small_parameters, unused_domain, wait_for
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from decaf_ros.msg import QueryStatus
from decaf_ros.srv import CancelQuery, ListQueries
from decaf_ros.types import QueryState

pytestmark = pytest.mark.ros

ERROR = "2"
TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def mllm_dir(tiny_mllm_dir, tmp_path_factory) -> Path:
    """A copy, which a test takes away."""
    return Path(shutil.copytree(tiny_mllm_dir, tmp_path_factory.mktemp("copy") / "mllm"))


@pytest.fixture(scope="module")
def process_and_robot(mllm_dir, tiny_sam2_dir, tmp_path_factory, faults):
    parameters = small_parameters(mllm_dir, tiny_sam2_dir) | {"engine": {"ahead_share": 0.0}}
    parameters["node"] = parameters["node"] | {"stage_timeout_s": TIMEOUT_S}
    with unused_domain() as domain_id:
        process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters, faults=faults)
        robot = Robot(domain_id)
        robot.wait_until_listened_to()
        yield process, robot
        for fault in faults.iterdir():
            fault.unlink()
        robot.close()
        process.stop()
        print(process.log)


@pytest.fixture
def process(process_and_robot) -> SegmenterProcess:
    return process_and_robot[0]


@pytest.fixture
def robot(process_and_robot) -> Robot:
    """The robot, with an active node that works."""
    robot = process_and_robot[1]
    robot.call(CancelQuery, "cancel_query")
    robot.set_parameter("node.stage_timeout_s", TIMEOUT_S)
    for messages in robot.received.values():
        messages.clear()
    return robot


@contextlib.contextmanager
def _hang(faults: Path, place: str, fault: str = "hang") -> Iterator[None]:
    """The calls of a part of a model hang until the end of the block."""
    (faults / place).write_text(fault)
    try:
        yield
    finally:
        for name in (place, "hangs"):
            (faults / name).unlink(missing_ok=True)


def _wait_for_hang(robot: Robot, faults: Path) -> None:
    robot.show_until(lambda: (faults / "hangs").exists(), "a hanging call")


def _answers(robot: Robot, query_id: str) -> list[int]:
    return [state for state in robot.states(query_id) if QueryState(state).is_answer or state == QueryState.ENDED]


def _text(robot: Robot, query_id: str) -> str:
    return [status.text for status in robot.received["status"] if status.query_id == query_id][-1]


def _track(robot: Robot, text: str) -> str:
    """Asks a question and waits until its target is tracked: the node works."""
    query_id = robot.ask(text)
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_id), f"tracking {text}")
    return query_id


def test_a_hanging_stage_is_answered_by_the_watchdog_and_the_node_stays(robot, process, faults):
    robot.show(8)
    with _hang(faults, "language"):
        query_id = robot.ask("the red square")
        _wait_for_hang(robot, faults)
        wait_for(lambda: QueryStatus.FAILED in robot.states(query_id), "an answer")
        text = _text(robot, query_id)
        assert text.startswith("stage ")
        assert f"of query {query_id} has not ended within 0.5 s (node.stage_timeout_s)" in text
        # The diagnostics go on, name the stage, and agree with the answer.
        robot.received["/diagnostics"].clear()
        wait_for(lambda: robot.diagnosed().get("level") == ERROR, "diagnostics")
        assert text.split(" has not")[0] in robot.diagnosed()["message"]
        assert robot.diagnosed()["query state"] == "FAILED"
        # Neither a service nor a later question waits for the call.
        assert list(robot.call(ListQueries, "list_queries").query_ids) == []
        later = robot.send_goal("the blue disc")
        ended, result = later.result()
        assert (ended, result.state) == ("ABORTED", QueryStatus.FAILED) and "node.stage_timeout_s" in result.text
        assert _answers(robot, result.query_id) == [QueryStatus.FAILED]
    # The rest of the hanging grounding has no effect.
    after = _track(robot, "the green box")
    assert _answers(robot, query_id) == [QueryStatus.FAILED] and _answers(robot, after) == [QueryStatus.TRACKING]
    assert not any(one.query_id == query_id for each in robot.received["tracklets"] for one in each.tracklets)
    assert process.log.count("the node waits for it") == 1 and "the node goes on" in process.log


def test_a_unit_that_answers_after_the_watchdog_gives_no_second_answer(robot, faults):
    """It hangs in the catch-up, whose end is the answer."""
    robot.show(8)
    with _hang(faults, "memory_attention"):
        query_id = robot.ask("the red square")
        _wait_for_hang(robot, faults)
        wait_for(lambda: QueryStatus.FAILED in robot.states(query_id), "an answer")
    masks = len(robot.received["masks"])
    robot.show_until(lambda: len(robot.received["masks"]) > masks + 3, "masks")
    assert _answers(robot, query_id) == [QueryStatus.FAILED]
    assert robot.received["tracklets"][-1].tracklets == []


def test_a_question_that_waits_for_hanging_tracking_is_answered(robot, faults):
    tracked = _track(robot, "the red square")
    with _hang(faults, "memory_attention"):
        _wait_for_hang(robot, faults)
        goal = robot.send_goal("the blue disc")
        ended, result = goal.result()
        assert (ended, result.state) == ("ABORTED", QueryStatus.FAILED)
        assert result.text.startswith("tracking on an image has not ended within 0.5 s")
    # It was never asked, so it does not supersede the one that is tracked.
    masks = len(robot.received["masks"])
    robot.show_until(lambda: len(robot.received["masks"]) > masks, "masks")
    assert _answers(robot, tracked) == [QueryStatus.TRACKING]
    assert robot.received["tracklets"][-1].query_id == tracked


def test_timeouts_and_cancels_answer_while_a_call_hangs(robot, faults):
    robot.set_parameter("node.stage_timeout_s", 0.0)
    robot.show(8)
    with _hang(faults, "language"):
        first = robot.send_goal("the red square")
        _wait_for_hang(robot, faults)
        second, third = robot.send_goal("the blue disc", timeout_s=0.3), robot.send_goal("the green box")
        assert robot.call(CancelQuery, "cancel_query", query_id=first.feedback[0].query_id).cancelled
        third.cancel()
        results = [goal.result() for goal in (first, second, third)]
        assert [ended for ended, _ in results] == ["ABORTED", "ABORTED", "CANCELED"]
        query_ids = [result.query_id for _, result in results]
        wait_for(lambda: all(_answers(robot, query_id) for query_id in query_ids), "status")
    _track(robot, "the green box")
    assert [_answers(robot, query_id) for query_id in query_ids] == [[QueryStatus.CANCELLED]] * 3
    assert [result.state for _, result in results] == [QueryStatus.CANCELLED] * 3


def test_deactivate_answers_while_a_call_hangs_and_activate_waits_for_it(robot, faults):
    robot.show(8)
    with _hang(faults, "language"):
        goal = robot.send_goal("the red square")
        _wait_for_hang(robot, faults)
        assert robot.change_state("deactivate") and robot.state() == "inactive"
        ended, result = goal.result()
        assert (ended, result.state, result.text) == ("ABORTED", QueryStatus.CANCELLED, "the node was deactivated")
        robot.received["/diagnostics"].clear()
        assert not robot.change_state("activate") and robot.state() == "inactive"
        # Diagnostics went on while it waited, and say why.
        assert len(robot.received["/diagnostics"]) > 3
        wait_for(lambda: "hanging stage" in robot.diagnosed()["message"], "the reason")
    assert robot.change_state("activate")
    robot.wait_until_listened_to()
    _track(robot, "the green box")
    assert _answers(robot, result.query_id) == [QueryStatus.CANCELLED]


def test_cleanup_leaves_a_hanging_thread_behind_and_the_node_works_again(robot, process, faults):
    robot.show(8)
    with _hang(faults, "language", "once hang"):
        query_id = robot.ask("the red square")
        _wait_for_hang(robot, faults)
        assert robot.change_state("deactivate") and robot.change_state("cleanup") and robot.state() == "unconfigured"
        assert _answers(robot, query_id) == [QueryStatus.CANCELLED]
        wait_for(lambda: robot.diagnosed().get("worker threads left behind") == "1", "diagnostics")
        assert "it is left behind; its models stay in memory until it ends" in process.log
        assert robot.change_state("configure") and robot.change_state("activate")
        robot.wait_until_listened_to()
        new = _track(robot, "the green box")
    wait_for(lambda: "worker threads left behind" not in robot.diagnosed(), "the end of the thread")
    masks = len(robot.received["masks"])
    robot.show_until(lambda: len(robot.received["masks"]) > masks, "masks")
    assert _answers(robot, query_id) == [QueryStatus.CANCELLED] and _answers(robot, new) == [QueryStatus.TRACKING]
    assert robot.diagnosed()["message"] == f"query {new}: TRACKING"


@pytest.mark.parametrize(
    ("place", "fault"),
    [("language", "oom"), ("encoder", "raise"), ("mask_decoder", "oom"), ("memory_attention", "raise")],
)
def test_a_call_that_raises_for_a_while_fails_the_question_and_the_node_goes_on(robot, process, faults, place, fault):
    robot.show(3)
    (faults / place).write_text(fault)
    try:
        query_id = robot.ask("the red square")
        robot.show_until(lambda: _answers(robot, query_id), "an answer")
        assert _answers(robot, query_id) == [QueryStatus.FAILED] and "injected" in _text(robot, query_id)
    finally:
        (faults / place).unlink()
    _track(robot, "the green box")
    assert process.running


def test_memory_that_runs_out_once_is_no_failure(robot, faults):
    robot.show(8)
    for place in ("language", "mask_decoder"):
        (faults / place).write_text("once oom")
    _track(robot, "the red square")
    assert list(faults.iterdir()) == []


QUESTIONS = {
    "1 MB": "long " * 200_000,
    "control characters": "the \x07 red\x1b[31m\r\n\t square\x7f",
    "right to left": "\u202e\u0627\u0644\u0643\u0648\u0628",
    "emoji": "the \U0001f7e5 beside the \U0001f9d1\U0001f3fd\u200d\U0001f680",
}


def test_odd_questions_are_answered_once(robot, process):
    for text in QUESTIONS.values():
        before = {status.query_id for status in robot.received["status"]}
        robot.send(text)

        def answers(before=before) -> list:
            new = [status for status in robot.received["status"] if status.query_id not in before]
            return [status for status in new if QueryState(status.state).is_answer]

        robot.show_until(answers, "an answer")
        robot.call(CancelQuery, "cancel_query")
        (answer,) = answers()
        assert answer.query == text.strip() or answer.state == QueryStatus.FAILED
    assert process.running and "\x1b" not in process.log, "the log shows control characters as escapes"


def test_another_node_of_the_same_name_is_said_in_log_and_diagnostics(robot, process):
    text = "expected one node /decaf/segmenter, but another node has this name"
    other = rclpy.create_node("segmenter", context=robot.node.context, namespace="/decaf")
    try:
        wait_for(lambda: text in robot.diagnosed().get("message", ""), "diagnostics")
        assert robot.diagnosed()["level"] == ERROR and robot.diagnosed()["other nodes of this name"] == "1"
        assert process.log.count(text) == 1
    finally:
        other.destroy_node()
    wait_for(lambda: "other nodes of this name" not in robot.diagnosed(), "that it is alone again")


def test_subscribers_of_any_qos_are_served_and_a_camera_that_does_not_match_is_named(robot, process):
    received: dict[str, list] = {"masks": [], "status": []}
    quality = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
    kinds = {"masks": Image, "status": QueryStatus}
    create = robot.node.create_subscription
    subscriptions = [create(kinds[topic], topic, received[topic].append, quality) for topic in kinds]
    camera = robot.node.create_publisher(Image, "image", quality)
    _track(robot, "the red square")
    robot.show_until(lambda: all(received.values()), "messages")
    wait_for(lambda: "incompatible QoS" in process.log, "a line about the camera", timeout_s=5)
    robot.node.destroy_publisher(camera)
    for subscription in subscriptions:
        robot.node.destroy_subscription(subscription)


def test_a_checkpoint_that_vanishes_while_the_node_runs(robot, mllm_dir):
    """The loaded model answers; the next configuration fails with the reason, and works when the files are back."""
    away = mllm_dir.rename(mllm_dir.with_name("away"))
    try:
        _track(robot, "the red square")
        assert robot.change_state("deactivate") and robot.change_state("cleanup")
        assert not robot.change_state("configure") and robot.state() == "unconfigured"
        wait_for(lambda: f"{mllm_dir} does not exist" in robot.diagnosed()["message"], "the reason")
    finally:
        away.rename(mllm_dir)
    assert robot.change_state("configure") and robot.change_state("activate")
    robot.wait_until_listened_to()
    _track(robot, "the green box")


def test_a_signal_answers_before_the_hanging_process_ends(robot, process, faults):
    # Must be the last test: it ends the node.
    robot.set_parameter("node.stage_timeout_s", 0.0)
    robot.show(8)
    (faults / "language").write_text("hang")
    goal = robot.send_goal("the red square")
    _wait_for_hang(robot, faults)
    assert process.stop(signal.SIGINT, within_s=20) == 1
    ended, result = goal.result()
    assert (ended, result.state, result.text) == ("ABORTED", QueryStatus.CANCELLED, "the node was deactivated")
    assert _answers(robot, result.query_id) == [QueryStatus.CANCELLED]
    assert "every query is answered, but a model hangs: the process is ended" in process.log
    assert "Traceback (most recent call last)" not in process.log.rsplit("inactive", 1)[-1]
