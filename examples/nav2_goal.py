#!/usr/bin/env python3
"""Sends a mobile robot in front of an object, facing it: python3 nav2_goal.py the red cube --stand-off 0.6

The goal goes to `/goal_pose`, which nav2 takes like a goal of its action NavigateToPose. nav2 turns it into the map's
frame by TF. With --frame the goal is made in that frame here, as seen from --base, by tf2_ros.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.time import Time
from rclpy.utilities import remove_ros_args
from scipy.spatial.transform import Rotation

from decaf_ros.action import Segment
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus

WAIT_S = 10.0


def in_front_of(target: np.ndarray, robot: np.ndarray, up: np.ndarray, stand_off_m: float) -> tuple:
    """A place at the distance `stand_off_m` before the target on the way from the robot, at the robot's height.

    Args:
        target: (3,) place of the target in metres.
        robot: (3,) place of the robot, in the same frame.
        up: (3,) unit vector that points up in that frame.
        stand_off_m: horizontal distance to the target in metres.

    Returns:
        (3,) place, and a quaternion x, y, z, w that turns x towards the target and z up.

    Raises:
        ValueError: the target is straight above or below the robot.
    """
    way = target - robot
    ahead = way - up * (way @ up)
    if np.linalg.norm(ahead) < 1e-3:
        raise ValueError(f"target: expected one beside the robot, got {target} above or below {robot}")
    distance_m = np.linalg.norm(ahead)
    ahead = ahead / distance_m
    turn = Rotation.from_matrix(np.stack([ahead, np.cross(up, ahead), up], axis=1))
    return robot + ahead * (distance_m - stand_off_m), turn.as_quat()


class Scout(Node):
    """Asks for an object and waits for its pose."""

    def __init__(self) -> None:
        super().__init__("nav2_goal", namespace="decaf")
        self._segment = ActionClient(self, Segment, "segment")
        self._poses: list[PoseStamped] = []
        self.create_subscription(PoseStamped, "target_pose", self._poses.append, 10)

    def wait(self, future):
        rclpy.spin_until_future_complete(self, future)
        return future.result()

    def find(self, query: str) -> PoseStamped:
        """The target's pose. Raises LookupError with the reason if there is none."""
        self._segment.wait_for_server()
        goal = self.wait(self._segment.send_goal_async(Segment.Goal(query=query, timeout_s=60.0)))
        if not goal.accepted:
            raise LookupError("the segmenter is not active")
        answer = self.wait(goal.get_result_async()).result
        if answer.state != QueryStatus.TRACKING:
            raise LookupError(answer.text)
        asked_ns, until = stamp_ns(answer.tracklets.header.stamp), time.monotonic() + WAIT_S
        while time.monotonic() < until:
            rclpy.spin_once(self, timeout_sec=0.1)
            if self._poses and stamp_ns(self._poses[-1].header.stamp) >= asked_ns:
                return self._poses[-1]
        raise LookupError(f"no pose within {WAIT_S:g} s: is depth there? (docs/space.md)")

    def transforms(self, frame: str, sources: list[str], stamp: Time) -> list[tuple[Rotation, np.ndarray]]:
        """The rotation and translation from each source to the frame. Raises LookupError if TF does not know one."""
        import tf2_ros

        buffer = tf2_ros.Buffer()
        listener = tf2_ros.TransformListener(buffer, self)
        until = time.monotonic() + WAIT_S
        try:
            while True:
                try:
                    found = [buffer.lookup_transform(frame, source, stamp).transform for source in sources]
                    break
                except tf2_ros.TransformException as error:
                    if time.monotonic() > until:
                        raise LookupError(f"no transform to {frame} within {WAIT_S:g} s: {error}") from error
                    rclpy.spin_once(self, timeout_sec=0.1)
        finally:
            listener.unregister()
        return [
            (
                Rotation.from_quat([each.rotation.x, each.rotation.y, each.rotation.z, each.rotation.w]),
                np.array([each.translation.x, each.translation.y, each.translation.z]),
            )
            for each in found
        ]


def make_goal(scout: Scout, seen: PoseStamped, frame: str, base: str, stand_off_m: float) -> PoseStamped:
    """The goal in `frame`, or for an empty one in the frame of the pose, whose origin then is the robot's place."""
    place = seen.pose.position
    target, robot = np.array([place.x, place.y, place.z]), np.zeros(3)
    # In an optical frame y points down, if the camera looks level.
    up = np.array([0.0, -1.0, 0.0]) if "optical" in seen.header.frame_id and not frame else np.array([0.0, 0.0, 1.0])
    if frame:
        stamp = Time.from_msg(seen.header.stamp)
        (turn, shift), (_, robot) = scout.transforms(frame, [seen.header.frame_id, base], stamp)
        target = turn.apply(target) + shift
    position, quaternion = in_front_of(target, robot, up, stand_off_m)
    goal = PoseStamped(header=seen.header)
    goal.header.frame_id = frame or seen.header.frame_id
    goal.pose.position.x, goal.pose.position.y, goal.pose.position.z = position.tolist()
    orientation = goal.pose.orientation
    orientation.x, orientation.y, orientation.z, orientation.w = quaternion.tolist()
    return goal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("query", nargs="+", help="the object in words")
    parser.add_argument("--stand-off", type=float, default=0.6, metavar="M", help="distance to keep (%(default)g m)")
    parser.add_argument(
        "--frame", default="", help="frame of the goal, such as map (default: that of the target's pose)"
    )
    parser.add_argument("--base", default="base_link", help="the robot's frame, with --frame (%(default)s)")
    arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init(args=sys.argv)
    scout = Scout()
    navigation = scout.create_publisher(PoseStamped, "/goal_pose", 10)
    try:
        seen = scout.find(" ".join(arguments.query))
        goal = make_goal(scout, seen, arguments.frame, arguments.base, arguments.stand_off)
    except (ImportError, LookupError, ValueError) as error:
        sys.exit(f"no goal: {error}")
    where, turn = goal.pose.position, goal.pose.orientation
    print(f"goal: {where.x:.3f} {where.y:.3f} {where.z:.3f} m in {goal.header.frame_id}, ", end="")
    print(f"turned by {turn.x:.3f} {turn.y:.3f} {turn.z:.3f} {turn.w:.3f}")
    if navigation.get_subscription_count():
        navigation.publish(goal)
        navigation.wait_for_all_acked()
    else:
        print("no nav2 listens to /goal_pose")
    return 0


if __name__ == "__main__":
    sys.exit(main())
