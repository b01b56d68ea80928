"""Several questions at once in the real node process: services, topics, goals and diagnostics."""
# ruff: noqa: E402

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from node_process import Robot, SegmenterProcess, small_parameters, unused_domain, wait_for

from decaf_ros.msg import QueryStatus
from decaf_ros.srv import AddQuery, CancelQuery, ListQueries
from decaf_ros.types import QueryState

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def running_robot(tiny_mllm_dir, tiny_sam2_dir, tmp_path_factory):
    parameters = small_parameters(tiny_mllm_dir, tiny_sam2_dir) | {"queries": {"mode": "add", "most": 3}}
    with unused_domain() as domain_id:
        process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters)
        robot = Robot(domain_id)
        robot.wait_until_listened_to()
        yield robot
        robot.close()
        assert process.stop() == 0 and "Traceback" not in process.log
        print(process.log)


@pytest.fixture
def robot(running_robot) -> Robot:
    """The robot, with an active node without queries."""
    running_robot.set_parameter("queries.mode", "add")
    running_robot.call(CancelQuery, "cancel_query")
    return running_robot


def _add(robot: Robot, text: str, **options) -> str:
    response = robot.call(AddQuery, "add_query", text=text, **options)
    assert (response.accepted, response.text) == (True, "")
    return response.query_id


def _listed(robot: Robot) -> list[str]:
    return list(robot.call(ListQueries, "list_queries").query_ids)


def _track(robot: Robot, *query_ids: str) -> None:
    for query_id in query_ids:
        robot.show_until(lambda query_id=query_id: QueryStatus.TRACKING in robot.states(query_id), query_id)


def test_questions_are_added_listed_and_cancelled(robot):
    first = _add(robot, " the red square ", policy="hold", priority=2)
    second = _add(robot, "the blue disc")
    _track(robot, first, second)
    listed = robot.call(ListQueries, "list_queries")
    assert list(listed.query_ids) == [first, second] and listed.texts == ["the red square", "the blue disc"]
    assert list(listed.states) == [QueryStatus.TRACKING] * 2
    assert listed.policies == ["hold", "off"] and list(listed.priorities) == [2, 0]
    robot.received["tracklets"].clear()
    robot.show_until(lambda: robot.received["tracklets"], "tracklets")
    message = robot.received["tracklets"][-1]
    assert message.query_id == second and message.query == "the blue disc"
    assert {one for tracklet in message.tracklets for one in tracklet.query_ids} == {first, second}
    assert all(tracklet.query_id == tracklet.query_ids[0] for tracklet in message.tracklets)
    wait_for(lambda: robot.diagnosed()["message"] == f"query {first}: TRACKING, query {second}: TRACKING", "message")
    assert robot.diagnosed()[f"query {first}"] == "TRACKING: the red square"
    assert robot.call(CancelQuery, "cancel_query", query_id="q0").cancelled == []
    assert robot.call(CancelQuery, "cancel_query", query_id=first).cancelled == [first]
    assert _listed(robot) == [second]
    third = _add(robot, "the green box")
    assert robot.call(CancelQuery, "cancel_query").cancelled == [second, third] and _listed(robot) == []
    for query_id in (first, second, third):
        assert len([state for state in robot.states(query_id) if QueryState(state).is_answer]) <= 1


def test_requests_that_cannot_be_accepted_say_why(robot):
    kept = _add(robot, "the red square")
    for fields, reason in (
        ({"text": " "}, "text: expected a question, got an empty text"),
        ({"text": "x" * 1001}, "query: expected at most 1000 characters, got 1001"),
        ({"text": "x", "policy": "keep"}, "policy: expected one of hold, refresh, off, or nothing, got 'keep'"),
    ):
        response = robot.call(AddQuery, "add_query", **fields)
        assert (response.accepted, response.query_id, response.text) == (False, "", reason)
    robot.set_parameter("queries.mode", "replace")
    response = robot.call(AddQuery, "add_query", text="the blue disc")
    assert (response.accepted, response.text) == (False, "queries.mode: expected add, got replace")
    assert _listed(robot) == [kept]


def test_every_goal_and_every_query_is_a_question_of_its_own(robot):
    robot.show(8)
    added, goal, asked = _add(robot, "the blue disc"), robot.send_goal("the red square"), robot.ask("the green box")
    robot.show_until(lambda: goal.done, "result")
    ended, result = goal.result()
    assert (ended, result.state) == ("SUCCEEDED", QueryStatus.TRACKING)
    assert result.tracklets.query_id == result.query_id
    assert all(result.query_id in tracklet.query_ids for tracklet in result.tracklets.tracklets)
    _track(robot, added, asked)
    assert set(_listed(robot)) == {added, result.query_id, asked}
    last = _add(robot, "the fourth thing")
    wait_for(lambda: added not in _listed(robot) and last in _listed(robot), "the oldest one has given way")
    robot.ask("")
    assert _listed(robot) == []


def test_an_inactive_node_has_no_queries(robot):
    _add(robot, "the red square")
    assert robot.change_state("deactivate")
    response = robot.call(AddQuery, "add_query", text="the blue disc")
    assert (response.accepted, response.text) == (False, "the node is not active")
    assert _listed(robot) == [] and robot.call(CancelQuery, "cancel_query").cancelled == []
    assert robot.change_state("activate")
    robot.wait_until_listened_to()
    assert _listed(robot) == []
