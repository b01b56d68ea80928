#!/usr/bin/env python3
"""A behaviour tree that finds an object and approaches it: python3 behaviour_tree.py the red cube

Leaves for py_trees (`apt install ros-$ROS_DISTRO-py-trees`, or `pip install py_trees`): no tick waits for anything.
"""

from __future__ import annotations

import sys
import time

import rclpy
from geometry_msgs.msg import PoseStamped
from py_trees.behaviour import Behaviour
from py_trees.common import Status
from py_trees.composites import Sequence
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from decaf_ros.action import Segment
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus

TICK_S = 0.1


class FindTarget(Behaviour):
    """SUCCESS when the object is tracked, FAILURE when it is not there. Leaving it cancels the query.

    Args:
        node: gets an action client.
        query: the object in words.
        timeout_s: of the whole query, in the segmenter; 0: none.
    """

    def __init__(self, node: Node, query: str, timeout_s: float = 60.0) -> None:
        super().__init__("find the target")
        self._client = ActionClient(node, Segment, "segment")
        self._goal = Segment.Goal(query=query, timeout_s=timeout_s)
        self._sent = self._done = None
        self.answer: Segment.Result | None = None

    def initialise(self) -> None:
        self._sent = self._done = self.answer = None
        self.feedback_message = "waits for the segmenter"

    def update(self) -> Status:
        if self._sent is None:
            if self._client.server_is_ready():
                self._sent = self._client.send_goal_async(self._goal, feedback_callback=self._take_feedback)
            return Status.RUNNING
        if not self._sent.done():
            return Status.RUNNING
        if not self._sent.result().accepted:
            self.feedback_message = "the segmenter is not active"
            return Status.FAILURE
        self._done = self._done or self._sent.result().get_result_async()
        if not self._done.done():
            return Status.RUNNING
        self.answer = self._done.result().result
        self.feedback_message = self.answer.text
        return Status.SUCCESS if self.answer.state == QueryStatus.TRACKING else Status.FAILURE

    def terminate(self, new_status: Status) -> None:
        is_open = self._sent is not None and self.answer is None
        if new_status == Status.INVALID and is_open:
            # Also a goal whose answer is still on its way.
            self._sent.add_done_callback(lambda sent: sent.result().accepted and sent.result().cancel_goal_async())

    def _take_feedback(self, message: Segment.Impl.FeedbackMessage) -> None:
        self.feedback_message = f"{message.feedback.stage} {message.feedback.progress:.0%}"


class ApproachTarget(Behaviour):
    """Sends the target's pose to `arm_goal`. FAILURE if there is none in time, as without depth.

    Args:
        node: subscribes and publishes.
        find: the leaf that found the target.
        timeout_s: for the first pose.
    """

    def __init__(self, node: Node, find: FindTarget, timeout_s: float = 10.0) -> None:
        super().__init__("approach the target")
        self._find = find
        self._timeout_s = timeout_s
        self._until = 0.0
        self.pose: PoseStamped | None = None
        self._subscription = node.create_subscription(PoseStamped, "target_pose", self._take_pose, 10)
        self._arm = node.create_publisher(PoseStamped, "arm_goal", 10)

    def initialise(self) -> None:
        self._until = time.monotonic() + self._timeout_s

    def update(self) -> Status:
        # A pose that came before the answer is of an earlier target.
        since_ns = stamp_ns(self._find.answer.tracklets.header.stamp)
        if self.pose is None or stamp_ns(self.pose.header.stamp) < since_ns:
            self.feedback_message = "no pose"
            return Status.RUNNING if time.monotonic() < self._until else Status.FAILURE
        where = self.pose.pose.position
        self.feedback_message = f"{where.x:.3f} {where.y:.3f} {where.z:.3f} m in {self.pose.header.frame_id}"
        self._arm.publish(self.pose)
        return Status.SUCCESS

    def _take_pose(self, message: PoseStamped) -> None:
        self.pose = message


def main() -> int:
    rclpy.init(args=sys.argv)
    node = rclpy.create_node("behaviour_tree", namespace="decaf")
    find = FindTarget(node, " ".join(remove_ros_args(sys.argv)[1:]))
    # With memory: an object that was found is not asked for again on each tick.
    tree = Sequence("fetch", memory=True, children=[find, ApproachTarget(node, find)])
    said = ""
    while tree.status not in (Status.SUCCESS, Status.FAILURE):
        rclpy.spin_once(node, timeout_sec=TICK_S)
        tree.tick_once()
        line = "; ".join(f"{leaf.name}: {leaf.status.name} {leaf.feedback_message}".strip() for leaf in tree.children)
        if line != said:
            print(line, flush=True)
            said = line
    return 0 if tree.status == Status.SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
