"""The real node process over real DDS: topics, lifecycle, parameters, action, diagnostics and shutdown."""
# ruff: noqa: E402

from __future__ import annotations

import array
import signal
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from builtin_interfaces.msg import Time
from node_process import LATCHED, SIZE_HW, Robot, SegmenterProcess, small_parameters, unused_domain, wait_for
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus
from decaf_ros.types import QueryState

pytestmark = pytest.mark.ros

OK, WARN, ERROR = "0", "1", "2"


@pytest.fixture(scope="module")
def domain_id():
    with unused_domain() as number:
        yield number


@pytest.fixture(scope="module")
def parameters(tiny_mllm_dir, tiny_sam2_dir) -> dict:
    return small_parameters(tiny_mllm_dir, tiny_sam2_dir)


@pytest.fixture(scope="module")
def process(domain_id, parameters, tmp_path_factory):
    process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters)
    yield process
    process.stop()
    print(process.log)


@pytest.fixture(scope="module")
def running_robot(domain_id, process):
    robot = Robot(domain_id)
    robot.wait_until_listened_to()
    yield robot
    robot.close()


@pytest.fixture
def robot(running_robot) -> Robot:
    """The robot, with an active node without frames and targets."""
    running_robot.change_state("deactivate")
    for messages in running_robot.received.values():
        messages.clear()
    running_robot.change_state("activate")
    running_robot.wait_until_listened_to()
    return running_robot


def test_every_used_frame_is_answered_with_its_header_and_the_counts_add_up(robot):
    before = {key: int(value) for key, value in wait_for(robot.diagnosed, "diagnostics").items() if "frames " in key}
    shown = robot.show(8)
    query_id = robot.ask("the red square")
    while QueryStatus.TRACKING not in robot.states(query_id):
        shown += robot.show(1)
    shown += robot.show(5)

    def counted() -> dict[str, int]:
        counts = {key: int(value) - before[key] for key, value in robot.diagnosed().items() if key in before}
        return counts if counts["frames received"] == len(shown) and counts["frames waiting"] == 0 else {}

    counts = wait_for(counted, "all frames handled")
    assert counts["frames used"] + counts["frames dropped"] == len(shown)
    assert counts["frames rejected"] == 0
    for topic in ("masks", "target_mask", "tracklets", "overlay"):
        wait_for(lambda topic=topic: len(robot.received[topic]) == counts["frames used"], topic, timeout_s=5)
        assert robot.stamps(topic) == sorted(set(robot.stamps(topic)))
        assert set(robot.stamps(topic)) <= set(shown)
        assert {message.header.frame_id for message in robot.received[topic]} == {"camera_optical"}
    assert robot.states(query_id) == [QueryStatus.RECEIVED, QueryStatus.GROUNDING, QueryStatus.TRACKING]
    assert robot.received["tracklets"][-1].query_id == query_id
    assert len(robot.received["heatmaps"]) in (2, 3) and set(robot.stamps("heatmaps")) <= set(shown)
    values = robot.diagnosed()
    assert (values["level"], values["message"]) == (OK, f"query {query_id}: TRACKING")
    assert float(values["age of the last frame (s)"]) < 60 and int(values["memory (MiB)"]) > 100
    assert "last grounding: points (ms)" in values


def test_an_empty_query_clears_and_a_bad_image_appears_in_the_diagnostics(robot, process):
    robot.show_until(lambda: len(robot.received["masks"]) > 8, "masks")
    rejected = int(robot.diagnosed()["frames rejected"])
    query_id = robot.ask("the red square")
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_id), "tracking")
    assert robot.states(robot.ask("")) == [QueryStatus.CANCELLED]
    robot.show(1, data=array.array("B", bytes(1000)))
    wait_for(lambda: int(robot.diagnosed()["frames rejected"]) == rejected + 1, "a rejected frame")
    assert robot.diagnosed()["level"] == WARN
    assert "got 1000" in robot.diagnosed()["message"]
    masks = len(robot.received["masks"])
    robot.show_until(lambda: len(robot.received["masks"]) > masks, "masks after a bad image")
    assert robot.received["tracklets"][-1].tracklets == []
    assert process.log.count("got 1000") == 1


def test_each_query_of_a_burst_gets_one_answer(robot):
    robot.show(8)
    query_ids = robot.ask_all([f"object {number}" for number in range(6)])
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_ids[-1]), "tracking")
    answers = [[state for state in robot.states(one) if QueryState(state).is_answer] for one in query_ids]
    assert [len(states) for states in answers] == [1] * 6
    latched: list = []
    subscription = robot.node.create_subscription(QueryStatus, "status", latched.append, LATCHED)
    wait_for(lambda: {status.query_id for status in latched} >= set(query_ids), "all queries for a late subscriber")
    robot.node.destroy_subscription(subscription)
    assert {states[0] for states in answers[:-1]} <= {QueryStatus.SUPERSEDED, QueryStatus.TRACKING}


def test_every_query_of_a_large_burst_is_answered(robot):
    """More than a subscription of the usual depth keeps, while frames are tracked."""
    robot.show(8)
    query_ids = robot.ask_all([f"object {number}" for number in range(60)])
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_ids[-1]), "tracking")
    answers = [[state for state in robot.states(one) if QueryState(state).is_answer] for one in query_ids]
    assert [len(states) for states in answers] == [1] * 60


@pytest.mark.parametrize("stamps", ["zero", "frozen"])
def test_a_camera_without_useful_stamps_is_answered(robot, process, stamps):
    stamp = Time(sec=0 if stamps == "zero" else 1_700_000_000)
    header = Header(stamp=stamp, frame_id="camera_optical")
    query_id = robot.ask("the red square")
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_id), "tracking", header=header)
    assert "times of arrival are used instead" in process.log


def test_a_query_without_images_fails_after_the_patience(robot):
    try:
        assert robot.set_parameter("window.patience_s", 1.0)[0]
        query_id = robot.ask("the red square")
        wait_for(lambda: robot.states(query_id) == [QueryStatus.RECEIVED, QueryStatus.FAILED], "failed", timeout_s=5)
        assert "within 1 s (window.patience_s), got 0: no image came" in robot.received["status"][-1].text
        goal = robot.send_goal("the red square")
        ended, result = goal.result()
        assert (ended, result.state) == ("ABORTED", QueryStatus.FAILED) and "no image came" in result.text
    finally:
        robot.set_parameter("window.patience_s", 30.0)


def test_parameters_change_while_it_runs(robot):
    try:
        assert robot.set_parameter("segmentation.tracklet_threshold", 1) == (True, "")
        successful, reason = robot.set_parameter("segmentation.tracklet_threshold", 1.5)
        assert not successful and "out of range" in reason
        successful, reason = robot.set_parameter("window.size", 5)
        assert not successful and "only when the node is configured" in reason
        assert robot.set_parameter("presence.threshold", 1.0)[0]
        robot.show(8)
        query_id = robot.ask("the red square")
        robot.show_until(lambda: QueryStatus.NOT_FOUND in robot.states(query_id), "not found")
        status = robot.received["status"][-1]
        assert "presence" in status.text and 0.0 <= status.presence < 1.0
    finally:
        robot.set_parameter("segmentation.tracklet_threshold", 0.8)
        robot.set_parameter("presence.threshold", 0.0)


def test_a_goal_succeeds_with_the_first_frame_of_its_targets(robot):
    goal = robot.send_goal("the red square")
    assert goal.accepted
    robot.show_until(lambda: goal.done, "result")
    ended, result = goal.result()
    assert (ended, result.state) == ("SUCCEEDED", QueryStatus.TRACKING)
    assert result.tracklets.query_id == result.query_id and result.tracklets.tracklets
    assert result.masks.header == result.tracklets.header
    assert set(result.masks.data) <= {0, *(tracklet.label for tracklet in result.tracklets.tracklets)}
    assert (result.masks.height, result.masks.width) == (96, 128)
    assert 0.0 <= result.presence <= 1.0
    states = [feedback.state for feedback in goal.feedback]
    assert states == sorted(states) and states[0] == QueryStatus.RECEIVED and states[-1] == QueryStatus.TRACKING
    stages = [feedback.stage for feedback in goal.feedback if feedback.stage]
    assert "tracklets" in stages and "catch_up" in stages
    assert {feedback.query_id for feedback in goal.feedback} == {result.query_id}


def test_a_client_cancels_its_goal(robot):
    goal = robot.send_goal("the red square")
    wait_for(lambda: goal.feedback, "feedback")
    goal.cancel()
    ended, result = goal.result()
    assert (ended, result.state) == ("CANCELED", QueryStatus.CANCELLED)
    wait_for(lambda: robot.states(result.query_id) == [QueryStatus.RECEIVED, QueryStatus.CANCELLED], "status")


def test_a_goal_ends_after_its_timeout(robot):
    goal = robot.send_goal("the red square", timeout_s=0.3)
    began = time.monotonic()
    ended, result = goal.result()
    assert time.monotonic() - began < 3
    assert (ended, result.state, result.text) == ("ABORTED", QueryStatus.CANCELLED, "no answer within 0.3 s")
    wait_for(lambda: QueryStatus.CANCELLED in robot.states(result.query_id), "status")


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), -1.0, 1e30])
def test_a_goal_with_an_invalid_timeout_is_rejected(robot, process, timeout_s):
    assert not robot.send_goal("the red square", timeout_s).accepted
    wait_for(lambda: f"timeout_s: expected 0 to 1e+09, got {timeout_s:g}" in process.log, "log", timeout_s=5)


def test_a_goal_without_a_question_is_rejected(robot, process):
    assert not robot.send_goal(" ").accepted
    expected = "goal rejected: query: expected a question, got an empty text"
    wait_for(lambda: expected in process.log, "log", timeout_s=5)


def test_a_goal_with_an_unknown_policy_is_rejected(robot, process):
    assert not robot.send_goal("the red square", policy="keep").accepted
    expected = "policy: expected one of hold, refresh, off, or nothing, got 'keep'"
    wait_for(lambda: expected in process.log, "log", timeout_s=5)
    assert robot.send_goal("the red square", policy="refresh").accepted


@pytest.mark.parametrize("timeout_s", [1e-12, 1e9])
def test_the_shortest_and_the_longest_timeout(robot, timeout_s):
    goal = robot.send_goal("the red square", timeout_s)
    assert goal.accepted
    if timeout_s > 1:
        goal.cancel()
    ended, result = goal.result()
    assert (ended, result.state) == ("CANCELED" if timeout_s > 1 else "ABORTED", QueryStatus.CANCELLED)


def test_a_goal_is_superseded_by_a_query(robot):
    goal = robot.send_goal("the red square")
    wait_for(lambda: goal.feedback, "feedback")
    robot.ask("the blue disc")
    ended, result = goal.result()
    assert (ended, result.state) == ("ABORTED", QueryStatus.SUPERSEDED)


def test_deactivation_ends_goals_and_queries(robot):
    goal = robot.send_goal("the red square")
    wait_for(lambda: goal.feedback, "feedback")
    assert robot.change_state("deactivate")
    ended, result = goal.result()
    assert (ended, result.state, result.text) == ("ABORTED", QueryStatus.CANCELLED, "the node was deactivated")
    wait_for(lambda: QueryStatus.CANCELLED in robot.states(result.query_id), "status")
    assert not robot.send_goal("the red square").accepted
    wait_for(lambda: robot.diagnosed().get("message") == "inactive", "diagnostics")
    assert robot.change_state("activate")


@pytest.mark.parametrize("end", ["cancel", "deactivate"])
def test_a_goal_that_waits_for_its_first_frame_can_be_ended(robot, end):
    robot.show(8)
    goal = robot.send_goal("the red square")
    wait_for(lambda: QueryStatus.TRACKING in [feedback.state for feedback in goal.feedback], "tracking")
    assert not goal.done
    if end == "cancel":
        goal.cancel()
    else:
        robot.change_state("deactivate")
    ended, result = goal.result()
    assert (ended, result.state) == ("CANCELED" if end == "cancel" else "ABORTED", QueryStatus.CANCELLED)
    answers = [state for state in robot.states(result.query_id) if QueryState(state).is_answer]
    assert answers == [QueryStatus.TRACKING]


def test_the_lifecycle_can_be_repeated_and_refuses_impossible_transitions(robot, process):
    assert robot.state() == "active"
    assert not robot.change_state("configure")
    assert robot.state() == "active"
    before = robot.ask("the red square")
    robot.show_until(lambda: any(message.tracklets for message in robot.received["tracklets"]), "targets")
    ids = {tracklet.id for message in robot.received["tracklets"] for tracklet in message.tracklets}
    for transport in ("compressed", "raw"):
        assert robot.change_state("deactivate") and robot.state() == "inactive"
        assert robot.change_state("cleanup") and robot.state() == "unconfigured"
        assert robot.set_parameter("node.image_transport", transport)[0]
        assert robot.change_state("configure") and robot.state() == "inactive"
        assert robot.change_state("activate") and robot.state() == "active"
        if transport == "compressed":
            stamp = robot.show_compressed()
            wait_for(lambda stamp=stamp: stamp in robot.stamps("masks"), "masks of a compressed image")
    robot.wait_until_listened_to()
    masks = len(robot.received["masks"])
    robot.show_until(lambda: len(robot.received["masks"]) > masks, "masks of raw images")
    robot.received["tracklets"].clear()
    after = robot.ask("the red square")
    robot.show_until(lambda: any(message.tracklets for message in robot.received["tracklets"]), "targets")
    new_ids = {tracklet.id for message in robot.received["tracklets"] for tracklet in message.tracklets}
    assert int(after[1:]) == int(before[1:]) + 1 and min(new_ids) == max(ids) + 1
    assert process.running and "stream reset" not in process.log


def test_masks_and_confidence_on_request(robot):
    """Both while the node runs: a live parameter, and a topic that is computed for subscribers."""
    query_id = robot.ask("the red square")
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_id), "tracking")
    assert {one.mask.encoding for message in robot.received["tracklets"] for one in message.tracklets} <= {""}
    confidence: list[Image] = []
    subscription = robot.node.create_subscription(Image, "confidence", confidence.append, 50)
    assert robot.set_parameter("outputs.tracklet_masks", "png") == (True, "")

    def coded() -> list:
        return [one.mask for message in robot.received["tracklets"] for one in message.tracklets if one.mask.data]

    robot.show_until(lambda: confidence and coded(), "masks and confidence")
    assert robot.set_parameter("outputs.tracklet_masks", "none") == (True, "")
    robot.node.destroy_subscription(subscription)
    assert confidence[-1].encoding == "mono8" and stamp_ns(confidence[-1].header.stamp) in robot.stamps("masks")
    pixels = cv2.imdecode(np.frombuffer(coded()[-1].data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == SIZE_HW == (coded()[-1].height, coded()[-1].width) and set(np.unique(pixels)) <= {0, 255}


def test_transports_that_are_not_subscribed_to_are_refused_by_name(domain_id, parameters, tmp_path, robot):
    """As a value of the parameter, and by the name of the topic that `image` is remapped to."""
    process = SegmenterProcess(domain_id, tmp_path / "value", parameters, "-p", "node.image_transport:=ffmpeg")
    assert process.wait() == 1 and "Traceback" not in process.log
    assert "got 'ffmpeg'; let image_transport decode it: ros2 run image_transport republish ffmpeg raw" in process.log
    process = SegmenterProcess(
        domain_id, tmp_path / "topic", parameters, "-r", "image:=/cam/image/theora", namespace="/refused"
    )
    try:
        wait_for(lambda: "cannot become inactive" in process.log, "the refusal")
        assert "/cam/image/theora: expected images as raw (node.image_transport), got theora" in process.log
        assert "-r in/theora:=/cam/image/theora -r out:=/cam/image/decoded" in process.log
    finally:
        assert process.stop(signal.SIGTERM) == 0


def test_a_missing_checkpoint_leaves_the_node_unconfigured(domain_id, parameters, tmp_path, robot):
    missing = parameters | {"sam2": {"checkpoint": str(tmp_path / "nowhere"), "device": "cpu"}}
    process = SegmenterProcess(domain_id, tmp_path, missing, namespace="/other")
    try:

        def messages() -> list:
            return [one for one in robot.received["/diagnostics"] if one.status[0].hardware_id == "/other/segmenter"]

        wait_for(lambda: messages() and messages()[-1].status[0].level[0] == 2, "an error in the diagnostics")
        assert "nowhere" in messages()[-1].status[0].message
        assert process.running and process.log.count("nowhere") < 4
    finally:
        assert process.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("name, value, error", [("window.sise", "5", "unknown option window.sise")])
def test_a_bad_parameter_ends_the_process_with_one_line(domain_id, parameters, tmp_path, name, value, error):
    process = SegmenterProcess(domain_id, tmp_path, parameters, "-p", f"{name}:={value}")
    assert process.wait() == 1
    assert error in process.log and "Traceback" not in process.log


def test_sigint_ends_the_process_cleanly_and_ends_goals(robot, process):
    # Must be the last test: it ends the node.
    goal = robot.send_goal("the red square")
    wait_for(lambda: goal.feedback, "feedback")
    began = time.monotonic()
    assert process.stop(signal.SIGINT, within_s=10) == 0
    assert time.monotonic() - began < 10
    ended, result = goal.result()
    assert (ended, result.state) == ("ABORTED", QueryStatus.CANCELLED)
    assert QueryStatus.CANCELLED in robot.states(result.query_id)
    assert "Traceback" not in process.log
