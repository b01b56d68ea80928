"""The action server in this process, with failures behind it."""
# ruff: noqa: E402

from __future__ import annotations

import time

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.action")
domain_coordinator = pytest.importorskip("domain_coordinator")

import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from decaf_ros.action import Segment
from decaf_ros.nodes.action import SegmentAction
from decaf_ros.types import Query, QueryEvent, QueryState

pytestmark = pytest.mark.ros


@pytest.fixture
def node(monkeypatch):
    """A node with an executor that spins only in `_send`."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with domain_coordinator.domain_id() as domain_id:
        context = Context()
        rclpy.init(context=context, domain_id=domain_id)
        node = rclpy.create_node("served", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        yield node
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def _spin_until_done(node: Node, future):
    deadline = time.monotonic() + 10
    while not future.done():
        assert time.monotonic() < deadline
        node.executor.spin_once(timeout_sec=0.05)
    return future.result()


def _send(node: Node, timeout_s: float = 0.0) -> tuple[int, Segment.Result]:
    """Sends a goal; returns its status and result."""
    client = ActionClient(node, Segment, "segment")
    assert client.wait_for_server(10)
    goal = _spin_until_done(node, client.send_goal_async(Segment.Goal(query="the mug", timeout_s=timeout_s)))
    ended = _spin_until_done(node, goal.get_result_async())
    client.destroy()
    return ended.status, ended.result


def test_a_goal_that_cannot_be_asked_is_aborted_and_forgotten(node):
    def ask(query: Query) -> bool:
        raise RuntimeError("unexpected")

    action = SegmentAction(
        node, "segment", lambda text, policy: Query("q1", text), lambda: True, ask, lambda *args: True
    )
    status, _ = _send(node, timeout_s=60.0)
    assert status == GoalStatus.STATUS_ABORTED
    assert not action.busy and not list(node.timers)
    action.destroy()


def test_a_node_that_is_no_longer_active_aborts_the_goal(node):
    active = iter([True, False])
    action = SegmentAction(
        node, "segment", lambda text, policy: Query("q1", text), lambda: next(active), bool, lambda *args: True
    )
    status, result = _send(node)
    assert (status, result.text, result.presence) == (GoalStatus.STATUS_ABORTED, "the node is not active", -1.0)
    assert not action.busy
    action.destroy()


@pytest.mark.slow  # waits
def test_a_result_is_kept_for_a_client_that_comes_late(node):
    """By default rclpy keeps it for 10 s since Kilted."""
    active = iter([True, False])
    action = SegmentAction(
        node, "segment", lambda text, policy: Query("q1", text), lambda: next(active), bool, lambda *args: True
    )
    client = ActionClient(node, Segment, "segment")
    assert client.wait_for_server(10)
    goal = _spin_until_done(node, client.send_goal_async(Segment.Goal(query="the mug")))
    ended = time.monotonic() + 12
    while time.monotonic() < ended:
        node.executor.spin_once(timeout_sec=0.05)
    assert not action.busy
    late = _spin_until_done(node, goal.get_result_async())
    assert (late.status, late.result.text) == (GoalStatus.STATUS_ABORTED, "the node is not active")
    client.destroy(), action.destroy()


def test_a_tracked_goal_ends_although_no_frame_comes(node, monkeypatch):
    """The camera stopped, or the bag ended."""
    monkeypatch.setattr("decaf_ros.nodes.action._FIRST_FRAME_S", 0.2)

    def ask(query: Query) -> bool:
        action.watch(QueryEvent(query, QueryState.TRACKING, "tracking 1 target"))
        return True

    action = SegmentAction(
        node, "segment", lambda text, policy: Query("q1", text), lambda: True, ask, lambda *args: True
    )
    status, result = _send(node)
    assert (status, result.state, result.text) == (GoalStatus.STATUS_SUCCEEDED, 2, "tracking 1 target")
    assert len(result.masks.data) == 0 and not action.busy and not list(node.timers)
    action.destroy()
