#!/usr/bin/env python3
"""Asks for an object, waits for the answer and moves an arm to it: python3 move_to_target.py the red cube

The pose goes to `arm_goal`, for a controller that follows a PoseStamped, such as MoveIt Servo's:
`--ros-args -r arm_goal:=/servo_node/pose_target_cmds`
"""

import sys
import time

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rclpy.utilities import remove_ros_args

from decaf_ros.action import Segment
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus


def main() -> int:
    rclpy.init(args=sys.argv)
    node = rclpy.create_node("move_to_target", namespace="decaf")
    poses: list[PoseStamped] = []
    node.create_subscription(PoseStamped, "target_pose", poses.append, 10)
    arm = node.create_publisher(PoseStamped, "arm_goal", 10)
    segment = ActionClient(node, Segment, "segment")

    def wait(future):
        rclpy.spin_until_future_complete(node, future)
        return future.result()

    segment.wait_for_server()
    goal = wait(segment.send_goal_async(Segment.Goal(query=" ".join(remove_ros_args(sys.argv)[1:]), timeout_s=60.0)))
    if not goal.accepted:
        sys.exit("the segmenter is not active")
    answer = wait(goal.get_result_async()).result
    if answer.state != QueryStatus.TRACKING:
        sys.exit(f"no target: {answer.text}")
    # Earlier poses are of earlier targets. The best target may have been asked for by somebody else (queries.mode).
    asked_ns, until = stamp_ns(answer.tracklets.header.stamp), time.monotonic() + 10
    while not any(stamp_ns(pose.header.stamp) >= asked_ns for pose in poses):
        if time.monotonic() > until:
            sys.exit("no pose within 10 s: is depth there? (docs/space.md)")
        rclpy.spin_once(node, timeout_sec=0.1)
    where = poses[-1].pose.position
    print(f"{answer.text}: {where.x:.3f} {where.y:.3f} {where.z:.3f} m in {poses[-1].header.frame_id}")
    if arm.get_subscription_count():
        arm.publish(poses[-1])
        arm.wait_for_all_acked()
    else:
        print(f"no arm listens to {arm.topic_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
