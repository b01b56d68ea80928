"""Several cameras in one real node process: topics, questions, services, diagnostics, and fair shares."""
# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from node_process import Robot, SegmenterProcess, small_parameters, unused_domain, wait_for
from std_msgs.msg import String

from decaf_ros.msg import QueryStatus
from decaf_ros.srv import AddQuery, ListQueries
from decaf_ros.types import QueryState

pytestmark = pytest.mark.ros

OK, WARN = "0", "1"


@pytest.fixture(scope="module")
def running(tiny_mllm_dir, tiny_sam2_dir, tmp_path_factory):
    """A segmenter with two cameras, and a client of each."""
    parameters = small_parameters(tiny_mllm_dir, tiny_sam2_dir) | {"cameras": ["wrist", "head"]}
    parameters["queries"] = {"mode": "add"}
    with unused_domain() as domain_id:
        process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters)
        robots = Robot(domain_id, "wrist"), Robot(domain_id, "head")
        for robot in robots:
            robot.wait_until_listened_to()
        yield process, *robots
        print(process.log)
        for robot in robots:
            robot.close()
        assert process.stop() == 0 and "Traceback" not in process.log


@pytest.fixture
def cameras(running) -> tuple[Robot, Robot]:
    """The clients of both cameras of an active node without frames, queries and targets."""
    _, wrist, head = running
    wrist.change_state("deactivate")
    for robot in (wrist, head):
        for messages in robot.received.values():
            messages.clear()
    wrist.change_state("activate")
    for robot in (wrist, head):
        robot.wait_until_listened_to()
    return wrist, head


def _ask_all(robot: Robot, text: str) -> None:
    publisher = robot.node.create_publisher(String, "query", 10)
    wait_for(publisher.get_subscription_count, "a subscription to query")
    publisher.publish(String(data=text))
    publisher.wait_for_all_acked()
    robot.node.destroy_publisher(publisher)


def _answers(robot: Robot) -> list[str]:
    """Ids of the queries that were answered on the camera's status, with repetitions."""
    return [status.query_id for status in robot.received["status"] if QueryState(status.state).is_answer]


def _show_both(cameras: tuple[Robot, Robot], count: int = 1, hz: float = 20.0) -> list[list[int]]:
    """Shows images to both cameras in turn; returns their stamps."""
    stamps: list[list[int]] = [[], []]
    for _ in range(count):
        for robot, own in zip(cameras, stamps):
            own += robot.show(1, 2 * hz)
    return stamps


def _show_until(cameras: tuple[Robot, Robot], condition: Callable[[], object], description: str, hz: float = 20.0):
    """Shows images to both cameras until `condition` is true; returns their stamps."""
    shown: list[list[int]] = [[], []]

    def show_and_check() -> object:
        for stamps, new in zip(shown, _show_both(cameras, 1, hz)):
            stamps += new
        return condition()

    wait_for(show_and_check, description)
    return shown


def test_two_cameras_answer_three_questions_once_each(cameras):
    wrist, head = cameras
    _ask_all(wrist, "the red square")
    own = wrist.ask("the blue disc")
    shown = _show_until(cameras, lambda: len(_answers(wrist)) == 2 and _answers(head), "answers")
    for all_stamps, stamps in zip(shown, _show_both(cameras, 10)):
        all_stamps += stamps
    asked = [[status.query for status in robot.received["status"]] for robot in cameras]
    assert set(asked[0]) == {"the red square", "the blue disc"} and set(asked[1]) == {"the red square"}
    answered = [*_answers(wrist), *_answers(head)]
    assert len(answered) == len(set(answered)) == 3 and own in _answers(wrist)
    ids = []
    for robot, stamps in zip(cameras, shown):
        wait_for(lambda robot=robot: robot.received["tracklets"][-1].tracklets, "targets")
        assert set(robot.stamps("masks")) == set(robot.stamps("tracklets")) <= set(stamps)
        ids.append({tracklet.id for message in robot.received["tracklets"] for tracklet in message.tracklets})
        meant = {one for tracklet in robot.received["tracklets"][-1].tracklets for one in tracklet.query_ids}
        assert meant == set(_answers(robot))
        assert set(robot.stamps("heatmaps")) <= set(stamps) and robot.received["heatmaps"]
        assert robot.received["overlay"]
    assert not ids[0] & ids[1]
    _ask_all(wrist, "")
    for robot in cameras:
        wait_for(lambda robot=robot: robot.call(ListQueries, "list_queries").query_ids == [], "no query is left")


def test_each_camera_has_its_services_its_action_and_its_diagnostics(cameras):
    wrist, head = cameras
    added = head.call(AddQuery, "add_query", text="the red square")
    assert added.accepted
    goal = wrist.send_goal("the blue disc")
    _show_until(cameras, lambda: goal.done and added.query_id in _answers(head), "answers")
    ended, result = goal.result()
    assert (ended, result.state) == ("SUCCEEDED", QueryStatus.TRACKING)
    assert [list(robot.call(ListQueries, "list_queries").query_ids) for robot in cameras] == [
        [result.query_id],
        [added.query_id],
    ]
    for robot, query_id in ((wrist, result.query_id), (head, added.query_id)):
        wait_for(lambda robot=robot, one=query_id: robot.diagnosed()["message"] == f"query {one}: TRACKING", "message")
        assert robot.diagnosed()["level"] == OK and "memory (MiB)" not in robot.diagnosed()
    node = wrist.received["/diagnostics"][-1].status[0]
    values = {value.key: value.value for value in node.values}
    assert (node.name, node.message, values["cameras"]) == ("/decaf/segmenter: decaf", "active", "wrist, head")
    assert int(values["memory (MiB)"]) > 100


def test_a_silent_camera_keeps_nobody_waiting(cameras):
    wrist, head = cameras
    try:
        assert wrist.set_parameter("window.patience_s", 1.0)[0]
        wrist.show_until(lambda: len(wrist.received["masks"]) > 8, "a window of the other camera")
        _ask_all(wrist, "the red square")
        wrist.show_until(lambda: _answers(wrist) and _answers(head), "an answer of each")
        assert wrist.received["status"][-1].state == QueryStatus.TRACKING
        assert head.received["status"][-1].state == QueryStatus.FAILED
        assert "no image came" in head.received["status"][-1].text and not head.received["masks"]
        wait_for(lambda: head.diagnosed()["level"] == WARN, "a warning about the silent camera")
    finally:
        wrist.set_parameter("window.patience_s", 30.0)


def test_cameras_of_one_rate_have_equal_shares_and_a_fast_one_does_not_starve_a_slow_one(cameras):
    wrist, head = cameras
    _ask_all(wrist, "the red square")
    _show_until(cameras, lambda: _answers(wrist) and _answers(head), "answers")

    before = [len(robot.received["masks"]) for robot in cameras]

    def masks() -> list[int]:
        return [len(robot.received["masks"]) - count for robot, count in zip(cameras, before)]

    _show_until(cameras, lambda: max(masks()) >= 40, "masks", hz=100)
    assert min(masks()) >= 0.8 * max(masks())
    before = [len(robot.received["masks"]) for robot in cameras]
    for number in range(1, 11):
        wrist.show(20, hz=200)
        head.show(1, hz=1000)
        wait_for(lambda number=number: masks()[1] >= number, "the image of the slow camera")
    assert masks()[0] > 10


def test_the_node_can_be_configured_for_other_cameras(running, cameras):
    process, wrist, head = running
    assert not wrist.set_parameter("cameras", [])[0]
    assert wrist.change_state("deactivate") and wrist.change_state("cleanup")
    assert wrist.set_parameter("cameras", ["wrist", "rear"]) == (True, "")
    assert wrist.change_state("configure") and wrist.change_state("activate")
    topics = {name for name, _ in wrist.node.get_topic_names_and_types()}
    wait_for(lambda: wrist.node.get_publishers_info_by_topic("/decaf/rear/masks"), "the topics of the new camera")
    assert wrist.node.get_publishers_info_by_topic("/decaf/wrist/masks")
    wait_for(lambda: not wrist.node.get_publishers_info_by_topic("/decaf/head/masks"), "the end of the old one")
    services = {name for name, _ in wrist.node.get_service_names_and_types()}
    assert "/decaf/segmenter/rear/add_query" in services and "/decaf/segmenter/wrist/add_query" in services
    assert "/decaf/wrist/masks" in topics
    query = wrist.ask("the red square")
    wrist.show_until(lambda: query in _answers(wrist), "an answer")
    assert process.running
